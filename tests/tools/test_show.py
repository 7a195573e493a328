"""tools/show.py: the images of each class are shown below its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dassl_lite.data import DatasetBase, Datum
from dassl_lite.data.feature_files.dataset import FeatureDataset
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.tools import show
from dassl_lite.utils import UserError

COLOURS = ("red", "green", "blue")


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetBase:
    """Three classes of five single-coloured images; no validation images."""
    items = []
    for label, colour in enumerate(COLOURS):
        for number in range(5):
            path = tmp_path / f"{colour}{number}.png"
            Image.new("RGB", (30, 20), colour).save(path)
            items.append(Datum(str(path), label, classname=colour))
    return DatasetBase(train_x=items, test=items[::-1])


def test_chosen_classes_are_spread_evenly_over_the_labels(dataset: DatasetBase) -> None:
    assert list(show.choose(dataset, "test", 24, 2)) == list(COLOURS)
    assert list(show.choose(dataset, "train", 2, 2)) == ["red", "green"]
    assert all(len(items) == 2 for items in show.choose(dataset, "train", 3, 2).values())


def test_a_split_without_images_is_an_error(dataset: DatasetBase) -> None:
    with pytest.raises(UserError, match="no val images"):
        show.choose(dataset, "val", 24, 2)


def test_each_image_is_shown_below_its_class_name(dataset: DatasetBase) -> None:
    sheet = show.contact_sheet(show.choose(dataset, "test", 24, 2), tile=40)
    width = 2 * (40 + show.GAP) + show.MARGIN
    for column, colour in enumerate(COLOURS):
        middle = (show.MARGIN + column * width + 20, show.MARGIN // 2 + show.NAME_HEIGHT + 20)
        assert sheet.getpixel(middle) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))


def test_a_long_name_stays_within_its_column(dataset: DatasetBase) -> None:
    def corner(name: str) -> bytes:
        sheet = show.contact_sheet({name: dataset.test[:1], "x": dataset.test[:1]}, tile=40)
        right = show.MARGIN + 40 + show.GAP
        return sheet.crop((right, 0, right + show.MARGIN, show.NAME_HEIGHT)).tobytes()

    assert corner("long " * 20) == corner("a")


@pytest.mark.slow
def test_a_sheet_of_a_registered_dataset_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "sheet.png"
    argv = ["Digits", "--root", str(tmp_path), "--split", "val", "--out", str(out), "VERBOSE", "False"]
    assert run_tool(show.main, argv) == 0
    assert "10 of 10 classes of Digits, val images" in capsys.readouterr().out
    with Image.open(out) as image:
        assert image.format == "PNG"


@pytest.mark.parametrize("named", ["Gadgets", "gadgets", "configs/datasets/gadgets.yaml"])
def test_a_dataset_is_selected_by_registered_name_or_yaml(tmp_path: Path, named: str) -> None:
    args = show.make_parser().parse_args([named, "--root", str(tmp_path)])
    load_plugins()
    assert show.config_of(args).DATASET.NAME == "Gadgets"


def test_the_users_own_images_are_shown_under_the_name_of_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for colour in COLOURS:
        (tmp_path / "Photos" / colour).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (30, 20), colour).save(tmp_path / "Photos" / colour / f"{number}.png")
    assert run_tool(show.main, ["--data", "Photos"]) == 0
    assert capsys.readouterr().out == "photos-test.png: 3 of 3 classes of Photos, test images\n"
    assert (tmp_path / "photos-test.png").is_file()


@pytest.mark.slow
def test_user_errors_print_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool(show.main, ["Digit", "--root", str(tmp_path)]) == 2
    assert "Digits" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "sheet.png")
    assert run_tool(show.main, ["Digits", "--root", str(tmp_path), "--out", out]) == 2
    assert "cannot write" in capsys.readouterr().err
    features = tmp_path / "x.npz"
    np.savez(features)
    monkeypatch.setattr(show, "build_dataset", lambda cfg: FeatureDataset.__new__(FeatureDataset))
    assert run_tool(show.main, ["--data", str(features)]) == 2
    assert capsys.readouterr().err == f"Error: {features} has features and no images to show\n"
