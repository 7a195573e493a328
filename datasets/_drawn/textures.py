"""Textures: two colours mixed by a pattern that fills the frame. The first three names are fills that are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dassl_lite.datasets._drawn.canvas import Canvas, edge, nearest_two, over
from dassl_lite.datasets._drawn.fills import checks, outside_dots, square_wave
from dassl_lite.datasets._drawn.scene import Floats

Share = Callable[[Canvas], Floats]


def _pace(canvas: Canvas) -> float:
    """Periods per half picture."""
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


PAINTERS = {name: _coloured(pattern) for name, pattern in PATTERNS.items()}
