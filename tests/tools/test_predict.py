"""tools/predict.py: reads files, folders, patterns and lists; writes tables, files and a page."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dassl_lite import FewShotClassifier
from dassl_lite.classifier import Prediction
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.tools import predict


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images, one of them named like a config key, and a broken one."""
    folder = tmp_path_factory.mktemp("predict") / "pictures"
    (folder / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.jpg", "TEST.JPG", "below/d.png", "below/<e>.png"):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved zero-shot classifier, which needs no training."""
    folder = tmp_path_factory.mktemp("predict") / "clf"
    classes = ["circle", "square", "<b>star</b>"]
    FewShotClassifier(classes=classes, options={"DATALOADER.NUM_WORKERS": 0}).save(folder)
    return folder


def run(saved: Path, *words: object) -> int:
    return run_tool(predict.main, ["--model-dir", str(saved), *map(str, words)])


def expected(saved: Path, paths: list[Path]) -> Any:
    return FewShotClassifier.load(saved).predict_proba(list(map(str, paths)))


@pytest.mark.slow
def test_every_way_to_name_images_finds_them(
    images: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "found.csv"
    monkeypatch.chdir(images)
    monkeypatch.setattr("sys.stdin", io.StringIO("a.png\n\nc.jpg\n"))
    assert run(saved, "below", "*.png", "TEST.JPG", "-", "--output", out, "--top-k", 2) == 0
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    names = [row["image"] for row in rows]
    assert names == ["below/<e>.png", "below/d.png", "a.png", "b.png", "TEST.JPG", "a.png", "c.jpg"]
    proba = np.sort(expected(saved, [images / name for name in names]), axis=1)[:, ::-1]
    found = [[float(row["probability"]), float(row["probability_2"])] for row in rows]
    np.testing.assert_allclose(found, proba[:, :2], rtol=1e-4)


class Trickle(io.BytesIO):
    """A pipe that yields a few bytes at a time."""

    def read1(self, size: int | None = -1, /) -> bytes:
        return self.read(3)


LISTS = [
    (b"a.png\n\nb c.png\r\n  \nd.png", ["a.png", "b c.png", "d.png"]),
    (b"a\nb.png\0 \0\0c\r\n.png\0", ["a\nb.png", " ", "c\r\n.png"]),
    (b"a\nb.png\0last", ["a\nb.png", "last"]),
    (b"caf\xe9.png\n", ["caf\udce9.png"]),
    (b"x/" * 5000 + b"\na.png\n", ["x/" * 5000, "a.png"]),
    (b"", []),
]


@pytest.mark.parametrize("pipe", [io.BytesIO, Trickle])
@pytest.mark.parametrize(("given", "paths"), LISTS)
def test_a_list_has_one_path_per_line_or_nul_separators(given: bytes, paths: list[str], pipe: Any) -> None:
    assert list(predict.listed_paths(pipe(given))) == paths


def test_an_unreadable_image_is_reported_and_the_rest_is_predicted(
    images: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    out = tmp_path / "found.json"
    assert run(saved, images / "a.png", broken, images / "b.png", "--output", out) == 0
    shown = capsys.readouterr()
    assert "Warning: 1 image could not be read: " in shown.err
    assert "broken.png  (unreadable)" in shown.out
    rows = json.loads(out.read_text())
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    assert rows[1]["class"] is None
    assert run(saved, broken, "--on-error", "raise") == 2
    assert "broken.png" in capsys.readouterr().err


def test_the_terminal_shows_bars_and_counts(images: Path, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(saved, images, "--top-k", 3, "--unknown-below", 0.99) == 0
    shown = capsys.readouterr().out
    assert shown.count("█") > 5
    assert "6 pictures:" in shown
    assert "(unknown)" in shown


def test_the_page_sorts_images_by_confidence_and_escapes_their_names(images: Path, saved: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert run(saved, images, "--thumbnails", page) == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("<img") == 6
    assert "<e>" not in text
    assert "<b>" not in text
    shares = [float(part.split("<br>")[1].split(" %")[0]) for part in text.split("<figcaption>")[1:]]
    assert shares == sorted(shares, reverse=True)


WRONG = [
    (["--output", "x.txt", "a.png"], ".parquet"),
    (["--thumbnails", "x.png", "a.png"], ".html"),
    (["--top-k", "4", "a.png"], "1 to 3"),
    (["--unknown-below", "2", "a.png"], "0 to 1"),
    (["--on-error", "stop", "a.png"], "--on-error"),
    (["--device", "tpu", "a.png"], "tpu"),
    (["nothing.png"], "no file or folder 'nothing.png'"),
    (["*.tiff"], "matches no file"),
    ([], "name pictures"),
    (["-", "-"], "twice"),
    (["--output", "no/such\0.csv", "a.png"], "NUL"),
    (["--thumbnails", "folder.html", "a.png"], "folder.html' is a folder; name a file"),
    (["--output", "folder.csv", "a.png"], "folder.csv' is a folder; name a file"),
    (["--thumbnails", "a.png/page.html", "a.png"], "--thumbnails 'a.png/page.html' cannot be written"),
]


@pytest.mark.parametrize(("words", "text"), WRONG)
def test_a_user_error_prints_one_line(
    images: Path,
    saved: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(images)
    for name in ("folder.html", "folder.csv"):
        (images / name).mkdir(exist_ok=True)
    assert run(saved, *words) == 2
    shown = capsys.readouterr()
    *before, last = shown.err.splitlines()
    assert text in last
    assert not shown.out  # the error comes before the first image
    assert all(line.startswith("Warning: ") for line in before)


@pytest.mark.parametrize(("folder", "text"), [("", "--model-dir is missing"), ("no-such", "no folder 'no-such'")])
def test_predicting_without_a_model_is_an_error(
    images: Path, capsys: pytest.CaptureFixture[str], folder: str, text: str
) -> None:
    assert run_tool(predict.main, ["--model-dir", folder, str(images)]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.slow
def test_parquet_has_the_same_rows(images: Path, saved: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run(saved, images, "--output", tmp_path / "x.parquet") == 0
    assert run(saved, images, "--output", tmp_path / "x.json") == 0
    rows = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert [row["class"] for row in rows] == [row["class"] for row in json.loads((tmp_path / "x.json").read_text())]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "results.json", "../clf/config.json"])
def test_predictions_do_not_replace_a_file_of_the_classifier(
    images: Path, saved: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(saved.iterdir()), (saved / "config.json").read_bytes()
    assert run(saved, images, "--output", saved / name) == 2
    assert "is a file of the classifier itself; name another" in capsys.readouterr().err
    assert (sorted(saved.iterdir()), (saved / "config.json").read_bytes()) == before


def test_parquet_accepts_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    with predict.writing(tmp_path / "x.parquet", 1) as write:
        write(Prediction("b\udcffad.jpg", ("cat",), (0.5,)))
    assert parquet.read_table(tmp_path / "x.parquet")["image"].to_pylist() == ["b\\udcffad.jpg"]


def test_a_page_without_readable_images_does_not_mention_a_first_image() -> None:
    assert "<h1>2 pictures, the surest first</h1>" in predict.page_of([], 2)


def test_a_list_without_images_leaves_no_files(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert run(saved, "-", "--output", tmp_path / "x.csv", "--thumbnails", tmp_path / "x.html") == 2
    assert "lists no pictures" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_pattern_matches_a_file_once_despite_a_circular_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    for name in ("a.png", "below/b.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "below" / "up").symlink_to("..")
    assert list(predict.paths_of(["**/*.png"])) == ["a.png", "below/b.png"]


def test_terminal_lines_fit_80_columns_and_bars_are_aligned() -> None:
    names = ("a very long name of a class " * 8, "猫" * 60, "雪", "e\u0301", "dog")
    lines = predict.lines_of(Prediction("a.png", names, (1.0,) * 5))[1:]
    assert all(predict.columns(line) <= 80 for line in lines)
    assert len({predict.columns(line.partition("%")[0]) for line in lines}) == 1
    assert predict.columns("猫a") == 3


def test_a_line_break_in_a_file_name_does_not_break_a_terminal_line() -> None:
    for found in (
        Prediction("new\nline ü.png", ("cat",), (0.5,)),
        Prediction("new\nline ü.png", (None,), (), "broken"),
    ):
        assert predict.lines_of(found)[0].startswith("new\\nline ü.png")
        assert not any("\n" in line for line in predict.lines_of(found))
