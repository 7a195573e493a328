"""Pictures that a tiny encoder tells apart: noise with a tint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("red", "green", "blue")


def draw_tints(
    root: Path, counts: Mapping[str, int], names: Sequence[str] = NAMES, *, side: int = 32, tint: int = 130
) -> Path:
    """Folders <part>/<class> of square pictures; the n-th class has more of the n-th colour.

    Args:
        counts: part -> pictures of each class.
        tint: what is added to a colour, 0 to 255; the rest of that range is noise.
    """
    stream = np.random.default_rng(0)
    for part, count in counts.items():
        for channel, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = stream.integers(0, 250 - tint, (side, side, 3), np.uint8)
                pixels[..., channel] += tint
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root
