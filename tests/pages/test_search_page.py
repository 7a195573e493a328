"""`report.py SEARCH --html`: the page of a search shows its trials and works in a browser."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from browser import PHONE, opened

from dassl_lite.engine.commands import tune as commands
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.search_space import Dimension
from dassl_lite.engine.commands.search_trial import COMPLETE, FAILED, PRUNED, Result, Search
from dassl_lite.engine.commands.tune import read_search
from dassl_lite.pages.base import render
from dassl_lite.pages.search import search_page
from dassl_lite.tools import report

pytest.importorskip("plotly")
pytest.importorskip("optuna")
HOSTILE = "<img src=x onerror='window.hit=1'>&$x$"
SPACE = (
    Dimension("OPTIM.LR", (), 1e-4, 1.0, is_log=True),
    Dimension("OPTIM.MAX_EPOCH", (), 1.0, 9.0, is_integer=True),
    Dimension("TRAINER.TaskRes.RESIDUAL_ON", ("text", HOSTILE)),
)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve trials: the eighth is the best, one was pruned, and one failed."""
    folder = tmp_path_factory.mktemp("search")
    shared: Any = {"dataset_file": "", "method_file": "", "flags": {}, "options": [], "allow_new_keys": False}
    study = commands.Study(Search("TaskRes", shared, SPACE, folder, trials=12))
    for number in range(12):
        values = 10.0 ** -(number % 4), 1 + number % 9, "text" if number % 3 else HOSTILE
        params = {key.key: value for key, value in zip(SPACE, values, strict=True)}
        one = Result(number, params, COMPLETE, 60.0 + number - 5 * abs(number - 7), "accuracy", {1: 50.0}, [1.0], 2.0)
        if number == 2:
            one.state, one.reports = PRUNED, {1: 40.0, 3: 41.5}
        if number == 4:
            one.state, one.reason, one.reports = FAILED, f"no {HOSTILE}", {}
        study.add(one)
    commands.write_table(study, folder / commands.TABLE)
    header = ["TaskRes: the best of 12 trials.", "Run:    python tools/train.py --trainer TaskRes"]
    header.append("Source: python tools/tune.py --trainer TaskRes (trial 7; 10 complete)")
    commands.write_recipe({"OPTIM": {"LR": 0.1}}, header, folder / commands.RECIPE)
    return folder


@pytest.fixture(scope="module")
def page(search: Path) -> Path:
    path = search.parent / "search.html"
    assert run_tool(report.main, [str(search), "--html", str(path)]) == 0
    return path


def charts_in(text: str) -> list[Any]:
    return [json.loads(chart) for chart in re.findall(r'<script type="application/json">(.*?)</script>', text)]


@pytest.mark.slow
def test_the_page_shows_the_numbers_of_the_search(search: Path, page: Path) -> None:
    found = read_search(search)
    assert found.space == SPACE
    assert found.best is not None
    assert (found.best.number, found.best.value) == (7, 67.0)
    text = page.read_text(encoding="utf-8")
    assert text == render(search_page(found))
    first, *slices = charts_in(text)
    complete, pruned, best = first["data"]
    assert complete["x"] == [0, 1, 3, 5, 6, 7, 8, 9, 10, 11]
    assert complete["y"][:3] == [25.0, 31.0, 43.0]
    assert (pruned["x"], pruned["y"]) == ([2], [41.5])
    assert best["y"] == [25.0, 31.0, 31.0, 43.0, 43.0, 55.0, 61.0, 67.0, 67.0, 67.0, 67.0, 67.0]
    assert [chart["data"][1]["x"] for chart in slices[:3]] == [[0.001], [8], ["text"]]
    assert slices[0]["layout"]["xaxis"]["type"] == "log"
    worst, best_line = slices[3]["data"][0], slices[3]["data"][-1]
    assert worst["y"][-2] == 0.0  # of the accuracy
    assert best_line["y"][:-1] == pytest.approx([0.25, 0.875, 0.0, 1.0])
    assert sum(100 * value for value in found.importances.values()) == pytest.approx(100)
    with open(search / commands.TABLE, encoding="utf-8") as file:
        for row in csv.DictReader(file):
            assert row["state"] in text
    counts, source = "10 complete, 1 pruned, 1 failed", "python tools/tune.py --trainer TaskRes</pre>"
    for expected in (counts, source, "seed 1", "LR: 0.1"):
        assert expected in text
    assert "window.hit=1'>" not in text


@pytest.mark.slow
def test_a_folder_without_a_search_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(tmp_path), "--html", str(tmp_path / "page.html")]
    (tmp_path / commands.STORE).write_text("this is no database, though it has some length to it " * 9)
    assert run_tool(report.main, words) == 2
    assert "study.db is not the file of a search" in capsys.readouterr().err
    assert run_tool(report.main, [*words, "--metric", "ece"]) == 2
    assert "--metric has no effect on the page of a search" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
def test_a_browser_shows_the_page_of_a_search(browser: Any, page: Path) -> None:
    with opened(browser, page) as found:
        shown = found.page
        assert shown.locator(".plot").count() == 6
        table = shown.locator("#all-trials")
        assert table.locator("tbody tr").first.inner_text().split("\t")[:3] == ["7", "complete", "67.00"]
        table.get_by_role("button", name="trial").click()
        table.get_by_role("button", name="trial").click()
        assert table.locator("tbody tr").first.inner_text().split("\t")[0] == "0"
        table.get_by_label("Filter the rows").fill("pruned")
        assert table.locator(".count").inner_text() == "1 of 12"
        shown.locator("#trials .plot").scroll_into_view_if_needed()
        assert "best so far" in shown.locator("#trials .plot").text_content()
        shown.get_by_label("Light or dark").click()
        assert shown.evaluate("window.hit") is None
        assert (found.complaints, found.requests, found.overflow()) == ([], [], 0)
    with opened(browser, page, dark=True, size=PHONE) as found:
        assert (found.complaints, found.requests, found.overflow()) == ([], [], 0)
