"""tools/prepare.py: exit codes, one-line errors and the table of checks."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

from dassl_lite.data.own_check import OwnReport
from dassl_lite.downloads import SOURCES
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.tools import prepare

FOLDER = Path(__file__).resolve().parents[2] / "tools"


def run(*arguments: str | Path) -> int:
    return run_tool(prepare.main, [str(argument) for argument in arguments])


def test_check_of_a_missing_dataset_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--check", "EuroSAT", "--root", tmp_path) == 1
    output = capsys.readouterr().out
    assert "13,500" in output
    assert f"EuroSAT: there is no folder '{tmp_path / 'eurosat/2750'}'" in output
    assert "0 of 1 in order" in output


def test_check_of_all_datasets_has_a_row_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--check", "all", "--root", tmp_path) == 1
    output = capsys.readouterr().out
    assert all(f"\n{name}  " in output for name in SOURCES)
    assert "0 of 15 in order" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_preparing_draws_a_dataset_and_the_check_finds_an_empty_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--check", "Silhouettes", "--root", tmp_path) == 0
    assert "Silhouettes: does not exist yet; it is generated on first use" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [], "a check draws nothing"
    assert run("Silhouettes", "--root", tmp_path) == 0
    assert "1 of 1 in order" in capsys.readouterr().out
    next((tmp_path / "silhouettes").rglob("*.png")).write_bytes(b"")
    assert run("--check", "Silhouettes", "--root", tmp_path) == 1
    assert "empty: 1 (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["EuroSat", "--root", "X"], "unknown dataset 'EuroSat'. Did you mean 'EuroSAT'?"),
        (["--check", "Caltech"], "Did you mean 'Caltech101'?"),
        (["EuroSAT"], "--root is missing"),
        (["--check", "EuroSAT"], "EuroSAT needs --root"),
        (["ImageFolder", "--root", "X"], "ImageFolder cannot be downloaded"),
    ],
)
def test_a_user_error_prints_one_line(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    output = capsys.readouterr().err
    assert error in output
    assert output.count("\n") == 1


def test_files_to_download_by_hand_are_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "stanford_cars"
    folder.mkdir()
    (folder / "split_zhou_StanfordCars.json").write_text('{"train": [], "val": [], "test": []}')
    assert run("StanfordCars", "--root", tmp_path) == 2
    output = capsys.readouterr()
    assert f"to {folder / 'cars_train.tgz'}, or its content as {folder / 'cars_train'}/" in output.out
    assert output.err.count("\n") == 1
    assert "download cars_train.tgz, cars_test.tgz manually" in output.err


def test_runs_as_a_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["prepare.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FOLDER / "prepare.py"), run_name="__main__")
    assert ended.value.code == 0
    assert "--keep-archives" in capsys.readouterr().out


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, colour in (("red", "red"), ("blue", "blue")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (40, 40 + number), colour).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("flag", [[], ["--data"]])
def test_check_of_user_data_shows_how_it_is_interpreted(
    photos: Path, capsys: pytest.CaptureFixture[str], flag: list[str]
) -> None:
    assert run("--check", *flag, photos) == 0
    output = capsys.readouterr().out
    assert "taken for  a folder of images, <class>/<image>, not split" in output
    assert re.search(r"^red +4$", output, re.MULTILINE)
    assert f"Ready: dassl-lite train --trainer TaskRes --shots 16 --backbone ViT-B/16 --data {photos}" in output


def test_check_of_user_data_with_a_problem_exits_with_1(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "red" / "broken.png").touch()
    assert run("--check", photos) == 1
    output = capsys.readouterr().out
    assert "Problems:\n  - unreadable" in output
    assert "Ready" not in output


def test_many_classes_are_shown_from_both_ends(tmp_path: Path) -> None:
    report = OwnReport("x", classes=[f"c{i}" for i in range(100)], counts={"": list(range(100))})
    rows = prepare.class_rows(report)
    assert [row[0] for row in (rows[0], rows[20], rows[-1])] == ["c0", "... 60 more ...", "c99"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos"], "needs no preparation; use --check to examine it"),
        ([], "nothing to prepare"),
        (["nowhere"], "unknown"),
    ],
)
def test_data_that_cannot_be_prepared_prints_one_line(
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(photos.parent)
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
