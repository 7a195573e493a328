"""Signed distance fields of flat figures: negative inside, positive outside, in the figure's own unit.

A field maps points (P, 2), y upwards, to distances (P,). Figures are built from polygons and circles with `union`,
`minus` and `common`; these keep the sign exact and the distance exact outside a union and inside an intersection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Field = Callable[[Floats], Floats]
Point = tuple[float, float]


def polygon(corners: Sequence[Point] | Floats) -> Field:
    """Exact distance to a simple polygon given by its corners (N, 2) in order."""
    starts = np.asarray(corners, np.float64)
    ends = np.roll(starts, -1, axis=0)

    def field(points: Floats) -> Floats:
        nearest = np.full(len(points), np.inf)
        inside = np.zeros(len(points), bool)
        for start, end in zip(starts, ends, strict=True):
            nearest = np.minimum(nearest, _squared_distance(points, start, end))
            inside ^= _crosses(points, start, end)
        return np.where(inside, -1.0, 1.0) * np.sqrt(nearest)

    return field


def _squared_distance(points: Floats, start: Floats, end: Floats) -> Floats:
    """Squared distance (P,) of each point to the segment from `start` to `end`."""
    edge = end - start
    offset = points - start
    along = np.clip((offset @ edge) / max(float(edge @ edge), 1e-12), 0, 1)
    return ((offset - along[:, None] * edge) ** 2).sum(1)


def _crosses(points: Floats, start: Floats, end: Floats) -> npt.NDArray[np.bool_]:
    """Whether a ray from each point to the right crosses the segment (the even-odd rule's step)."""
    height = end[1] - start[1]
    if height == 0:
        return np.zeros(len(points), bool)
    straddles = (start[1] > points[:, 1]) != (end[1] > points[:, 1])
    crossing = (end[0] - start[0]) * (points[:, 1] - start[1]) / height + start[0]
    return straddles & (points[:, 0] < crossing)


def circle(x: float, y: float, radius: float) -> Field:
    return lambda points: np.hypot(points[:, 0] - x, points[:, 1] - y) - radius


def ellipse(x: float, y: float, half_width: float, half_height: float, corners: int = 40) -> Field:
    angles = _turns(corners)
    return polygon(np.stack([x + half_width * np.cos(angles), y + half_height * np.sin(angles)], 1))


def box(left: float, bottom: float, right: float, top: float) -> Field:
    return polygon([(left, bottom), (right, bottom), (right, top), (left, top)])


def regular(corners: int, radius: float, first: float = 90.0) -> Field:
    """A regular polygon; `first` is its first corner's angle in degrees."""
    angles = np.deg2rad(first) + _turns(corners)
    return polygon(radius * np.stack([np.cos(angles), np.sin(angles)], 1))


def star(points: int, outer: float, inner: float) -> Field:
    angles = np.pi / 2 + _turns(2 * points)
    radius = np.where(np.arange(2 * points) % 2 == 0, outer, inner)
    return polygon(np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1))


def curve(trace: Callable[[Floats], tuple[Floats, Floats]], corners: int = 60) -> Field:
    """A closed curve: `trace` maps angles in [0, 2 pi) to x and y."""
    return polygon(np.stack(trace(_turns(corners)), 1))


def union(*fields: Field) -> Field:
    return lambda points: np.min([field(points) for field in fields], axis=0)


def minus(field: Field, *holes: Field) -> Field:
    return lambda points: np.max([field(points), *(-hole(points) for hole in holes)], axis=0)


def common(first: Field, second: Field) -> Field:
    return lambda points: np.maximum(first(points), second(points))


def _turns(steps: int) -> Floats:
    return np.arange(steps) * (2 * np.pi / steps)
