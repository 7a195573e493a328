"""One subject of `bench.py` per module: `NAME`, `add_parser(subparsers)` and `run(args)`; and what they share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def draw_photos(folder: Path, count: int, seed: int = 0) -> list[str]:
    """JPEG files of 500 x 375 pixels with about the detail of photographs; the paths. Makes the folder."""
    folder.mkdir(parents=True)
    paths = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        picture = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)) + rng.normal(0, 6, (375, 500, 1))
        paths.append(str(folder / f"{number}.jpg"))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths
