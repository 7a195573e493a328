"""ImageFolder: a user's own images, split or not, with other files among them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dassl_lite.config import get_cfg_default
from dassl_lite.data import build_dataset
from dassl_lite.datasets import image_folder  # noqa: F401  registers
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.seeding import set_random_seed


def fill(folder: Path, n: int = 10, ending: str = "png") -> None:
    folder.mkdir(parents=True)
    for i in range(n):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i}.{ending}")


def load(root: Path, **dataset: Any) -> Any:
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "ImageFolder", str(root)
    for key, value in dataset.items():
        cfg.DATASET[key] = value
    return build_dataset(cfg)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("white shark", "ant", "n01440764"):
        fill(tmp_path / "mine" / name)
    return tmp_path / "mine"


def sizes(dataset: Any) -> tuple[int, int, int]:
    return len(dataset.train_x), len(dataset.val), len(dataset.test)


def test_class_folders_are_split_by_class(root: Path) -> None:
    dataset = load(root)
    assert sizes(dataset) == (15, 6, 9)
    assert dataset.classnames == ["ant", "tench", "white shark"]  # a wnid is called as ImageNet calls it
    assert dataset.classes.ids == ("", "n01440764", "")


def test_nothing_is_written_into_the_folder_unless_asked(root: Path) -> None:
    first = load(root, NUM_SHOTS=2)
    assert not [path for path in root.iterdir() if path.is_file() or path.name == "split_fewshot"]
    asked = load(root, NUM_SHOTS=1, SPLITS_IN="dataset")
    assert (root / "split_fewshot" / "shot_1-seed_1.json").is_file()
    assert asked.test == load(root, NUM_SHOTS=2).test == first.test


def test_files_that_lie_in_the_folder_are_used(root: Path) -> None:
    kept = load(root, NUM_SHOTS=2, SPLITS_IN="dataset")
    assert (root / "split_ImageFolder.json").is_file()
    set_random_seed(9)
    assert load(root, NUM_SHOTS=2).train_x == kept.train_x


def test_the_split_does_not_depend_on_the_seed_of_the_first_run(root: Path) -> None:
    splits = []
    for seed in (1, 2):
        set_random_seed(seed)
        splits.append([item.impath for item in load(root, SPLITS_IN="dataset").test])
        (root / "split_ImageFolder.json").unlink()
    assert splits[0] == splits[1]


def test_files_saved_by_a_run_are_ignored_by_the_next(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        first = load(root, NUM_SHOTS=2)
        again = load(root, NUM_SHOTS=2)
    assert sizes(again) == (6, 6, 9)
    assert again.train_x == first.train_x
    assert "Ignored" not in caplog.text
    assert "Skipped" not in caplog.text


def test_images_added_or_removed_after_the_split_are_reported(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = load(root).test[0].impath
    Image.new("RGB", (4, 4)).save(root / "ant" / "new.png")
    with caplog.at_level(logging.WARNING):
        assert sizes(load(root)) == (15, 6, 9)
    assert "Ignored 1 image added after the split" in caplog.text
    Path(gone).unlink()
    with pytest.raises(UserError, match=r"missing 1 of 30 images: .* or delete .*_ImageFolder\.json to split again"):
        load(root)


def test_a_class_added_after_the_split_is_reported(root: Path) -> None:
    load(root)
    fill(root / "bee")
    with pytest.raises(UserError, match="no training image has label 1"):
        load(root)


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_given_split_folders_are_used(tmp_path: Path, val: str) -> None:
    for part, n in (("train", 5), (val, 2), ("test", 3)):
        for name in ("b", "a"):
            fill(tmp_path / part / name, n)
    dataset = load(tmp_path)
    assert sizes(dataset) == (10, 4, 6)
    assert dataset.classnames == ["a", "b"]
    assert not (tmp_path / "split_ImageFolder.json").exists()
    assert sizes(load(tmp_path, NUM_SHOTS=1)) == (2, 2, 6)
    assert sizes(load(tmp_path, NUM_SHOTS=1)) == (2, 2, 6)  # the draw's folder is no part


def test_without_a_test_folder_val_is_the_test_set(tmp_path: Path) -> None:
    for part in ("train", "val"):
        fill(tmp_path / part / "a", 3)
    assert sizes(load(tmp_path)) == (3, 0, 3)


def test_a_class_called_train_stays_a_class(tmp_path: Path) -> None:
    for name in ("train", "bus"):
        fill(tmp_path / name)
    assert load(tmp_path).classnames == ["bus", "train"]


def test_split_folders_with_unknown_classes_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "a", 3)
    fill(tmp_path / "train" / "b", 3)
    fill(tmp_path / "test" / "a", 3)
    assert load(tmp_path).num_classes == 2
    fill(tmp_path / "test" / "c", 3)
    with pytest.raises(UserError, match=r"has classes that .*train' lacks: c"):
        load(tmp_path)


def test_files_that_are_no_images_are_skipped_and_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in (".hidden.png", "notes.txt", "Thumbs.db", "no_ending"):
        (root / "ant" / name).touch()
    (root / "ant" / "deeper").mkdir()
    (root / ".git").mkdir()
    Image.new("RGB", (4, 4)).save(root / "ant" / "UPPER.JPG")
    with caplog.at_level(logging.INFO):
        dataset = load(root)
    assert sum(sizes(dataset)) == 31
    assert f"Skipped entries under '{root}' that are not images: 5" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        {"ant": "garden ant", "n01440764": {"name": "tench", "id": "n01440764"}},
        {"ant": "garden ant", "n01440764": "tench"},
        ["garden ant", "tench", "white shark"],
    ],
)
def test_class_names_come_from_classnames_json(root: Path, names: Any) -> None:
    (root / "classnames.json").write_text(json.dumps(names))
    dataset = load(root)
    assert dataset.classnames == ["garden ant", "tench", "white shark"]
    assert dataset.classes.ids == ("", "n01440764", "")
    (root / "classnames.json").write_text(json.dumps({"ant": "F-16A/B"}))
    assert load(root).classnames[0] == "F-16A/B"  # the kept split does not hold the old name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"aunt": "x"}', r"unknown class folder .* 'aunt'\. Did you mean 'ant'"),
        ('["x"]', "lists 1 class names, but there are 3"),
        ('{"ant": 3}', "entry of 'ant' should be a name"),
        ("3", "should contain an object"),
        ("{", "cannot read .* as JSON"),
    ],
)
def test_invalid_class_names_are_refused(root: Path, text: str, message: str) -> None:
    (root / "classnames.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load(root)


def test_empty_and_tiny_classes_are_refused(root: Path, tmp_path: Path) -> None:
    (root / "empty").mkdir()
    with pytest.raises(UserError, match=r"class folder '.*empty' contains no images"):
        load(root)
    (root / "empty").rmdir()
    fill(root / "tiny", 2)
    with pytest.raises(UserError, match="class 'tiny' has 2 images, too few for train, val and test"):
        load(root)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="contains no class folders"):
        load(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"there is no folder '.*absent'.*should be the dataset's own folder"):
        load(tmp_path / "absent")
    with pytest.raises(UserError, match="needs --root"):
        load(Path(), ROOT="")


def test_a_folder_name_that_is_not_utf8_is_accepted(root: Path) -> None:
    fill(root / "caf\udce9")  # a byte that is not UTF-8, as Python holds it
    dataset = load(root, NUM_SHOTS=1)
    assert "caf\ufffd" in dataset.classnames
    assert load(root, NUM_SHOTS=1).train_x == dataset.train_x


def test_the_users_template_is_used(root: Path) -> None:
    assert load(root).template == "a photo of a {}."
    assert load(root, TEMPLATE="a {} on my desk.").template == "a {} on my desk."
