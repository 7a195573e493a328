"""The doctor finds missing, empty and unreadable files without decoding or writing anything."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dassl_lite.config import get_cfg_default
from dassl_lite.data import DATASET_REGISTRY, FolderDataset
from dassl_lite.data.dataset import DatasetBase
from dassl_lite.data.datum import Datum
from dassl_lite.data.doctor import Report, examine
from dassl_lite.downloads.sources import File, Source
from dassl_lite.engine.plugins import load_plugins

CLASSES = ("cat", "dog", "emu")
PER_CLASS = {"train": 4, "val": 1, "test": 2}
SOURCE = {"ToyPets": Source("pets", (File("split.json"),), (12, 3, 6), 3)}


class ToyPets(FolderDataset):
    dataset_dir = "pets"
    image_dir = "images"
    split_file = "split.json"


class Plain(DatasetBase):
    """A dataset written as for Dassl."""

    def __init__(self, cfg: Any) -> None:
        items = [
            Datum(os.path.join(cfg.DATASET.ROOT, "pets/images/cat", f"train-{i}.jpg"), 0, 0, "cat") for i in (0, 9)
        ]
        super().__init__(train_x=items, test=items)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    load_plugins()
    for dataset in (ToyPets, Plain):
        monkeypatch.setitem(DATASET_REGISTRY._table, dataset.__name__, dataset)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """The folder of a small valid dataset; its image files have no image content."""
    folder = tmp_path / "pets"
    rows: dict[str, list] = {}
    for split, count in PER_CLASS.items():
        for label, name in enumerate(CLASSES):
            (folder / "images" / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (folder / "images" / name / f"{split}-{number}.jpg").write_bytes(b"x")
                rows.setdefault(split, []).append([f"{name}/{split}-{number}.jpg", label, name])
    (folder / "split.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., Report]:
    def check(name: str = "ToyPets", sources: dict[str, Source] = SOURCE) -> Report:
        cfg = get_cfg_default()
        cfg.DATASET.ROOT = str(tmp_path)
        return examine(name, cfg, sources)

    return check


def counts(report: Report) -> dict[str, tuple]:
    return {name: (p.expected, p.found, p.missing, p.unreadable) for name, p in report.parts.items()}


def everything(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_complete_dataset_passes_and_nothing_is_written(pets: Path, check: Callable[..., Report]) -> None:
    before = everything(pets)
    report = check()
    assert report.problems == []
    assert counts(report) == {"train": (12, 12, 0, 0), "val": (3, 3, 0, 0), "test": (6, 6, 0, 0)}
    assert (report.classes, report.split_file) == ("3 of 3", "present")
    assert everything(pets) == before
    assert [row[:4] for row in report.rows()][1:] == [["", "val", 3, 3], ["", "test", 6, 6]]


def test_missing_images_are_counted_and_named(pets: Path, check: Callable[..., Report]) -> None:
    for number in range(4):
        (pets / f"images/cat/train-{number}.jpg").unlink()
    (pets / "images/dog/test-1.jpg").unlink()
    report = check()
    assert counts(report)["train"] == (12, 8, 4, 0)
    assert counts(report)["test"] == (6, 5, 1, 0)
    assert len(report.problems) == 1
    assert report.problems[0].startswith("missing: 5 (")
    assert "cat/train-0.jpg" in report.problems[0]
    assert "..." in report.problems[0]


def test_a_class_without_images_is_named(pets: Path, check: Callable[..., Report]) -> None:
    shutil.rmtree(pets / "images/emu")
    report = check()
    assert report.classes == "2 of 3"
    assert "classes without images: 1 ('emu')" in report.problems


def test_empty_files_dangling_links_and_folders_are_not_images(pets: Path, check: Callable[..., Report]) -> None:
    (pets / "images/cat/train-0.jpg").write_bytes(b"")
    (pets / "images/cat/train-1.jpg").unlink()
    (pets / "images/cat/train-1.jpg").symlink_to("nowhere.jpg")
    (pets / "images/cat/train-2.jpg").unlink()
    (pets / "images/cat/train-2.jpg").mkdir()
    (pets / "images/cat/train-3.jpg").rename(pets / "real.jpg")
    (pets / "images/cat/train-3.jpg").symlink_to(pets / "real.jpg")
    report = check()
    assert counts(report)["train"] == (12, 9, 1, 2)
    assert sorted(problem.partition(":")[0] for problem in report.problems) == ["empty", "missing", "not a file"]


def test_files_without_permission_are_unreadable(
    pets: Path, check: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated, since root may read everything."""
    monkeypatch.setattr(os, "access", lambda path, mode: "cat/train" not in str(path))
    report = check()
    assert counts(report)["train"] == (12, 8, 0, 4)
    assert report.problems[0].startswith("no permission: 4 (")


def test_folders_that_cannot_be_listed_are_unreadable_and_the_others_are_still_checked(
    pets: Path, check: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refusing(folder: Any) -> Any:
        if str(folder).endswith("images/cat"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    next((pets / "images" / "dog").glob("train-*")).unlink()
    monkeypatch.setattr(os, "scandir", refusing)
    report = check()
    assert counts(report)["train"] == (12, 7, 1, 4)
    assert any(problem.startswith("no permission: ") for problem in report.problems)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_unreadable(pets: Path, check: Callable[..., Report]) -> None:
    (pets / "images/cat").chmod(0)
    try:
        assert counts(check())["train"] == (12, 8, 0, 4)
    finally:
        (pets / "images/cat").chmod(0o755)


def test_a_split_that_differs_from_the_published_size_is_reported(pets: Path, check: Callable[..., Report]) -> None:
    report = check(sources={"ToyPets": Source("pets", (), (13, 3, 6), 4)})
    assert "train has 12 images, but should have 13" in report.problems
    assert "4 classes expected, found 3" in report.problems


def test_a_missing_official_split_file_is_a_problem(pets: Path, check: Callable[..., Report]) -> None:
    (pets / "split.json").unlink()
    report = check()
    assert report.split_file == "missing"
    assert report.problems[0] == f"no split file '{pets / 'split.json'}'"
    assert counts(report)["train"] == (12, None, None, None)


def test_a_malformed_split_file_is_reported(pets: Path, check: Callable[..., Report]) -> None:
    (pets / "split.json").write_text("{")
    assert "as JSON" in check().problems[0]


def test_a_missing_dataset_is_reported(check: Callable[..., Report], tmp_path: Path) -> None:
    report = check()
    assert report.problems == [f"there is no folder '{tmp_path / 'pets/images'}'"]
    assert counts(report)["train"] == (12, 0, 12, 0)


def test_a_dataset_in_another_layout_is_also_checked(pets: Path, check: Callable[..., Report]) -> None:
    report = check("Plain")
    assert counts(report) == {"train": (2, 1, 1, 0), "test": (2, 1, 1, 0)}


@pytest.mark.slow
def test_user_images_are_checked_before_and_after_they_are_split(pets: Path, tmp_path: Path) -> None:
    cfg = get_cfg_default()
    cfg.DATASET.ROOT = str(pets / "images")
    before = everything(pets)
    report = examine("ImageFolder", cfg)
    assert report.problems == []
    assert (report.split_file, report.classes) == ("none yet", "3 of 3")
    assert sum(part.found or 0 for part in report.parts.values()) == 21
    assert everything(pets) == before
    DATASET_REGISTRY.get("ImageFolder")(cfg)
    (pets / "images/cat/train-0.jpg").write_bytes(b"")
    report = examine("ImageFolder", cfg)
    assert report.split_file == "in the cache"
    assert [problem.partition(":")[0] for problem in report.problems] == ["empty"]


@pytest.mark.slow
def test_a_real_dataset_in_the_real_layout_is_checked(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "caltech-101"
    shutil.copytree(shared / "data/caltech101", folder)
    shutil.copy(folder / "split_reduced_Caltech101.json", folder / "split_zhou_Caltech101.json")
    cfg = get_cfg_default()
    cfg.DATASET.ROOT = str(tmp_path)
    report = examine("Caltech101", cfg, sources={})
    assert report.problems == []
    assert (report.classes, report.split_file) == ("100 of 100", "present")
    full = examine("Caltech101", cfg)
    assert "but should have 4,128" in full.problems[0]
    shutil.copy(shared / "data/splits/split_zhou_Caltech101.json", folder)
    official = examine("Caltech101", cfg)
    assert official.parts["train"].expected == 4128
    assert official.parts["train"].found == 800
    assert official.parts["train"].missing == 4128 - 800
    assert official.problems[0].startswith("missing: ")


def test_each_folder_is_listed_once_and_no_file_is_opened(
    pets: Path, check: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So checking a hundred thousand files takes seconds, even on a network drive."""
    listed, opened = Counter[str](), []
    scandir, real_open = os.scandir, io.open

    def counting_scandir(path: str) -> Any:
        listed[str(path)] += 1
        return scandir(path)

    def recording_open(path: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(str(path))
        return real_open(path, *arguments, **options)

    monkeypatch.setattr(os, "scandir", counting_scandir)
    monkeypatch.setattr(io, "open", recording_open)  # called by pathlib
    monkeypatch.setattr("builtins.open", recording_open)
    report = check()
    assert report.problems == []
    assert listed == {str(pets / "images" / name): 1 for name in CLASSES}
    assert [path for path in opened if "images" in path] == []
    assert str(pets / "split.json") in opened
