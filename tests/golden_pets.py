"""The folder of images that the reference's end-to-end runs were given (golden/e2e_*), drawn again by its rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def draw_pets(spec: dict[str, Any], root: Path) -> None:
    """Make ``<root>/oxford_pets`` by the rule in the golden file: a cell is half its class's colour, half noise."""
    folder = root / "oxford_pets"
    (folder / "images").mkdir(parents=True)
    names, seed, counter = spec["classnames"], spec["seed0"], 0
    prototypes = np.random.RandomState(seed - 1).randint(0, 256, (len(names), 4, 4, 3))
    for part in ("train", "val", "test"):
        for label, name in enumerate(names):
            for i in range(spec["n_per_class"][part]):
                noise = np.random.RandomState(seed + counter).randint(0, 256, (4, 4, 3))
                pixels = ((prototypes[label] + noise) // 2).astype(np.uint8).repeat(10, axis=0).repeat(9, axis=1)
                Image.fromarray(pixels).save(folder / "images" / f"{name}_{part}{i}.png")
                counter += 1
    (folder / "split_zhou_OxfordPets.json").write_text(json.dumps(spec["split"]))
