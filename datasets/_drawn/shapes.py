"""The shapes, each about two units wide, and the table of their distance fields that the renderer uses.

A signed distance field maps points (P, 2), with y upwards, to distances (P,), negative inside a shape and positive
outside, in the shape's own unit. Shapes are built from polygons and circles with `union`, `minus` and `common`; these
keep the sign exact everywhere, and the distance exact outside a union and inside an intersection.

The demo model has seen and read about the shapes in `SEEN` during pre-training, but not those in `UNSEEN`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from dassl_lite.datasets._drawn.scene import Floats

Field = Callable[[Floats], Floats]
Point = tuple[float, float]


def polygon(corners: Sequence[Point] | Floats) -> Field:
    """Exact distance to a simple polygon with these corners (N, 2), in either direction."""
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
    """Whether a ray from each point to the right crosses the segment, for the even-odd rule."""
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
    """A regular polygon; `first` is the angle of its first corner in degrees."""
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


TABLE_SIZE = 96  # samples along each side of a tabulated field
TABLE_REACH = 1.5  # a tabulated field covers [-1.5, 1.5] in x and y


def _heart(t: Floats) -> tuple[Floats, Floats]:
    height = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return 16 * np.sin(t) ** 3 / 17, (height + 2.5) / 16


def _drop(t: Floats) -> tuple[Floats, Floats]:
    return 0.79 * np.sin(t) * np.sin(t / 2), np.cos(t)


def _cog(t: Floats) -> tuple[Floats, Floats]:
    radius = np.where(np.sin(8 * t) > 0, 1.0, 0.72)
    return radius * np.cos(t), radius * np.sin(t)


def _petals(count: int, distance: float, radius: float) -> list[Field]:
    angles = np.pi / 2 + np.arange(count) * (2 * np.pi / count)
    return [circle(distance * np.cos(a), distance * np.sin(a), radius) for a in angles]


_HOUSE = [(0, 1.0), (-1.0, 0.2), (-0.7, 0.2), (-0.7, -0.85), (0.7, -0.85), (0.7, 0.2), (1.0, 0.2)]
_ARROW = [(0, 1.0), (-0.8, 0.1), (-0.27, 0.1), (-0.27, -0.95), (0.27, -0.95), (0.27, 0.1), (0.8, 0.1)]
_BOLT = [(0.3, 1.05), (-0.75, -0.15), (-0.1, -0.15), (-0.4, -1.05), (0.75, 0.25), (0.1, 0.25), (0.65, 1.05)]
_BOTTLE = [(-0.45, -1.05), (0.45, -1.05), (0.45, 0.3), (0.17, 0.6), (0.17, 1.05), (-0.17, 1.05), (-0.17, 0.6)]
_BELL = [(-0.85, -0.6), (-0.55, -0.25), (-0.5, 0.35), (-0.25, 0.8)]
_BELL += [(-x, y) for x, y in reversed(_BELL)]
_HAMMER_HEAD = [(0.14, 0.4), (0.45, 0.42), (0.95, 0.1), (0.75, 0.65), (0.4, 0.95), (-0.75, 0.95), (-0.75, 0.4)]

SEEN: dict[str, Field] = {
    "circle": circle(0, 0, 0.88),
    "square": box(-0.75, -0.75, 0.75, 0.75),
    "triangle": polygon([(0, 0.95), (-0.95, -0.7), (0.95, -0.7)]),
    "star": star(5, 1.05, 0.45),
    "cross": union(box(-0.32, -0.95, 0.32, 0.95), box(-0.95, -0.32, 0.95, 0.32)),
    "ring": minus(circle(0, 0, 0.98), circle(0, 0, 0.4)),
    "heart": curve(_heart),
    "arrow": polygon(_ARROW),
    "moon": minus(circle(-0.1, 0, 0.98), circle(0.45, 0.15, 0.78)),
    "diamond": polygon([(0, 1.05), (-0.7, 0), (0, -1.05), (0.7, 0)]),
    "hexagon": regular(6, 0.98, first=0),
    "drop": curve(_drop),
    "bolt": polygon(_BOLT),
    "flower": union(circle(0, 0, 0.5), *_petals(5, 0.6, 0.4)),
    "house": polygon(_HOUSE),
    "cloud": union(
        circle(-0.5, -0.15, 0.45), circle(0.5, -0.15, 0.45), circle(0, 0.2, 0.58), box(-0.5, -0.6, 0.5, 0.1)
    ),
    "leaf": common(circle(-0.65, 0, 1.15), circle(0.65, 0, 1.15)),
    "hammer": polygon([(-0.14, -1.05), (0.14, -1.05), *_HAMMER_HEAD, (-0.14, 0.4)]),
    "bottle": polygon([*_BOTTLE, (-0.45, 0.3)]),
    "boat": union(
        polygon([(-1.0, -0.25), (-0.6, -0.85), (0.6, -0.85), (1.0, -0.25)]),
        polygon([(0.05, 1.0), (0.05, -0.1), (0.8, -0.1)]),
        polygon([(-0.05, 0.8), (-0.05, -0.1), (-0.6, -0.1)]),
    ),
}

UNSEEN: dict[str, Field] = {
    "key": union(
        minus(circle(0, 0.55, 0.48), circle(0, 0.55, 0.2)),
        box(-0.14, -1.0, 0.14, 0.22),
        box(0.0, -0.98, 0.5, -0.75),
        box(0.0, -0.6, 0.4, -0.38),
    ),
    "gear": minus(curve(_cog, 160), circle(0, 0, 0.33)),
    "crown": polygon([(-0.9, -0.7), (-1.0, 0.6), (-0.45, 0.0), (0, 0.85), (0.45, 0.0), (1.0, 0.6), (0.9, -0.7)]),
    "hourglass": polygon([(-0.8, 1.0), (-0.12, 0), (-0.8, -1.0), (0.8, -1.0), (0.12, 0), (0.8, 1.0)]),
    "fish": union(ellipse(0.2, 0, 0.8, 0.5), polygon([(-0.3, 0), (-1.05, 0.6), (-1.05, -0.6)])),
    "mushroom": union(common(ellipse(0, 0.1, 1.0, 0.85), box(-1.1, 0.05, 1.1, 1.1)), box(-0.28, -0.9, 0.28, 0.4)),
    "pine": union(
        polygon([(0, 1.05), (-0.55, 0.3), (0.55, 0.3)]),
        polygon([(0, 0.75), (-0.75, -0.2), (0.75, -0.2)]),
        polygon([(0, 0.3), (-0.9, -0.7), (0.9, -0.7)]),
        box(-0.2, -1.05, 0.2, -0.5),
    ),
    "mug": union(box(-0.8, -0.8, 0.45, 0.8), minus(circle(0.45, 0, 0.55), circle(0.45, 0, 0.3))),
    "bell": union(
        polygon(_BELL),
        circle(0, -0.72, 0.25),
        circle(0, 0.86, 0.18),
    ),
    "umbrella": union(
        common(circle(0, -0.05, 1.0), box(-1.1, 0.0, 1.1, 1.1)),
        box(-0.1, -0.95, 0.1, 0.3),
        box(-0.1, -1.02, 0.4, -0.82),
    ),
    "bone": union(box(-0.6, -0.18, 0.6, 0.18), *[circle(x, y, 0.3) for x in (-0.68, 0.68) for y in (-0.24, 0.24)]),
    "ladder": union(
        box(-0.62, -1.05, -0.36, 1.05),
        box(0.36, -1.05, 0.62, 1.05),
        *[box(-0.45, y - 0.12, 0.45, y + 0.12) for y in (-0.7, -0.23, 0.23, 0.7)],
    ),
}

SEEN_NAMES = tuple(SEEN)
UNSEEN_NAMES = tuple(UNSEEN)
SHAPE_NAMES = SEEN_NAMES + UNSEEN_NAMES


@functools.lru_cache(maxsize=1)
def shape_table() -> npt.NDArray[np.float32]:
    """All fields sampled on a grid, (len(SHAPE_NAMES), TABLE_SIZE, TABLE_SIZE), from the lowest row up."""
    axis = np.linspace(-TABLE_REACH, TABLE_REACH, TABLE_SIZE)
    points = np.stack(np.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    fields = [*SEEN.values(), *UNSEEN.values()]
    return np.stack([field(points).reshape(TABLE_SIZE, TABLE_SIZE) for field in fields]).astype(np.float32)
