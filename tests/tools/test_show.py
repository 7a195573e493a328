"""tools/show.py: a contact sheet that shows what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dassl_lite.data import DatasetBase, Datum
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.tools import show
from dassl_lite.utils import UserError

COLOURS = ("red", "green", "blue")


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetBase:
    """Three classes of five pictures, each in one colour; no validation pictures."""
    items = []
    for label, colour in enumerate(COLOURS):
        for number in range(5):
            path = tmp_path / f"{colour}{number}.png"
            Image.new("RGB", (30, 20), colour).save(path)
            items.append(Datum(str(path), label, classname=colour))
    return DatasetBase(train_x=items, test=items[::-1])


def test_chosen_classes_are_spread_over_all_labels_in_order(dataset: DatasetBase) -> None:
    assert list(show.choose(dataset, "test", 24, 2)) == list(COLOURS)
    assert list(show.choose(dataset, "train", 2, 2)) == ["red", "green"]
    assert all(len(items) == 2 for items in show.choose(dataset, "train", 3, 2).values())


def test_a_split_without_images_is_told(dataset: DatasetBase) -> None:
    with pytest.raises(UserError, match="no val images"):
        show.choose(dataset, "val", 24, 2)


def test_each_image_stands_under_its_class(dataset: DatasetBase) -> None:
    sheet = show.contact_sheet(show.choose(dataset, "test", 24, 2), tile=40)
    width = 2 * (40 + show.GAP) + show.MARGIN
    for column, colour in enumerate(COLOURS):
        middle = (show.MARGIN + column * width + 20, show.MARGIN // 2 + show.NAME_HEIGHT + 20)
        assert sheet.getpixel(middle) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))


def test_a_name_that_is_too_long_is_cut_and_not_written_over_its_neighbour(dataset: DatasetBase) -> None:
    def corner(name: str) -> bytes:
        sheet = show.contact_sheet({name: dataset.test[:1], "x": dataset.test[:1]}, tile=40)
        right = show.MARGIN + 40 + show.GAP
        return sheet.crop((right, 0, right + show.MARGIN, show.NAME_HEIGHT)).tobytes()

    assert corner("long " * 20) == corner("a")


def test_a_sheet_of_a_registered_dataset_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "sheet.png"
    argv = ["Digits", "--root", str(tmp_path), "--split", "val", "--out", str(out), "VERBOSE", "False"]
    assert run_tool(show.main, argv) == 0
    assert "10 of 10 classes of Digits, val images" in capsys.readouterr().out
    with Image.open(out) as image:
        assert image.format == "PNG"


def test_mistakes_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(show.main, ["Digit", "--root", str(tmp_path)]) == 2
    assert "Digits" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "sheet.png")
    assert run_tool(show.main, ["Digits", "--root", str(tmp_path), "--out", out]) == 2
    assert "cannot write" in capsys.readouterr().err
