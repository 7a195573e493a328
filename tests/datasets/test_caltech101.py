"""Caltech101 in the field's layout, with real photos from the reduced copy if it is available."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dassl_lite.config import get_cfg_default
from dassl_lite.data import DataManager, build_dataset
from dassl_lite.datasets import caltech101  # noqa: F401  registers
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.seeding import set_random_seed


def config(root: Path, **dataset: Any) -> Any:
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "Caltech101", str(root)
    for key, value in dataset.items():
        cfg.DATASET[key] = value
    return cfg


@pytest.fixture
def root(shared: Path, tmp_path: Path) -> Path:
    """The reduced copy in the standard layout."""
    source = shared / "data" / "caltech101"
    folder = tmp_path / "caltech-101"
    folder.mkdir()
    os.symlink(source / "101_ObjectCategories", folder / "101_ObjectCategories")
    shutil.copy(source / "split_reduced_Caltech101.json", folder / "split_zhou_Caltech101.json")
    return tmp_path


def test_a_reduced_copy_is_read(root: Path) -> None:
    dataset = build_dataset(config(root))
    assert (dataset.num_classes, len(dataset.train_x), len(dataset.val), len(dataset.test)) == (100, 800, 200, 600)
    assert dataset.classnames[:3] == ["face", "leopard", "motorbike"]
    assert dataset.template == "a photo of a {}."


def test_the_classes_equal_those_of_coops_split(shared: Path, root: Path) -> None:
    split = json.loads((shared / "data" / "splits" / "split_zhou_Caltech101.json").read_text())
    names = {label: name for _, label, name in split["train"]}
    assert build_dataset(config(root)).lab2cname == names


def test_base_and_new_are_the_two_halves_of_the_classes(root: Path) -> None:
    set_random_seed(1)
    base, new = (build_dataset(config(root, SUBSAMPLE_CLASSES=which, NUM_SHOTS=4)) for which in ("base", "new"))
    assert (base.num_classes, len(base.train_x), len(base.test)) == (50, 200, 300)
    assert not set(base.classnames) & set(new.classnames)
    assert new.fewshot_digest == base.fewshot_digest  # both come from one draw


@pytest.mark.slow
def test_photos_become_batches(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = config(root, NUM_SHOTS=1)
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (32, 32), "bicubic"
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = [0.5] * 3, [0.5] * 3
    cfg.DATALOADER.NUM_WORKERS = 1
    with caplog.at_level(logging.INFO):
        manager = DataManager(cfg)
    batch = next(iter(manager.train_loader_x))
    assert batch["img"].shape == (32, 3, 32, 32)
    assert "# classes  100" in caplog.text


def lay_out_raw(root: Path) -> None:
    """Lay out folders as published by Caltech, without a split; a split does not need real images."""
    for name in ("BACKGROUND_Google", "Faces", "Faces_easy", "ant", "airplanes"):
        folder = root / "caltech-101" / "101_ObjectCategories" / name
        folder.mkdir(parents=True)
        for i in range(10):
            (folder / f"image_{i:04}.jpg").touch()


def test_a_split_is_made_and_saved(tmp_path: Path) -> None:
    lay_out_raw(tmp_path)
    set_random_seed(1)
    dataset = build_dataset(config(tmp_path))
    assert dataset.classnames == ["face", "airplane", "ant"]  # in folder order
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == (15, 6, 9)
    assert (tmp_path / "caltech-101" / "split_zhou_Caltech101.json").is_file()
    assert build_dataset(config(tmp_path)).test == dataset.test  # with a different random state


def test_a_missing_dataset_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder '.*101_ObjectCategories'; get the dataset from https"):
        build_dataset(config(tmp_path))
