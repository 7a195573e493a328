"""Images that the demo backbone can distinguish, in one folder per class, and a classifier fitted on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dassl_lite import FewShotClassifier

SHAPES = ("circle", "square", "triangle")
QUICK = {"epochs": 3, "options": {"DATASET.FEATURES.VIEWS": 2, "DATALOADER.NUM_WORKERS": 0}}
TASKRES = {"method": "TaskRes", **QUICK}


def drawn(shape: str, number: int) -> Image.Image:
    """A 64 x 64 image of a shape, whose position and colours depend on the number."""
    rng = np.random.default_rng(number)
    image = Image.new("RGB", (64, 64), tuple(rng.integers(180, 255, 3).tolist()))
    x, y, size = (int(value) for value in rng.integers((2, 2, 26), (16, 16, 44)))
    box, colour = (x, y, x + size, y + size), tuple(rng.integers(0, 140, 3).tolist())
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    else:
        draw.polygon([(x, y + size), (x + size, y + size), (x + size // 2, y)], fill=colour)
    return image


class ImageSet(NamedTuple):
    """Images in one folder per class, and the same as lists."""

    folder: Path
    paths: list[str]
    labels: list[str]


def written(folder: Path, per_class: int, start: int = 0) -> ImageSet:
    paths, labels = [], []
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True)
        for number in range(per_class):
            path = folder / shape / f"{number}.png"
            drawn(shape, start + number).save(path)
            paths.append(str(path))
            labels.append(shape)
    return ImageSet(folder, paths, labels)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Ten images of each of three classes."""
    return written(tmp_path_factory.mktemp("pictures") / "photos", 10)


@pytest.fixture(scope="session")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Four other images of each class."""
    return written(tmp_path_factory.mktemp("pictures") / "unseen", 4, start=100)


@pytest.fixture(scope="session")
def fitted(photos: ImageSet) -> Any:
    """A classifier fitted on the lists; tests must not modify it."""
    return FewShotClassifier(**TASKRES).fit(photos.paths, photos.labels)
