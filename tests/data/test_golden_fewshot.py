"""Few-shot draws, splits and base/new classes compared with the reference (golden/dassl_protocol)."""

from __future__ import annotations

import functools
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from dassl_lite.config import get_cfg_default
from dassl_lite.data import DatasetBase, Datum, FolderDataset, Split, split_folders, split_trainval
from dassl_lite.data.splits import MAX_LABEL, read_label, rows_from_items
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.seeding import set_random_seed

PROTOCOL = json.loads((Path(__file__).parents[1] / "golden" / "dassl_protocol.json").read_text())


class Pets(FolderDataset):
    dataset_dir = "oxford_pets"
    split_file = "split_zhou_OxfordPets.json"


@pytest.fixture(scope="session")
def protocol(golden: Any) -> Any:
    return golden.json("dassl_protocol")


@pytest.fixture
def pets(protocol: Any, tmp_path: Path) -> Any:
    """The golden split laid out as files; returns a function from options to a config for it."""
    images = tmp_path / "oxford_pets" / "images"
    images.mkdir(parents=True)
    for part in protocol["fewshot"]["split"].values():
        for name, _, _ in part:
            (images / name).touch()
    split = json.dumps(protocol["fewshot"]["split"])
    (images.parent / "split_zhou_OxfordPets.json").write_text(split)
    return lambda **options: config(tmp_path, **options)


def config(root: Path, num_shots: int = -1, seed: int = 1, subsample: str = "all") -> Any:
    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.DATASET.NAME = str(root), "Pets"
    cfg.DATASET.NUM_SHOTS, cfg.SEED, cfg.DATASET.SUBSAMPLE_CLASSES = num_shots, seed, subsample
    return cfg


def positions(items: list[Datum], rows: list[list[Any]]) -> list[int]:
    """The position of each item in the golden list."""
    where = {row[0].split(" ")[0]: i for i, row in enumerate(rows)}
    return [where[Path(item.impath).name] for item in items]


def cases(*names: str) -> list[str]:
    """Keys of a golden table, such as "seed1_shots4"."""
    return list(functools.reduce(lambda node, name: node[name], names, PROTOCOL))


def seed_and_shots(key: str) -> list[int]:
    return [int(number) for number in re.findall(r"-?\d+", key)]


@pytest.mark.parametrize("key", cases("fewshot", "picks"))
def test_the_draw_equals_the_reference(protocol: Any, pets: Any, key: str) -> None:
    expected, (seed, num_shots) = protocol["fewshot"]["picks"][key], seed_and_shots(key)
    split = protocol["fewshot"]["split"]
    set_random_seed(seed)
    dataset = Pets(pets(num_shots=num_shots, seed=seed))
    assert positions(dataset.train_x, split["train"]) == expected["train"]
    assert positions(dataset.val, split["val"]) == expected["val"]
    assert len(dataset.test) == expected["n_test"]
    assert random.random() == expected["next_random"]  # the random generator is in the same state


def test_a_draw_read_from_its_file_is_the_same_and_uses_no_random_numbers(protocol: Any, pets: Any) -> None:
    split, expected = protocol["fewshot"]["split"], protocol["fewshot"]["cached_reload"]
    set_random_seed(1)
    Pets(pets(num_shots=2))
    state = random.getstate()
    dataset = Pets(pets(num_shots=2))
    assert positions(dataset.train_x, split["train"]) == expected["train"]
    assert positions(dataset.val, split["val"]) == expected["val"]
    assert random.getstate() == state


@pytest.mark.parametrize("num_shots", [-1, 2])
@pytest.mark.parametrize("which", ["all", "base", "new"])
def test_base_and_new_classes_equal_the_reference(protocol: Any, pets: Any, which: str, num_shots: int) -> None:
    split, expected = protocol["fewshot"]["split"], protocol["subsample"][f"{which}_shots{num_shots}"]
    set_random_seed(1)
    dataset = Pets(pets(num_shots=num_shots, subsample=which))
    assert positions(dataset.train_x, split["train"]) == expected["train"]
    assert positions(dataset.val, split["val"]) == expected["val"]
    assert [item.label for item in dataset.train_x] == expected["train_labels"]
    found = positions(dataset.test, split["test"])
    assert [[position, item.label, item.classname] for position, item in zip(found, dataset.test, strict=True)] == (
        expected["test"]
    )
    assert dataset.classnames == expected["classnames"]
    assert dataset.num_classes == expected["num_classes"]
    assert {str(label): name for label, name in dataset.lab2cname.items()} == expected["lab2cname"]


@pytest.mark.parametrize("key", cases("fewshot_repeat", "picks"))
def test_a_draw_with_repeats_equals_the_reference(protocol: Any, key: str) -> None:
    split, expected = protocol["fewshot"]["split"], protocol["fewshot_repeat"]["picks"][key]
    train, val = ([Datum(*row[:2], classname=row[2]) for row in split[part]] for part in ("train", "val"))
    seed, num_shots = seed_and_shots(key)
    base = DatasetBase(train_x=train)
    random.seed(seed)
    drawn = base.generate_fewshot_dataset(train, val, num_shots=num_shots, repeat=True)
    assert positions(drawn[0], split["train"]) == expected["train"]
    assert positions(drawn[1], split["val"]) == expected["val"]
    assert base.generate_fewshot_dataset(train, num_shots=0) is train


class AnnotatedPets(Pets):
    """Pets without a split file: trainval and test are listed, as in the reference's annotation files."""

    lines: dict[str, list[str]]

    def make_split(self) -> Split:
        train, val = split_trainval(pets_items(self.lines["trainval"], self.image_dir))
        return Split(train, val, pets_items(self.lines["test"], self.image_dir))


def pets_items(lines: list[str], image_dir: str) -> list[Datum]:
    items = []
    for line in lines:
        name, label, _, _ = line.split(" ")
        items.append(Datum(f"{image_dir}/{name}.jpg", int(label) - 1, classname=name.rpartition("_")[0].lower()))
    return items


@pytest.mark.parametrize("key", cases("split_trainval", "runs"))
def test_a_generated_split_equals_the_reference(protocol: Any, tmp_path: Path, key: str) -> None:
    golden = protocol["split_trainval"]
    expected = golden["runs"][key]
    seed, num_shots = seed_and_shots(key)
    AnnotatedPets.lines = {"trainval": golden["trainval_lines"], "test": golden["test_lines"]}
    images = tmp_path / "oxford_pets" / "images"
    images.mkdir(parents=True)
    for line in (*golden["trainval_lines"], *golden["test_lines"]):
        (images / f"{line.split(' ')[0]}.jpg").touch()
    rows = [[line.split(" ")[0] + ".jpg"] for line in golden["trainval_lines"]]
    set_random_seed(seed)
    dataset = AnnotatedPets(config(tmp_path, num_shots, seed))
    assert positions(dataset.train_x, rows) == expected["train"]
    assert positions(dataset.val, rows) == expected["val"]
    assert dataset.classnames == expected["classnames"]
    if key == "seed3_shots-1":
        saved = json.loads((images.parent / "split_zhou_OxfordPets.json").read_text())
        assert {part: saved[part][:2] for part in saved} == golden["json_first_items"]


@pytest.mark.parametrize("p_val", [0.1, 0.3])
def test_other_validation_fractions_equal_the_reference(protocol: Any, p_val: float) -> None:
    golden = protocol["split_trainval"]
    expected = golden[f"p_val_{p_val}"]
    items = pets_items(golden["trainval_lines"], "images")
    rows = [[line.split(" ")[0] + ".jpg"] for line in golden["trainval_lines"]]
    random.seed(expected["seed"])
    train, val = split_trainval([item for item in items if item.label in expected["classes"]], p_val)
    assert positions(train, rows) == expected["train"]
    assert positions(val, rows) == expected["val"]


def test_a_split_made_from_folders_equals_the_reference(protocol: Any, tmp_path: Path) -> None:
    golden = protocol["dtd_split"]
    for label, size in enumerate(golden["sizes"]):
        (tmp_path / f"cat{label}").mkdir()
        for i in range(size):
            (tmp_path / f"cat{label}" / f"im{i:02}.jpg").touch()
    (tmp_path / "ignored").mkdir()
    random.seed(golden["seed"])
    split = split_folders(str(tmp_path), ignored=("ignored",), new_names={"cat1": "Renamed Cat"})
    for part in Split._fields:
        assert rows_from_items(getattr(split, part), str(tmp_path)) == golden[part]


def test_a_class_too_small_for_the_validation_share_is_refused() -> None:
    items = [Datum(f"{k}-{i}.jpg", label=k, classname=f"c{k}") for k, n in enumerate((10, 4)) for i in range(n)]
    with pytest.raises(UserError, match="class 'c1' has 4 images, too few to take 10% for validation"):
        split_trainval(items, 0.1)


@pytest.mark.parametrize(
    ("value", "label"), [(7, 7), ("7", 7), ("-1", -1), (3.0, 3), (MAX_LABEL, MAX_LABEL), ("1_0", 10)]
)
def test_a_whole_number_is_a_label(value: object, label: int) -> None:
    assert read_label(value) == label


@pytest.mark.parametrize(
    "value", [True, False, None, 2.5, float("inf"), [1], "x", MAX_LABEL + 1, -MAX_LABEL - 1, "9" * 5000]
)
def test_anything_else_is_not_a_label(value: object) -> None:
    with pytest.raises(ValueError, match=r"whole number up to 1,000,000,000|invalid literal"):
        read_label(value)
