"""Pictures without an object: textures that fill the frame, and tiles of land seen from above.

Both are painted on a `Canvas`, which is rotated at random. A texture mixes two colours by a pattern; the first three of
`TEXTURES` are fills that the demo model knows from pre-training.

Shapes: shares and fields are (S, S), colours (3,), pictures (S, S, 3), all in [0, 1]; coordinates are in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dassl_lite.datasets._drawn.render import (
    PIXELS,
    Images,
    checks,
    outside_dots,
    pixel_grid,
    smooth_noise,
    square_wave,
    to_bytes,
)
from dassl_lite.datasets._drawn.scene import Floats, Ints

GRAIN = 0.08  # width of the uniform pixel noise


class Canvas:
    """The coordinates of a picture, upright (`x`, `y`) and rotated by a random angle (`a`, `b`), and its generator."""

    def __init__(self, rng: np.random.Generator, pixels: int = PIXELS) -> None:
        self.rng = rng
        self.pixels = pixels
        self.x, self.y = pixel_grid(pixels)
        angle = rng.uniform(0, np.pi)
        self.a = np.cos(angle) * self.x + np.sin(angle) * self.y
        self.b = np.cos(angle) * self.y - np.sin(angle) * self.x

    def noise(self, knots: int, channels: int = 1) -> Floats:
        """A smooth random field; (S, S) for one channel, else (S, S, channels)."""
        field = smooth_noise(self.rng, 1, self.pixels, knots, channels)[0]
        return field[..., 0] if channels == 1 else field

    def nearest_points(self, count: int) -> tuple[Floats, Floats]:
        """Distances (S, S) to the nearest and to the second nearest of `count` random points."""
        points = self.rng.uniform(-1.1, 1.1, (count, 2))
        return nearest_two(self.x, self.y, points)

    def some_colour(self, colour: Sequence[float], spread: float) -> Floats:
        return np.asarray(colour) + self.rng.normal(0, spread, 3)


Painter = Callable[[Canvas], Floats]
Painters = Mapping[str, Painter]


def nearest_two(x: Floats, y: Floats, points: Floats) -> tuple[Floats, Floats]:
    """Distances (S, S) to the nearest and the second nearest of `points` (N, 2)."""
    distances = np.hypot(x[..., None] - points[:, 0], y[..., None] - points[:, 1])
    nearest = np.partition(distances, 1, axis=-1)
    return nearest[..., 0], nearest[..., 1]


def edge(distance: Floats, sharpness: float) -> Floats:
    """1 where `distance` is well above 0, 0 where it is well below, with a soft step in between."""
    return np.clip(distance * sharpness + 0.5, 0, 1)


def over(picture: Floats, colour: Floats, share: Floats) -> Floats:
    """Blend `colour`, (3,) or (S, S, 3), over the picture with opacity `share`."""
    return picture * (1 - share[..., None]) + colour * share[..., None]


def paint(painters: Painters, labels: Ints, rng: np.random.Generator) -> Images:
    """A picture for each label, (N, S, S, 3), from the painter of its class, with a little grain."""
    of_label = list(painters.values())
    pictures = []
    for label in labels:
        picture = of_label[label](Canvas(rng))
        pictures.append(to_bytes(picture + (rng.random(picture.shape) - 0.5) * GRAIN))
    return np.stack(pictures)


Share = Callable[[Canvas], Floats]


def _pace(canvas: Canvas) -> float:
    """A random number of periods per half picture."""
    return canvas.rng.uniform(2.5, 4.5)


def _striped(canvas: Canvas) -> Floats:
    return square_wave(canvas.a * _pace(canvas), 2)


def _dotted(canvas: Canvas) -> Floats:
    pace = _pace(canvas)
    return 1 - outside_dots(canvas.a * pace, canvas.b * pace, 0.3, 8)


def _checkered(canvas: Canvas) -> Floats:
    pace = _pace(canvas)
    return checks(canvas.a * pace, canvas.b * pace, 4)


def _zigzag(canvas: Canvas) -> Floats:
    pace = _pace(canvas)
    tooth = np.abs((canvas.b * pace * 0.7) % 1 - 0.5) * 2
    return square_wave(canvas.a * pace + 0.6 * tooth, 2)


def _woven(canvas: Canvas) -> Floats:
    pace = _pace(canvas)
    a, b = canvas.a * pace, canvas.b * pace
    on_top = (np.floor(a) + np.floor(b)) % 2 == 0
    return 0.5 + 0.5 * np.where(on_top, np.sin(4 * np.pi * b), np.sin(4 * np.pi * a))


def _cracked(canvas: Canvas) -> Floats:
    nearest, second = canvas.nearest_points(14)
    return np.clip((second - nearest) * 14, 0, 1)


def _bubbly(canvas: Canvas) -> Floats:
    nearest, _ = canvas.nearest_points(20)
    return np.clip((0.19 - nearest) * 16, 0, 1) * (1 - np.clip((0.13 - nearest) * 14, 0, 0.75))


def _swirly(canvas: Canvas) -> Floats:
    x, y = canvas.x - canvas.rng.uniform(-0.4, 0.4), canvas.y - canvas.rng.uniform(-0.4, 0.4)
    arms = canvas.rng.choice([-2, 2])
    return square_wave(np.hypot(x, y) * _pace(canvas) + np.arctan2(y, x) / (2 * np.pi) * arms, 1)


def _grid(canvas: Canvas) -> Floats:
    pace = _pace(canvas)
    lines = [np.abs((side * pace) % 1 - 0.5) for side in (canvas.a, canvas.b)]
    return edge(np.maximum(*lines) - 0.4, 12)


def _marbled(canvas: Canvas) -> Floats:
    return square_wave(canvas.a * _pace(canvas) * 0.6 + canvas.noise(5) * 2.2, 0.5)


def _honeycombed(canvas: Canvas) -> Floats:
    spacing = 1 / canvas.rng.uniform(2.2, 3.4)
    column, row = np.meshgrid(np.arange(-8, 9), np.arange(-9, 10))
    centres = np.stack([(column + row % 2 / 2).ravel(), (row * np.sqrt(3) / 2).ravel()], 1) * spacing
    nearest, second = nearest_two(canvas.a, canvas.b, centres)
    return edge(second - nearest - 0.22 * spacing, 16)


def _plain(canvas: Canvas) -> Floats:
    return np.zeros_like(canvas.x)


PATTERNS: dict[str, Share] = {
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
    "zigzag": _zigzag,
    "woven": _woven,
    "cracked": _cracked,
    "bubbly": _bubbly,
    "swirly": _swirly,
    "grid": _grid,
    "marbled": _marbled,
    "honeycombed": _honeycombed,
    "plain": _plain,
}


def _coloured(pattern: Share) -> Callable[[Canvas], Floats]:
    def painter(canvas: Canvas) -> Floats:
        ground, figure = canvas.rng.random(3), canvas.rng.random(3)
        if np.abs(ground - figure).sum() < 0.8:
            figure = 1 - ground
        flat = np.broadcast_to(ground, (*canvas.x.shape, 3))
        return over(flat, figure, pattern(canvas)) + (canvas.noise(6, 3) - 0.5) * 0.2

    return painter


TEXTURES: Painters = {name: _coloured(pattern) for name, pattern in PATTERNS.items()}


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
    """Distance (S, S) from a line across the tile, with bends of amplitude `bend`."""
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
    """Buildings on a grid of streets, with `pace` blocks per half tile."""
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


TILES: Painters = {
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
