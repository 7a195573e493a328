"""Tiles of land seen from above."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dassl_lite.datasets._drawn.canvas import Canvas, edge, over
from dassl_lite.datasets._drawn.scene import Floats

GRASS = (0.20, 0.42, 0.18)
SOIL = (0.55, 0.47, 0.33)
WATER = (0.12, 0.25, 0.42)
ASPHALT = np.array((0.5, 0.5, 0.5))
PAINT = np.array((0.95, 0.95, 0.95))
TILED_ROOF = (0.65, 0.30, 0.22)
METAL_ROOF = (0.75, 0.77, 0.80)


def _ground(canvas: Canvas, colour: Floats) -> Floats:
    return colour + (canvas.noise(6, 3) - 0.5) * 0.15


def _grass(canvas: Canvas) -> Floats:
    return _ground(canvas, canvas.some_colour(GRASS, 0.04))


def _forest(canvas: Canvas) -> Floats:
    nearest, _ = canvas.nearest_points(240)
    crowns = np.clip(1 - nearest * 9, 0, 1)
    return _grass(canvas) * 0.35 + crowns[..., None] * canvas.some_colour((0.10, 0.26, 0.10), 0.02)


def _beside_line(canvas: Canvas, bend: float) -> Floats:
    """Distance (S, S) from a line that crosses the tile, bent by so much."""
    course = canvas.a + bend * np.sin(3 * canvas.b + canvas.rng.uniform(0, 6))
    return np.abs(course - canvas.rng.uniform(-0.3, 0.3))


def _river(canvas: Canvas) -> Floats:
    bank = canvas.rng.uniform(0.10, 0.18) - _beside_line(canvas, 0.25)
    return over(_grass(canvas), canvas.some_colour(WATER, 0.03), edge(bank, 24))


def _highway(canvas: Canvas) -> Floats:
    distance = _beside_line(canvas, 0.02)
    road = over(_grass(canvas), ASPHALT, edge(canvas.rng.uniform(0.12, 0.2) - distance, 24))
    return over(road, PAINT, edge(0.02 - distance, 40))


def _lake(canvas: Canvas) -> Floats:
    x, y = canvas.x - canvas.rng.uniform(-0.3, 0.3), canvas.y - canvas.rng.uniform(-0.3, 0.3)
    shore = canvas.rng.uniform(0.4, 0.6) - np.hypot(x, y) + (canvas.noise(5) - 0.5) * 0.6
    return over(_grass(canvas), canvas.some_colour(WATER, 0.03), edge(shore, 20))


def _blocks(canvas: Canvas, ground: Floats, roof: Floats, pace: float) -> Floats:
    """Buildings on a grid of streets, `pace` of them per half tile."""
    u = (canvas.a * pace + canvas.rng.random()) % 1
    v = (canvas.b * pace + canvas.rng.random()) % 1
    street = edge(np.maximum(u, v) - 0.85, 6 * 4 / pace)
    building = edge(0.6 - np.maximum(u, v), 6 * 4 / pace)
    return over(over(ground, ASPHALT, street), roof, building)


def _residential(canvas: Canvas) -> Floats:
    roof = canvas.some_colour(TILED_ROOF, 0.05)
    return _blocks(canvas, _grass(canvas), roof, canvas.rng.uniform(2.6, 3.6))


def _industrial(canvas: Canvas) -> Floats:
    yard = _ground(canvas, canvas.some_colour(SOIL, 0.05) + 0.15)
    return _blocks(canvas, yard, canvas.some_colour(METAL_ROOF, 0.05), canvas.rng.uniform(1.2, 1.7))


def _cropland(canvas: Canvas) -> Floats:
    along = np.floor(canvas.a * 2.2 + canvas.rng.random()).astype(int)
    across = np.floor(canvas.b * 1.6 + canvas.rng.random()).astype(int)
    ripeness = canvas.rng.random((9, 9))[along + 4, across + 4]
    fields = over(np.broadcast_to(np.array(GRASS), (*ripeness.shape, 3)), np.array(SOIL) * 1.2, ripeness)
    furrows = 0.05 * np.sin(canvas.a * 40)
    return fields + furrows[..., None] + canvas.rng.normal(0, 0.02, 3)


def _pasture(canvas: Canvas) -> Floats:
    return _grass(canvas) * 1.35 + 0.08


def _orchard(canvas: Canvas) -> Floats:
    pace = canvas.rng.uniform(3.5, 5)
    u, v = (canvas.a * pace) % 1 - 0.5, (canvas.b * pace) % 1 - 0.5
    return over(_ground(canvas, np.array(SOIL)), np.array(GRASS) * 0.8, edge(0.32 - np.hypot(u, v), 6))


def _desert(canvas: Canvas) -> Floats:
    dunes = 0.08 * np.sin(canvas.a * 14 + canvas.noise(5) * 5)
    return _ground(canvas, canvas.some_colour(SOIL, 0.05) + 0.15) + dunes[..., None]


PAINTERS: dict[str, Callable[[Canvas], Floats]] = {
    "forest": _forest,
    "river": _river,
    "highway": _highway,
    "residential": _residential,
    "cropland": _cropland,
    "pasture": _pasture,
    "lake": _lake,
    "industrial": _industrial,
    "orchard": _orchard,
    "desert": _desert,
}
