"""Digits: real handwritten digits, the 8 x 8 scans that come with scikit-learn (from UCI), enlarged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._drawn.render import PIXELS, Images, to_bytes, upsample
from dassl_lite.datasets._drawn.scene import Ints
from dassl_lite.datasets._drawn.suite import DrawnDataset

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ROWS = {"train": slice(0, 800), "val": slice(800, 1000), "test": slice(1000, None)}  # different writers


@DATASET_REGISTRY.register()
class Digits(DrawnDataset):
    """The demo model knows the words for the digits, but has only seen printed fonts."""

    dataset_dir = "digits"
    template = "a photo of the digit {}."

    def class_table(self) -> Sequence[tuple[str, str]]:
        return [(name, "") for name in NAMES]

    def pictures(self, split: str, rng: np.random.Generator) -> tuple[Images, Ints]:
        from sklearn.datasets import load_digits  # slow to import

        scans = load_digits()
        framed = np.pad(scans.images[ROWS[split]] / 16, ((0, 0), (1, 1), (1, 1)))
        enlarged = upsample(framed[..., None].astype(np.float32), PIXELS)
        return to_bytes(np.repeat(enlarged, 3, axis=-1)), scans.target[ROWS[split]]
