"""CoOp's real split files: sizes, classes and their order; and the same sizes from the publishers' files."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from field_layouts import Rows, found, load, touch, write_cars, write_flowers, write_pets, write_ucf

from dassl_lite.engine.plugins import load_plugins

# Images per split, classes, first and last class; images of the first class per split.
FACTS: dict[str, tuple[tuple[int, int, int], int, tuple[str, str], tuple[int, int, int]]] = {
    "Caltech101": ((4128, 1649, 2465), 100, ("face", "yin_yang"), (218, 87, 130)),
    "OxfordPets": ((2944, 736, 3669), 37, ("abyssinian", "yorkshire_terrier"), (80, 20, 98)),
    "DescribableTextures": ((2820, 1128, 1692), 47, ("banded", "zigzagged"), (60, 24, 36)),
    "EuroSAT": ((13500, 5400, 8100), 10, ("Annual Crop Land", "Sea or Lake"), (1500, 600, 900)),
    "OxfordFlowers": ((4093, 1633, 2463), 102, ("pink primrose", "blackberry lily"), (20, 8, 12)),
    "StanfordCars": (
        (6509, 1635, 8041),
        196,
        ("2000 AM General Hummer SUV", "2012 smart fortwo Convertible"),
        (36, 9, 44),
    ),
    "UCF101": ((7639, 1898, 3783), 101, ("Apply_Eye_Makeup", "Yo_Yo"), (81, 20, 44)),
}
IMAGE_DIRS = {
    "Caltech101": "caltech-101/101_ObjectCategories",
    "OxfordPets": "oxford_pets/images",
    "DescribableTextures": "dtd/images",
    "EuroSAT": "eurosat/2750",
    "OxfordFlowers": "oxford_flowers/jpg",
    "StanfordCars": "stanford_cars",
    "UCF101": "ucf101/UCF-101-midframes",
}


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    load_plugins()


def real_rows(shared: Path, name: str) -> Rows:
    content = json.loads((shared / "data" / "splits" / f"split_zhou_{name}.json").read_text())
    return {part: [tuple(row) for row in rows] for part, rows in content.items()}


def class_sizes(rows: Rows) -> dict[str, Counter[tuple[int, str]]]:
    return {part: Counter(row[1:] for row in items) for part, items in rows.items()}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("name", FACTS)
def test_each_real_split_is_read_as_published(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("dassl_lite.data.splits.find_missing", lambda _: [])  # the images are not at hand
    folder = tmp_path / IMAGE_DIRS[name]
    folder.mkdir(parents=True)
    shutil.copy(shared / "data" / "splits" / f"split_zhou_{name}.json", tmp_path / IMAGE_DIRS[name].partition("/")[0])
    dataset, rows = load(name, tmp_path), real_rows(shared, name)
    sizes, num_classes, ends, first_class = FACTS[name]
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == sizes
    assert dataset.num_classes == len(dataset.classnames) == num_classes
    assert (dataset.classnames[0], dataset.classnames[-1]) == ends
    assert tuple(sum(row[1] == 0 for row in rows[part]) for part in rows) == first_class
    assert found(dataset) == rows
    draw = load(name, tmp_path, NUM_SHOTS=16)
    assert set(Counter(item.label for item in draw.val).values()) == {4}
    assert max(Counter(item.label for item in draw.train_x).values()) == 16


def write_as_folders(root: Path, name: str, rows: Rows) -> None:
    touch(root / IMAGE_DIRS[name], [row[0] for items in rows.values() for row in items])


def write_as_lists(writer: Callable[..., Any]) -> Callable[[Path, str, Rows], None]:
    return lambda root, _, rows: writer(root, rows["train"] + rows["val"], rows["test"])


def write_as_flowers(root: Path, _: str, rows: Rows) -> None:
    write_flowers(root, sorted(row for items in rows.values() for row in items))


PUBLISHED: dict[str, Callable[[Path, str, Rows], None]] = {
    "Caltech101": write_as_folders,
    "OxfordPets": write_as_lists(write_pets),
    "DescribableTextures": write_as_folders,
    "EuroSAT": write_as_folders,
    "OxfordFlowers": write_as_flowers,
    "StanfordCars": write_as_lists(write_cars),
    "UCF101": write_as_lists(write_ucf),
}


SLOW = ("Caltech101", "EuroSAT", "StanfordCars")


def published() -> list[Any]:
    """Dataset names; those that need thousands of files on disk to be listed are marked slow."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in PUBLISHED]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("name", published())
def test_a_split_of_the_real_file_names_has_the_published_classes_and_sizes(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if PUBLISHED[name] is not write_as_folders:
        monkeypatch.setattr("field_layouts.touch", lambda folder, _: folder.mkdir(parents=True))
        monkeypatch.setattr("dassl_lite.data.splits.find_missing", lambda _: [])
    rows = real_rows(shared, name)
    PUBLISHED[name](tmp_path, name, rows)
    split = found(load(name, tmp_path))
    assert class_sizes(split) == class_sizes(rows)
    assert Counter(chain(*split.values())) == Counter(chain(*rows.values()))
    if PUBLISHED[name] not in (write_as_folders, write_as_flowers):
        assert split["test"] == rows["test"]  # published as is


@pytest.mark.slow
def test_real_textures_load(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "dtd").mkdir()
    source = shared / "data" / "dtd"
    (tmp_path / "dtd" / "images").symlink_to(source / "images")
    shutil.copy(
        source / "split_reduced_DescribableTextures.json", tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
    )
    dataset = load("DescribableTextures", tmp_path, NUM_SHOTS=4)
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == (40, 40, 160)
    real = {row[1:] for row in real_rows(shared, "DescribableTextures")["train"]}
    assert list(enumerate(dataset.classnames)) == sorted(real)[:10]
