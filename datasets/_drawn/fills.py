"""Patterns inside an object and the pencil that draws a sketch. Distances are in pixels; arrays are (n, S, S)."""

from __future__ import annotations

import numpy as np

from dassl_lite.datasets._drawn.scene import CHECKERED, DOTTED, HOLLOW, SOLID, STRIPED, Floats, Ints


def square_wave(cycles: Floats, sharpness: float) -> Floats:
    """A square wave in [0, 1] of period 1 with softened flanks."""
    return np.clip(np.sin(2 * np.pi * cycles) * sharpness + 0.5, 0, 1)


def checks(a: Floats, b: Floats, sharpness: float) -> Floats:
    """A soft chequerboard in [0, 1] with squares of side 1."""
    return np.clip(np.sin(np.pi * a) * np.sin(np.pi * b) * sharpness + 0.5, 0, 1)


def outside_dots(a: Floats, b: Floats, radius: float, sharpness: Floats | float) -> Floats:
    """0 inside dots that stand on the integer grid, 1 outside."""
    distance = np.hypot(a - np.round(a), b - np.round(b))
    return np.clip((distance - radius) * sharpness + 0.5, 0, 1)


def pattern(fill: Ints, x: Floats, y: Floats, angle: Floats, period: Floats) -> Floats:
    """Share of the first colour at each pixel (n, S, S); `x`, `y` in pixels from the object's centre, others (n,)."""
    share = np.ones_like(x)
    for kind in (STRIPED, DOTTED, CHECKERED):
        rows = np.flatnonzero(fill == kind)
        if not len(rows):
            continue
        step = period[rows, None, None]
        cosine, sine = np.cos(angle[rows, None, None]), np.sin(angle[rows, None, None])
        a = (x[rows] * cosine + y[rows] * sine) / step
        b = (y[rows] * cosine - x[rows] * sine) / step
        if kind == STRIPED:
            share[rows] = square_wave(a, 1.6)
        elif kind == DOTTED:
            share[rows] = outside_dots(a, b, 0.29, step)
        else:
            share[rows] = checks(a, b, 2.5)
    return share


def coverage(fill: Ints, distance: Floats, line: Floats) -> Floats:
    """How much of each pixel the object covers; a hollow one only along its edge, `line` (n,) pixels wide."""
    covered = np.clip(0.5 - distance, 0, 1)
    hollow = np.flatnonzero(fill == HOLLOW)
    half = line[hollow, None, None] / 2
    covered[hollow] = np.clip(0.5 + half - np.abs(distance[hollow] + half), 0, 1)
    return covered


def pencil(fill: Ints, distance: Floats, share: Floats, line: Floats) -> Floats:
    """Ink on paper for a sketch: an outline, then shading for solid, the pattern, or a second line for hollow."""
    fill = fill[:, None, None]
    outline = np.clip(1.35 - np.abs(distance), 0, 1)
    shade = np.where(fill == SOLID, 0.35, (1 - share) * 0.75) * np.clip(0.5 - distance, 0, 1)
    second_line = np.clip(1.2 - np.abs(distance + line[:, None, None] + 1.2), 0, 1)
    return np.maximum(outline, np.where(fill == HOLLOW, second_line, shade))
