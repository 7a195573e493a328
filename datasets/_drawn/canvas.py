"""A square of ground, seen from above and turned at random, that full-frame pictures are painted on.

Shares and fields are (S, S), colours (3,), pictures (S, S, 3), all in [0, 1] but for coordinates in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dassl_lite.datasets._drawn.render import PIXELS, Images, pixel_grid, smooth_noise, to_bytes
from dassl_lite.datasets._drawn.scene import Floats, Ints

GRAIN = 0.08  # width of the even pixel noise


class Canvas:
    """Coordinates for one picture: `x`, `y` upright, `a`, `b` turned by a random angle; and its randomness."""

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
    """1 where `distance` is well above 0, 0 well below, with a soft step between."""
    return np.clip(distance * sharpness + 0.5, 0, 1)


def over(picture: Floats, colour: Floats, share: Floats) -> Floats:
    """`colour` ((3,) or (S, S, 3)) laid over the picture where `share` says."""
    return picture * (1 - share[..., None]) + colour * share[..., None]


def paint(painters: Painters, labels: Ints, rng: np.random.Generator) -> Images:
    """One picture (N, S, S, 3) per label, each by its class's painter, with a little grain."""
    of_label = list(painters.values())
    pictures = []
    for label in labels:
        picture = of_label[label](Canvas(rng))
        pictures.append(to_bytes(picture + (rng.random(picture.shape) - 0.5) * GRAIN))
    return np.stack(pictures)
