"""The examples as modules, and a folder of images for them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))  # as `python examples/plain_taskres.py` does

COLOURS = {"american_bulldog": (200, 60, 60), "Boeing 737-800": (60, 200, 60), "yo-yo": (60, 60, 200)}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``<root>/{train,test}/<class>/*.png``: noisy patches of other sizes than a model's; train has 5 of a class."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("examples")
    for part, count in {"train": 5, "test": 4}.items():
        for name, colour in COLOURS.items():
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(colour, 60, (40, 52 + i, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root
