"""Scenes: what N pictures contain, before any pixel is drawn.

Lengths are in half picture widths, with y upwards; angles are in radians.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Rows = slice | npt.NDArray[np.integer] | npt.NDArray[np.bool_]

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.12),
    "green": (0.13, 0.62, 0.20),
    "blue": (0.12, 0.25, 0.85),
    "yellow": (0.95, 0.88, 0.15),
    "orange": (0.97, 0.53, 0.08),
    "purple": (0.50, 0.15, 0.65),
    "pink": (0.98, 0.55, 0.75),
    "brown": (0.45, 0.27, 0.12),
    "black": (0.05, 0.05, 0.05),
    "white": (0.97, 0.97, 0.97),
    "gray": (0.52, 0.52, 0.52),
    "cyan": (0.15, 0.82, 0.85),
}
COLOUR_NAMES = tuple(COLOURS)
PALETTE = np.array(list(COLOURS.values()), np.float32)

FILL_NAMES = ("solid", "striped", "dotted", "checkered", "hollow")
SOLID, STRIPED, DOTTED, CHECKERED, HOLLOW = range(5)

FLAT, GRADIENT, BLOTCHY = range(3)  # kinds of background
PLAIN, SKETCH, ART = range(3)  # styles of drawing

T = TypeVar("T", bound="_Table")


@dataclass
class _Table:
    """A record of arrays that share their first axis, one row per picture."""

    def take(self: T, rows: Rows) -> T:
        """The record of some rows: a view for a slice, otherwise a copy."""
        return type(self)(**{item.name: _pick(getattr(self, item.name), rows) for item in fields(self)})


def _pick(value: list[_Table] | npt.NDArray[Any], rows: Rows) -> list[_Table] | npt.NDArray[Any]:
    if isinstance(value, list):
        return [part.take(rows) for part in value]
    return value[rows]


@dataclass
class Layer(_Table):
    """One object in each of N pictures. Arrays are (N,), except colours, which are (N, 3) in [0, 1]."""

    present: Bools
    shape: Ints  # row in the table of distance fields
    fill: Ints  # index into FILL_NAMES
    colour: Floats
    second_colour: Floats  # of the background of stripes, dots and squares
    size: Floats  # half the object's extent
    x: Floats
    y: Floats
    angle: Floats  # anti-clockwise
    aspect: Floats  # width over height, relative to the tabulated shape
    shear: Floats  # shift of x per unit of y
    thicken: Floats  # growth of the outline, in the shape's own unit
    pattern_angle: Floats
    pattern_period: Floats  # in 1/64 of the picture's width


@dataclass
class Scene(_Table):
    """N pictures: their objects, from back to front, and everything around them. Arrays are (N,) or (N, 3)."""

    layers: list[Layer]
    background: Floats
    background_end: Floats  # the other end of a gradient or blotch
    background_kind: Ints
    background_angle: Floats
    grain: Floats  # standard deviation of the pixel noise
    wobble: Floats  # amplitude of the bends of the outline
    blur: Ints  # passes of a three-tap binomial filter
    barred: Bools  # whether two thin bars are in front
    style: Ints

    def __len__(self) -> int:
        return len(self.background)
