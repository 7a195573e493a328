"""Toy images and an encoder that counts, for the tests of the feature cache."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dassl_lite.data.feature_cache import FeatureSpec, FeatureStore

WIDTH = 4


def draw_images(folder: Path, count: int) -> list[str]:
    """Draw images of 6 x 6 pixels; the red value of the first pixel is the image's number."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        pixels[0, 0, 0] = number
        paths.append(str(folder / f"{number:03d}.png"))
        Image.fromarray(pixels).save(paths[-1])
    return paths


def plain(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def noisy(image: Image.Image) -> Tensor:
    """A transform that draws from every random generator that a transform may use."""
    import random

    return plain(image) + torch.rand(3, 1, 1) + random.random() + np.random.rand()


class CountingEncoder:
    """An encoder whose features depend only on their own input, not on the batch; records the inputs it has seen."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.seen: list[int] = []
        self.calls: list[int] = []

    def __call__(self, inputs: Tensor) -> Tensor:
        self.calls.append(len(inputs))
        self.seen += [round(float(red) * 255) for red in inputs[:, 0, 0, 0]]
        weights = torch.linspace(-1, 1, WIDTH * 3 * 36).reshape(WIDTH, 3, 6, 6)
        return (inputs[:, None] * weights).flatten(2).sum(-1).to(self.dtype)


@contextlib.contextmanager
def on_waiting(action: Callable[[], object]) -> Iterator[None]:
    """Call ``action`` whenever this process waits for the lock of a store."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("Waiting for process"):
                action()

    logger, handler = logging.getLogger("dassl_lite.data.feature_cache.lock"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def spec(**changes: Any) -> FeatureSpec:
    given: dict[str, Any] = {
        "backbone": "toy",
        "digest": "d1gest",
        "transform": plain,
        "transform_text": "plain",
        "views": 1,
        "seed": 1,
    }
    return FeatureSpec(**{**given, **changes})


def store(root: Path | None, commit_seconds: float = 5.0, **changes: Any) -> FeatureStore:
    return FeatureStore(spec(**changes), root, commit_seconds=commit_seconds)


def expected(paths: list[str], **changes: Any) -> Tensor:
    """The features that an in-memory store gives."""
    return store(None, **changes).fetch(paths, CountingEncoder()).tensor
