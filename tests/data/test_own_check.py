"""The check of a user's own data: how it is interpreted, what it contains, and its problems and warnings."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dassl_lite.data.feature_files import FeatureFile, FeaturePart, write_feature_file
from dassl_lite.data.own_check import check_own_data, near_names


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two splits with two classes of ten images each, all different."""
    for number, folder in enumerate(("Train/ant", "Train/bee", "Test/ant", "Test/bee")):
        (tmp_path / "mine" / folder).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (64, 48), (i, number, 0)).save(tmp_path / "mine" / folder / f"{i}.png")
    return tmp_path / "mine"


def lines(texts: Sequence[str], part: str) -> str:
    """The one line that contains ``part``."""
    found = [text for text in texts if part in text]
    assert len(found) == 1, (part, texts)
    return found[0]


def test_valid_data_has_neither_problems_nor_warnings(root: Path) -> None:
    report = check_own_data(root)
    assert "<split>/<class>/<image>, train from 'Train', test from 'Test'" in report.taken
    assert (report.classes, report.counts) == (["ant", "bee"], {"train": [10, 10], "test": [10, 10]})
    assert (dict(report.formats), report.sizes) == ({"PNG": 40}, "64 x 48")
    assert report.problems == report.warnings == []


def test_the_check_writes_nothing(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    check_own_data(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_unreadable_images_are_problems_grouped_by_reason(root: Path) -> None:
    intact = (root / "Train/ant/0.png").read_bytes()
    (root / "Train/ant/0.png").write_bytes(intact[:-20])
    (root / "Train/ant/1.png").write_bytes(b"")
    (root / "Train/ant/2.png").write_bytes(b"<html>")
    problems = check_own_data(root).problems
    assert "2 images (Train/ant/1.png, Train/ant/2.png)" in lines(problems, "not an image in a format that is read")
    assert "Train/ant/0.png" in " ".join(problems)


def test_duplicates_are_reported_within_and_across_splits_and_classes(root: Path) -> None:
    for source, target in (
        ("Train/ant/0.png", "Test/ant/copy.png"),
        ("Train/bee/0.png", "Train/ant/copy.png"),
        ("Test/bee/1.png", "Test/bee/copy.png"),
    ):
        shutil.copyfile(root / source, root / target)
    warnings = check_own_data(root).warnings
    assert "1 (Train/ant/0.png = Test/ant/copy.png)" in lines(warnings, "in two splits")
    assert "1 (Train/ant/copy.png = Train/bee/0.png)" in lines(warnings, "in two classes")
    assert "1 (Test/bee/1.png = Test/bee/copy.png)" in lines(warnings, "twice in a class")


def test_empty_small_and_unbalanced_classes_are_reported(root: Path, tmp_path: Path) -> None:
    (root / "Train/cat").mkdir()
    (root / "Train/dog").mkdir()
    Image.new("RGB", (64, 48), "white").save(root / "Train/dog/0.png")
    report = check_own_data(root)
    assert "1 (cat)" in lines(report.problems, "without train images")
    assert "2 (cat, dog)" in lines(report.warnings, "without test images")
    assert "'bee' has 10 images, 'dog' 1" in lines(report.warnings, "unbalanced")
    unsplit = check_own_data(root / "Train")
    assert unsplit.counts == {"": [10, 10, 0, 1]}
    assert "'dog' 1" in lines(unsplit.problems, "too few images for train, val and test")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat", "cats"], 1),
        (["airplane", "aeroplane"], 0),  # they differ in two letters
        (["mushroom", "mushrom"], 1),
        (["Mushroom", "mush room"], 1),
        (["class 1", "class 2"], 0),
        (["boot", "boat"], 0),
        (["cat", "dog", "horse"], 0),
    ],
)
def test_similar_class_names_are_reported(names: list[str], expected: int) -> None:
    assert len(near_names(names)) == expected


@pytest.mark.slow
def test_comparing_the_names_of_many_classes_is_fast() -> None:
    assert near_names([f"kind {'abcdefghij'[i % 10] * 9} {i}" for i in range(5000)]) == []


def test_classes_with_equal_or_numeric_names_are_reported(root: Path) -> None:
    for name in ("Ant", "3"):
        shutil.copytree(root / "Test/ant", root / "Train" / name)
    warnings = check_own_data(root).warnings
    assert "'Ant' (labels 1, 2)" in lines(warnings, "the same name")
    assert "(3)" in lines(warnings, "called by numbers")


def test_unusual_sizes_and_bit_depths_are_reported(root: Path) -> None:
    for name, size in (("small", (20, 16)), ("long", (500, 60)), ("large", (600, 500))):
        Image.new("RGB", size).save(root / "Train/ant" / f"{name}.png")
    Image.fromarray(np.full((48, 64), 4000, np.uint16)).save(root / "Train/bee/wide.png")
    warnings = check_own_data(root).warnings
    assert "Train/ant/small.png 20 x 16" in lines(warnings, "less than 32 pixels")
    assert "Train/ant/long.png 500 x 60" in lines(warnings, "times as long as wide")
    assert "Train/ant/large.png 600 x 500" in lines(warnings, "times as large as typical")
    assert "Train/bee/wide.png" in lines(warnings, "more than 8 bits")


def test_skipped_files_are_reported_by_kind(root: Path) -> None:
    for name in ("a.h5", "b.txt", "c.txt"):
        (root / "Train/ant" / name).touch()
    assert "2 .txt, 1 .h5" in lines(check_own_data(root).warnings, "Skipped in")


def test_a_table_is_checked_like_a_folder(root: Path) -> None:
    rows = [f"Train/{name}/{i}.png,{name}" for name in ("ant", "bee") for i in range(10)]
    (root / "mine.csv").write_text("\n".join(["path,classname", *rows, "Train/gone.png,bee"]) + "\n")
    report = check_own_data(root / "mine.csv")
    assert (report.taken, report.counts) == ("a table of 21 images, not split", {"": [10, 11]})
    assert "1 image (Train/gone.png)" in lines(report.problems, "no such file")


def test_features_are_reported_with_their_backbone_and_width(tmp_path: Path) -> None:
    part = FeaturePart(np.ones((1, 2, 5), np.float32), np.array([0, 1]))
    for backbone, name in (("ViT-B/16", "ViT-B/16"), ("", "an unnamed backbone")):
        file = FeatureFile({"test": part}, ("ant", "bee"), np.zeros((0, 2, 5), np.float32), backbone=backbone)
        write_feature_file(file, tmp_path / "mine.npz")
        report = check_own_data(tmp_path / "mine.npz")
        assert (report.taken, report.classes) == (f"features of {name}, 5 dimensions", ["ant", "bee"])


def test_data_only_for_testing_is_not_a_problem(root: Path) -> None:
    shutil.rmtree(root / "Train")
    report = check_own_data(root)
    assert (report.problems, report.trainable) == ([], False)
    assert "only test images" in lines(report.warnings, "test images")


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent", "there is no folder"), ("absent.csv", "cannot read the table"), ("absent.npz", "absent.npz")],
)
def test_unreadable_data_is_one_problem_in_one_line(tmp_path: Path, name: str, message: str) -> None:
    (problem,) = check_own_data(tmp_path / name).problems
    assert message in problem


def test_class_folders_with_different_names_in_prompts_are_shown(root: Path) -> None:
    (root / "classnames.json").write_text('{"ant": "garden ant"}')
    report = check_own_data(root)
    assert (report.classes, report.folders) == (["garden ant", "bee"], {"garden ant": "ant"})
