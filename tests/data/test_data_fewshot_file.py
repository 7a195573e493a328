"""Saved few-shot draws are found and verified, refused if they do not fit, and saved in the cache if necessary."""

from __future__ import annotations

import json
import logging
import os
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_data_dataset import ROWS, Toy, config, lay_out

from dassl_lite.data import DATASET_REGISTRY, DatasetBase, Datum, FolderDataset, Split, build_dataset, splits
from dassl_lite.data import folder as keep
from dassl_lite.data.splits import split_classes
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import cache_root
from dassl_lite.utils.seeding import set_random_seed


@pytest.fixture
def toy(tmp_path: Path) -> Any:
    lay_out(tmp_path)
    random.seed(1)
    return lambda **options: Toy(config(tmp_path, **{"NUM_SHOTS": 2, **options}))


@pytest.fixture
def draw_file(tmp_path: Path) -> Path:
    return tmp_path / "toy" / "split_fewshot" / "shot_2-seed_1.json"


def test_a_draw_is_saved_with_relative_paths_and_its_digest(toy: Any, draw_file: Path, tmp_path: Path) -> None:
    dataset = toy()
    content = json.loads(draw_file.read_text())
    assert str(tmp_path) not in draw_file.read_text()
    assert content["digest"] == dataset.fewshot_digest
    assert (content["dataset"], content["num_shots"], content["seed"]) == ("Toy", 2, 1)
    assert len(content["train"]) == 6
    assert [path.name for path in draw_file.parent.iterdir()] == [draw_file.name]  # no partial file is left


def test_every_draw_has_its_own_digest(toy: Any, draw_file: Path) -> None:
    first = toy().fewshot_digest
    assert toy().fewshot_digest == first
    draw_file.unlink()
    random.seed(7)
    assert toy().fewshot_digest != first
    assert toy(NUM_SHOTS=-1).fewshot_digest == ""


def test_the_digest_does_not_depend_on_the_location_of_the_dataset(toy: Any, tmp_path: Path) -> None:
    first = toy().fewshot_digest
    lay_out(tmp_path / "elsewhere")
    random.seed(1)
    assert Toy(config(tmp_path / "elsewhere", NUM_SHOTS=2)).fewshot_digest == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 9}, "has seed 9, not 1"),
        ({"num_shots": 3}, "has num_shots 3, not 2"),
        ({"dataset": "Other"}, "has dataset 'Other', not 'Toy'"),
        ({"train": [["ant/99.png", 0, "ant"]]}, r"it lists 'ant/99\.png'"),
        ({"train": [["ant/0.png", 1, "ant"]]}, r"it lists 'ant/0\.png'"),
        ({"train": [list(ROWS[0])]}, "was modified: its digest does not match"),
        ({"train": "all"}, "is corrupt"),
        ({"train": None}, "is corrupt"),
    ],
)
def test_a_foreign_or_modified_draw_is_refused(toy: Any, draw_file: Path, change: Any, message: str) -> None:
    toy()
    draw_file.write_text(json.dumps({**json.loads(draw_file.read_text()), **change}))
    with pytest.raises(UserError, match=f"{message}.*Delete it to draw again") as raised:
        toy()
    assert str(draw_file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_malformed_draw_is_refused(toy: Any, draw_file: Path) -> None:
    toy()
    draw_file.write_bytes(draw_file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cannot read .* as JSON.*Delete it to draw again"):
        toy()


def test_a_given_draw_is_used(toy: Any, draw_file: Path, tmp_path: Path) -> None:
    random.seed(5)
    expected = toy().train_x
    given = tmp_path / "mine.json"
    draw_file.rename(given)
    assert toy(FEWSHOT_FILE=str(given)).train_x == expected
    assert toy(FEWSHOT_FILE=str(given), NUM_SHOTS=-1).train_x == expected
    assert not draw_file.exists()
    with pytest.raises(UserError, match=r"has num_shots 2, not 4\. Check DATASET\.FEWSHOT_FILE"):
        toy(FEWSHOT_FILE=str(given), NUM_SHOTS=4)
    with pytest.raises(UserError, match=r"cannot read .*none\.json.* Check DATASET\.FEWSHOT_FILE"):
        toy(FEWSHOT_FILE=str(tmp_path / "none.json"))


def test_a_draw_written_by_hand_is_used(toy: Any, tmp_path: Path) -> None:
    given = tmp_path / "mine.json"
    given.write_text(json.dumps({"train": [ROWS[0], ROWS[4], ROWS[8]], "val": []}))
    dataset = toy(FEWSHOT_FILE=str(given))
    assert [item.label for item in dataset.train_x] == [0, 1, 2]


LISTED = {  # images 0, 4 and 8 belong to classes 0, 1 and 2
    "absolute.jsonl": '{"impath": "/home/x/toy/images/%s", "label": %d, "classname": "%s"}',
    "other_numbers.jsonl": '{"Image": "%s", "target": 9%d, "label_name": "%s"}',
    "paths.jsonl": '{"path": "images/%s", "note": [%d, "%s"]}',
    "numbers.txt": "%s %d",
    "windows.txt": "C:\\data\\images\\%s %d",
}


@pytest.mark.parametrize("name", LISTED)
def test_a_published_list_of_images_is_a_draw(toy: Any, draw_file: Path, tmp_path: Path, name: str) -> None:
    rows = [ROWS[0], ROWS[4], ROWS[8]]
    lines = [LISTED[name] % (tuple(row)[: LISTED[name].count("%")]) for row in rows]
    (tmp_path / name).write_text("\n\n".join(lines) + "\n")
    before = random.getstate()
    dataset = toy(FEWSHOT_FILE=str(tmp_path / name), NUM_SHOTS=1)
    assert [item.impath.rpartition("images/")[2] for item in dataset.train_x] == [row[0] for row in rows]
    assert [item.label for item in dataset.train_x] == [0, 1, 2]
    assert dataset.fewshot_digest
    assert random.getstate() == before
    assert not draw_file.parent.exists()


def test_classes_with_few_listed_images_are_named(toy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "list.txt").write_text(f"{ROWS[0][0]}\n{ROWS[1][0]}\n{ROWS[4][0]}\n")
    with caplog.at_level(logging.WARNING, "dassl_lite"):
        toy(FEWSHOT_FILE=str(tmp_path / "list.txt"), NUM_SHOTS=2)
    classes = [ROWS[4][2], ROWS[8][2]]
    assert f"has fewer than 2 images of '{classes[0]}' (1), '{classes[1]}' (0)" in caplog.text


def test_listed_validation_images_become_validation_shots(toy: Any, tmp_path: Path) -> None:
    lay_out(tmp_path, train=ROWS[1:], val=ROWS[:1])
    full = toy(NUM_SHOTS=-1)
    listed = [*full.val, *full.train_x]
    (tmp_path / "list.txt").write_text("\n".join(item.impath for item in listed))
    dataset = toy(FEWSHOT_FILE=str(tmp_path / "list.txt"), NUM_SHOTS=-1)
    assert (dataset.train_x, dataset.val) == (full.train_x, full.val)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "[1]", "line 1: a line should be a JSON object with a path, not '[1]'"),
        ("a.jsonl", '{"label": 1}', "line 1: it has none of the keys impath, path"),
        ("a.jsonl", '{"path": "ant/0.png"}\n{"path": ', "line 2: Expecting value"),
        ("a.jsonl", '{"path": "ant/0.png", "class": "bee"}', "line 1: 'ant/0.png' is of class 'ant', not 'bee'"),
        ("a.txt", "ant/0.png 1", "line 1: 'ant/0.png' has label 0, not 1"),
        ("a.txt", "\nant/99.png", "line 2: this split has no training or validation image 'ant/99.png'"),
        ("a.txt", "ant/0.png\nimages/ant/0.png", "line 2: 'images/ant/0.png' is listed twice"),
        ("a.txt", "", "has 0 training images of this split per class, not DATASET.NUM_SHOTS 2"),
        ("a.txt", "ant/0.png", "has 1 training images of this split per class, not DATASET.NUM_SHOTS 2"),
        ("a.jsonl", "[" * 100_000, "line 1"),
    ],
)
def test_a_list_that_does_not_fit_the_split_is_refused(
    toy: Any, tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        toy(FEWSHOT_FILE=str(tmp_path / name))
    assert str(raised.value).endswith("Check DATASET.FEWSHOT_FILE.")
    assert len(str(raised.value)) < 1000


def test_a_draw_from_a_read_only_folder_is_saved_in_the_cache(
    toy: Any, draw_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = splits.write_listing

    def refuse(content: Any, path: Path) -> None:
        if tmp_path in Path(path).parents:
            raise PermissionError(13, "Permission denied", str(path))
        write(content, path)

    monkeypatch.setattr("dassl_lite.data.fewshot.write_listing", refuse)
    first = toy()
    elsewhere = [path for path in cache_root().rglob(draw_file.name) if "Toy-" in str(path)]
    assert elsewhere
    assert not draw_file.exists()
    random.seed(99)
    assert toy().train_x == first.train_x  # found again in the cache

    monkeypatch.setattr("dassl_lite.data.fewshot.write_listing", lambda *_: refuse(None, tmp_path / "x"))
    with caplog.at_level(logging.WARNING):
        toy(NUM_SHOTS=1)
    assert "the run continues without it" in caplog.text


def test_two_copies_of_a_dataset_have_separate_draws_in_the_cache(tmp_path: Path) -> None:
    keepers = [keep.SidecarFiles("Toy", str(tmp_path / name)) for name in ("full", "reduced")]
    assert keepers[0].folders[1] != keepers[1].folders[1]


def test_classes_with_too_few_images_are_named_in_one_line(toy: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        dataset = toy(NUM_SHOTS=8)
    assert len(dataset.train_x) == 12
    assert caplog.messages == [
        "Classes with fewer than 8 training images, all of which are used: 'ant' (4), 'bee' (4), 'cat' (4)"
    ]


class DrawnToy(FolderDataset):
    """A toy dataset without a split file, whose split is drawn from the global random generator."""

    dataset_dir = "toy"
    split_file = "split_DrawnToy.json"

    def make_split(self) -> Split:
        groups = [list_images(Path(self.image_dir) / name) for name in ("ant", "bee", "cat")]
        return split_classes([[Datum(path, label) for path in paths] for label, paths in enumerate(groups)])


def list_images(folder: Path) -> list[str]:
    return sorted(map(str, folder.iterdir()))


class PaperToy(DatasetBase):
    """Draws like the datasets of papers: from any global random generator, pickled for the next run."""

    def __init__(self, cfg: Any) -> None:
        pickled = Path(cfg.DATASET.ROOT) / "kept"
        if not pickled.exists():
            random.random(), np.random.rand(), torch.rand(1)
            pickled.touch()
        super().__init__(train_x=[Datum("a.png", 0)], test=[Datum("b.png", 0)])


@pytest.mark.parametrize("name", ["Toy", "DrawnToy", "PaperToy"])
def test_drawing_and_reading_a_draw_leave_the_same_random_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for kind in (Toy, DrawnToy, PaperToy):
        monkeypatch.setitem(DATASET_REGISTRY._table, kind.__name__, kind)
    lay_out(tmp_path)
    following = []
    for _ in range(2):
        set_random_seed(1)
        dataset = build_dataset(config(tmp_path, NAME=name, NUM_SHOTS=1))
        following.append(([i.impath for i in dataset.train_x], random.random(), np.random.rand(), torch.rand(1).item()))
    assert following[0] == following[1]


def test_a_run_killed_between_saving_draw_and_split_repeats_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(folder: str) -> list[str]:
        set_random_seed(1)
        dataset = DrawnToy(config(tmp_path / folder, NUM_SHOTS=1))
        return [os.path.relpath(item.impath, dataset.image_dir) for item in (*dataset.train_x, *dataset.test)]

    for folder in ("killed", "whole"):
        lay_out(tmp_path / folder)
    write = keep.SidecarFiles.write

    def write_and_die(*given: Any) -> None:
        write(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(keep.SidecarFiles, "write", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        draw("killed")
    monkeypatch.setattr(keep.SidecarFiles, "write", write)
    assert draw("killed") == draw("whole") == draw("whole")
