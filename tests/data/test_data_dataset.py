"""Datum, DatasetBase and FolderDataset: contract, order of hooks, user errors."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
from pathlib import Path
from typing import Any

import pytest

from dassl_lite.config import get_cfg_default
from dassl_lite.data import DATASET_REGISTRY, DatasetBase, Datum, FolderDataset, build_dataset, read_split
from dassl_lite.data import datasets as dassl_path
from dassl_lite.data.datum import of_each_class
from dassl_lite.data.images import is_usual_image, kind_of
from dassl_lite.data.layouts.class_folders import list_images
from dassl_lite.data.splits import split_classes
from dassl_lite.utils.errors import UserError

ROWS = [(f"{name}/{i}.png", label, name) for label, name in enumerate(("ant", "bee", "cat")) for i in range(4)]


class Toy(FolderDataset):
    dataset_dir = "toy"
    split_file = "split_Toy.json"
    homepage = "https://example.org/toy"


def lay_out(root: Path, rows: list[Any] = ROWS, **parts: Any) -> None:
    """The toy dataset as files; ``parts`` replaces lists of the split file."""
    for name, _, _ in rows:
        path = root / "toy" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    split = {"train": rows, "val": rows[::4], "test": rows[1::4], **parts}
    (root / "toy" / "split_Toy.json").write_text(json.dumps(split))


def config(root: Path, **dataset: Any) -> Any:
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "Toy", str(root)
    for key, value in dataset.items():
        cfg.DATASET[key] = value
    return cfg


def test_datum_keeps_dassls_contract() -> None:
    datum = Datum("a/b.png", 3, classname="cat", classid="n1")
    assert (datum.impath, datum.label, datum.domain, datum.classname, datum.classid) == ("a/b.png", 3, 0, "cat", "n1")
    assert datum == copy.deepcopy(datum)  # as when sent to a worker
    assert datum != Datum("a/b.png", 3, classname="cat")
    with pytest.raises(AttributeError):
        datum.label = 4  # type: ignore[misc]
    assert datum.relabelled(0) == Datum("a/b.png", 0, classname="cat", classid="n1")


def test_dassls_import_path_has_its_four_names() -> None:
    assert dassl_path.DatasetBase is DatasetBase
    assert dassl_path.Datum is Datum
    assert dassl_path.DATASET_REGISTRY is DATASET_REGISTRY


def test_the_classes_come_from_the_training_images() -> None:
    items = [Datum("1", 2, classname="c", classid="n2"), Datum("2", 0, domain=1, classname="a")]
    dataset = DatasetBase(train_x=items, test=[Datum("3", 9, classname="other")])
    assert dataset.num_classes == 3  # the largest label + 1
    assert dataset.lab2cname == {0: "a", 2: "c"}
    assert dataset.classnames == ["a", "c"]
    assert dataset.classes.ids == ("", "n2")
    assert list(dataset.split_dataset_by_domain(items)) == [0, 1]
    assert list(dataset.split_dataset_by_label(items)) == [2, 0]
    assert dataset.val is None


def test_an_unknown_domain_is_refused() -> None:
    class Domains(DatasetBase):
        domains = ("art", "photo")

    with pytest.raises(UserError, match=r"unknown domain 'foto'\. Did you mean 'photo'"):
        Domains(train_x=[Datum()]).check_input_domains(["art"], ["foto"])


def test_an_unknown_dataset_is_refused_with_the_nearest_name() -> None:
    cfg = config(Path())
    cfg.DATASET.NAME = "Toi"
    DATASET_REGISTRY.register(Toy, force=True)
    try:
        with pytest.raises(UserError, match=r"unknown dataset 'Toi'\. Did you mean 'Toy'\? Choices: "):
            build_dataset(cfg)
    finally:
        del DATASET_REGISTRY._table["Toy"]


@pytest.mark.parametrize("template", ["a photo.", "{} and {}"])
def test_a_template_without_exactly_one_placeholder_is_refused(tmp_path: Path, template: str) -> None:
    lay_out(tmp_path)
    DATASET_REGISTRY.register(Toy, force=True)
    try:
        assert build_dataset(config(tmp_path, TEMPLATE="art of {}.")).template == "art of {}."
        assert build_dataset(config(tmp_path)).template == "a photo of a {}."
        with pytest.raises(UserError, match=r"must contain \{\} once"):
            build_dataset(config(tmp_path, TEMPLATE=template))
    finally:
        del DATASET_REGISTRY._table["Toy"]


def test_prepare_is_called_before_anything_is_read(tmp_path: Path) -> None:
    class Drawn(Toy):
        def prepare(self) -> None:
            assert os.path.isabs(self.image_dir)
            lay_out(tmp_path)

    assert len(Drawn(config(tmp_path)).train_x) == len(ROWS)


def test_class_ids_stay_with_the_new_classes(tmp_path: Path) -> None:
    class WithIds(Toy):
        classes_file = "classes.json"

    lay_out(tmp_path)
    table = [{"name": "ant", "id": "i0"}, {"name": "bee", "id": "i1"}, {"name": "cat"}]
    (tmp_path / "toy" / "classes.json").write_text(json.dumps(table))
    assert WithIds(config(tmp_path)).classes.ids == ("i0", "i1", "")
    assert WithIds(config(tmp_path, SUBSAMPLE_CLASSES="base", NUM_SHOTS=1)).classes.ids == ("i0", "i1")
    (tmp_path / "toy" / "classes.json").write_text(json.dumps(table[::-1]))
    with pytest.raises(UserError, match=r"classes\.json' does not fit the split: label 0 is 'cat' in the table"):
        WithIds(config(tmp_path))


def test_a_test_only_dataset_has_classes_but_no_shots(tmp_path: Path) -> None:
    class Variant(Toy):
        test_only = True

    lay_out(tmp_path, train=[], val=[])
    dataset = Variant(config(tmp_path, NUM_SHOTS=1))
    assert dataset.num_classes == 3
    assert dataset.train_x == dataset.test
    assert not (tmp_path / "toy" / "split_fewshot").exists()


def test_no_shots_are_drawn_from_val_if_val_is_the_test_set(tmp_path: Path) -> None:
    class Imagenet(Toy):
        val_is_test = True

    lay_out(tmp_path, val=ROWS[1::4])
    dataset = Imagenet(config(tmp_path, NUM_SHOTS=2))
    assert dataset.val == dataset.test
    content = json.loads((tmp_path / "toy" / "split_fewshot" / "shot_2-seed_1.json").read_text())
    assert (len(content["train"]), content["val"]) == (6, [])
    assert Imagenet(config(tmp_path, NUM_SHOTS=2)).train_x == dataset.train_x  # read from the saved draw


def test_a_missing_root_or_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Toy needs --root \(DATASET\.ROOT\): the folder that contains 'toy'"):
        Toy(config(Path(), ROOT=""))
    with pytest.raises(UserError, match=r"there is no folder '.*toy/images'; get .* https://example.org/toy; --root"):
        Toy(config(tmp_path))
    (tmp_path / "toy" / "images").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no split file '.*split_Toy\.json'; get the dataset from https"):
        Toy(config(tmp_path))


def test_missing_images_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lay_out(tmp_path)
    for i in range(4):
        (tmp_path / "toy" / "images" / "bee" / f"{i}.png").unlink()
    with pytest.raises(UserError) as raised:
        Toy(config(tmp_path))
    message = str(raised.value)
    assert "missing 4 of 12 images" in message
    assert message.count(".png'") == 3
    assert ".png', .... " in message
    assert "or delete" in message
    with caplog.at_level(logging.WARNING):
        assert len(Toy(config(tmp_path, ON_ERROR="skip")).train_x) == 12  # the draw does not change
    assert "Missing images are skipped" in caplog.text


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": [row for row in ROWS if row[1] != 1]}, "no training image has label 1"),
        ({"train": [[row[0], row[1] - 1, row[2]] for row in ROWS]}, "label -1 is negative"),
        ({"test": [["ant/0.png", 7, "ant"]]}, r"ant/0\.png' has label 7, which no training image has"),
        ({"train": [*ROWS, ["cat/0.png", 0, "cat"]]}, "label 0 is both 'ant' and 'cat'"),
        ({"train": [["ant/0.png", 0]]}, r"rows should be \[path, label, class name\]"),
        ({"train": [["ant/0.png", "zero", "ant"]]}, r"rows should be \[path, label, class name\]"),
        ({"train": [], "val": [], "test": []}, "no training image"),
    ],
)
def test_an_inconsistent_split_is_refused(tmp_path: Path, parts: Any, message: str) -> None:
    lay_out(tmp_path, **parts)
    with pytest.raises(UserError, match=message):
        Toy(config(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read .* as JSON"),
        ("[1]", "should hold a JSON object, not a list"),
        ('{"train": []}', "lacks the list val and the list test"),
    ],
)
def test_a_malformed_split_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_split(path, "images")


def test_an_unknown_choice_of_classes_is_refused(tmp_path: Path) -> None:
    lay_out(tmp_path)
    with pytest.raises(UserError, match=r"unknown DATASET\.SUBSAMPLE_CLASSES 'bas'\. Did you mean 'base'"):
        Toy(config(tmp_path, SUBSAMPLE_CLASSES="bas"))


@pytest.mark.parametrize("num_shots", [0, -2])
def test_shots_out_of_range_are_refused(tmp_path: Path, num_shots: int) -> None:
    lay_out(tmp_path)
    with pytest.raises(UserError, match=f"NUM_SHOTS {num_shots} is out of range"):
        Toy(config(tmp_path, NUM_SHOTS=num_shots))


def test_file_names_with_spaces_and_foreign_bytes_survive_the_split_file(tmp_path: Path) -> None:
    # A file name that is not UTF-8: Python holds its byte as a lone surrogate.
    rows = [["F-16A B/a b.png", 0, "F-16A/B"], ["ä/\udcff é.png", 1, "ä"], ["ä/'q\".png", 1, "ä"]]
    lay_out(tmp_path, rows, val=[], test=rows)
    dataset = Toy(config(tmp_path, NUM_SHOTS=1))
    assert dataset.classnames == ["F-16A/B", "ä"]
    again = Toy(config(tmp_path, NUM_SHOTS=1))
    assert again.train_x == dataset.train_x
    assert all(os.path.isfile(item.impath) for item in again.test)


def test_a_class_is_split_into_half_training_and_a_fifth_validation() -> None:
    items = [Datum(f"{i}.png", 0, classname="ant") for i in range(10)]
    train, val, test = split_classes([items], random.Random(0))
    assert [len(part) for part in (train, val, test)] == [5, 2, 3]
    assert {item.impath for item in (*train, *val, *test)} == {item.impath for item in items}


def test_only_repeats_are_removed_from_the_items_of_each_class() -> None:
    several = Datum("s", classes=[(0, "ant", ""), (1, "bee", "")])
    foreign = type("Foreign", (), {"label": 0, "classname": "ant"})()
    kinds = [Datum("a", 0, 0, "ant"), Datum("b", 0, 0, "ant"), Datum("c", 0, 0, "aunt"), Datum("d", 0, 0, "aunt", "x")]
    items = [*kinds, several, several, *kinds[:2], foreign, foreign, *kinds[:2]]
    wanted = [kinds[0], *kinds[2:], several, several, kinds[0], foreign, foreign, kinds[0]]
    assert list(of_each_class(items)) == wanted


def test_the_fast_and_the_full_check_of_image_extensions_agree(tmp_path: Path) -> None:
    names = ["a.jpg", "b.JPEG", "c.Jpg", ".d.png", "e", "f.txt", "g.tar.png", "h.", "png", "i.jpg "]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    with os.scandir(tmp_path) as entries:
        found = {entry.name: (is_usual_image(entry), kind_of(entry)) for entry in entries if not entry.is_dir()}
    assert {name for name, (usual, _) in found.items() if usual} == {"a.jpg", "b.JPEG", "g.tar.png"}
    assert {name for name, (_, kind) in found.items() if not kind} == {"a.jpg", "b.JPEG", "c.Jpg", "g.tar.png"}
    assert [Path(path).name for path in list_images(str(tmp_path)).files] == ["a.jpg", "b.JPEG", "c.Jpg", "g.tar.png"]
