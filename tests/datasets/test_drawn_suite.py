"""Drawn datasets on disk are complete or absent, and are read like any other dataset."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from dassl_lite.config import get_cfg_default
from dassl_lite.data import DATASET_REGISTRY, build_dataset
from dassl_lite.datasets._drawn import suite
from dassl_lite.datasets._drawn.classes import SHAPESNET
from dassl_lite.datasets._drawn.suite import ObjectDataset, PerClass
from dassl_lite.datasets.digits import Digits
from dassl_lite.datasets.shapesnet import ShapesNet
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError

STAMP = {"drawn": "Thing", "edition": 1}


class Few(ObjectDataset):
    dataset_dir = "few"
    object_classes = SHAPESNET[:4]
    per_class = PerClass(train=3, val=1, test=2)


def config(root: Path | str = "", **dataset: Any) -> Any:
    cfg = get_cfg_default()
    cfg.DATASET.ROOT = str(root)
    for key, value in dataset.items():
        cfg.DATASET[key] = value
    return cfg


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_dataset_is_drawn_on_first_use_into_ordinary_folders(tmp_path: Path) -> None:
    dataset = Few(config(tmp_path))
    assert [len(part) for part in (dataset.train_x, dataset.val, dataset.test)] == [12, 4, 8]
    assert dataset.classnames == [cls.name for cls in SHAPESNET[:4]]
    assert dataset.classes.ids == tuple(cls.id for cls in SHAPESNET[:4])
    assert dataset.train_x[0].impath == str(tmp_path / "few/images/train/striped_circle/000.png")
    with Image.open(dataset.train_x[0].impath) as image:
        assert (image.size, image.mode) == ((64, 64), "RGB")


def test_the_split_file_has_coops_format(tmp_path: Path) -> None:
    Few(config(tmp_path))
    split = json.loads((tmp_path / "few" / "split.json").read_text())
    assert list(split) == ["train", "val", "test"]
    assert split["test"][-1] == ["test/solid_square/001.png", 3, "solid square"]


def test_the_second_use_reads_the_existing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Few(config(tmp_path))
    drawn = content(tmp_path)
    monkeypatch.setattr(Few, "draw", lambda *_: pytest.fail("drawn again"))
    Few(config(tmp_path))
    assert content(tmp_path) == drawn


def test_drawing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for root in ("one", "two"):
        Few(config(tmp_path / root))
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_no_image_is_in_two_splits(tmp_path: Path) -> None:
    dataset = Few(config(tmp_path))
    items = [*dataset.train_x, *dataset.val, *dataset.test]
    assert len({Path(item.impath).read_bytes() for item in items}) == len(items)


def test_a_dataset_without_a_root_is_drawn_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASSL_LITE_CACHE", str(tmp_path / "cache"))
    assert Few(config()).dataset_dir == str(tmp_path / "cache" / "datasets" / "few")


def test_few_shots_are_drawn_from_a_drawn_dataset(tmp_path: Path) -> None:
    dataset = Few(config(tmp_path, NUM_SHOTS=2))
    assert [item.label for item in dataset.train_x] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert dataset.train_x[0].classid == SHAPESNET[0].id


@pytest.mark.slow
def test_the_config_can_override_the_template(tmp_path: Path) -> None:
    cfg = config(tmp_path, NAME="Digits", TEMPLATE="the figure {}.")
    assert build_dataset(cfg).template == "the figure {}."


KILLED = """
import os, signal, sys
import dassl_lite.datasets._drawn.suite as suite
from dassl_lite.config import get_cfg_default
from dassl_lite.datasets._drawn.classes import SHAPESNET
class Few(suite.ObjectDataset):
    dataset_dir = "few"
    object_classes = SHAPESNET[:4]
    per_class = suite.PerClass(train=3, val=1, test=2)
    def pictures(self, split, rng):
        if split == "test":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().pictures(split, rng)
cfg = get_cfg_default()
cfg.DATASET.ROOT = sys.argv[1]
Few(cfg)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_an_interrupted_drawing_is_restarted(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    assert not (tmp_path / "few").exists()
    assert list(tmp_path.glob(".few.*.drawing/images/train"))  # it was killed while drawing
    Few(config(tmp_path))
    Few(config(tmp_path / "alone"))
    assert content(tmp_path / "few") == content(tmp_path / "alone" / "few")


def test_old_folders_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, fresh = tmp_path / ".few.1.drawing", tmp_path / ".few.2.drawing"
    for folder in (old, fresh):
        folder.mkdir()
    past = time.time() - 2 * suite.ABANDONED_AFTER
    os.utime(old, (past, past))
    Few(config(tmp_path))
    assert not old.exists()
    assert fresh.exists()  # another process may be drawing there


def test_two_processes_that_draw_at_once_both_get_a_complete_dataset(tmp_path: Path) -> None:
    both_drawing = threading.Barrier(2, timeout=30)
    problems = []

    def fill(folder: Path) -> None:
        both_drawing.wait()
        (folder / "picture").write_text("the same")
        both_drawing.wait()

    def run() -> None:
        try:
            suite.fill_folder(tmp_path / "thing", STAMP, fill)
        except UserError as error:
            problems.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert (tmp_path / "thing" / "picture").read_text() == "the same"
    assert os.listdir(tmp_path) == ["thing"]


def test_a_failed_drawing_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("done")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        suite.fill_folder(tmp_path / "thing", STAMP, fail)
    assert os.listdir(tmp_path) == []


def test_an_outdated_edition_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Few(config(tmp_path))
    before = content(tmp_path / "few")
    monkeypatch.setattr(suite, "EDITION", suite.EDITION + 1)
    Few(config(tmp_path))
    after = content(tmp_path / "few")
    assert before.keys() == after.keys()
    assert before["images/train/striped_circle/000.png"] != after["images/train/striped_circle/000.png"]
    assert os.listdir(tmp_path) == ["few"]


@pytest.mark.parametrize("stamp", [None, '{"drawn": "Other", "edition": 1}', "{", "[]"])
def test_a_folder_of_different_origin_is_never_touched(tmp_path: Path, stamp: str | None) -> None:
    mine = tmp_path / "few" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("precious")
    if stamp is not None:
        (mine.parent / suite.STAMP_FILE).write_text(stamp)
    with pytest.raises(UserError, match="files of another origin"):
        Few(config(tmp_path))
    assert mine.read_text() == "precious"


def test_a_root_that_is_not_writable_is_explained_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot draw into .*few.*DASSL_LITE_CACHE"):
        Few(config(tmp_path / "file"))


@pytest.mark.slow
def test_digits_equal_those_of_scikit_learn_in_order(tmp_path: Path) -> None:
    dataset = Digits(config(tmp_path))
    scans = load_digits()
    for items, rows in (
        (dataset.train_x, slice(0, 800)),
        (dataset.val, slice(800, 1000)),
        (dataset.test, slice(1000, None)),
    ):
        assert [item.label for item in items] == scans.target[rows].tolist()
    with Image.open(dataset.test[0].impath) as image:
        pixels = np.asarray(image)
    assert np.ptp(pixels, axis=-1).max() == 0
    knots = pixels[::7, ::7, 0] / 255  # where the enlarged image coincides with the scan's pixels
    assert knots == pytest.approx(np.pad(scans.images[1000] / 16, 1), abs=0.003)


@pytest.mark.slow
def test_the_source_is_large_enough_for_16_shots_and_a_stable_test_accuracy() -> None:
    dataset = ShapesNet(config())
    for items, least in ((dataset.train_x, 16), (dataset.val, 4), (dataset.test, 20)):
        assert min(np.bincount([item.label for item in items])) >= least
        assert all(item.classname == SHAPESNET[item.label].name for item in items)
        assert all(item.classid == SHAPESNET[item.label].id for item in items)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ShapesNetA", "ShapesNetR", "Paints", "Textures", "Tiles", "Gadgets", "Silhouettes"])
def test_every_dataset_of_the_suite_draws_and_loads(name: str) -> None:
    load_plugins()
    dataset = build_dataset(config(NAME=name))  # in the cache, shared with other tests
    assert isinstance(dataset, DATASET_REGISTRY.get(name))
    counts = np.bincount([item.label for item in dataset.train_x])
    assert len(counts) == dataset.num_classes
    assert counts.min() >= 16
