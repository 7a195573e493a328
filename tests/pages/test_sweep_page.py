"""`report.py --html`: the page of a sweep shows the tables of the terminal and works in a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from browser import PHONE, opened

from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.figures import figures
from dassl_lite.engine.commands.report import make_report
from dassl_lite.engine.commands.tables import BEST, Table
from dassl_lite.pages.base import Number, render
from dassl_lite.pages.sweep import _cell, _table, sweep_page
from dassl_lite.tools import report
from dassl_lite.utils.files import write_json

pytest.importorskip("plotly")
HOSTILE = "<img src=x onerror='window.hit=1'>&amp;$x$"
BASE = {"TaskRes": 60.0, "CoOp": 57.0, HOSTILE: 8.0}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods and zero-shot CLIP on two datasets with 1, 4 and 16 shots; one run failed."""
    root = tmp_path_factory.mktemp("page") / "sweep"

    def write(method: str, dataset: str, shots: int, seed: int, value: float) -> None:
        folder = root / dataset.strip("<b>") / f"method{list(BASE).index(method) if method in BASE else ''}"
        results = {
            **{"trainer": method, "dataset": dataset, "backbone": "RN50", "num_shots": shots, "seed": seed},
            **{"metrics": {"test": {"accuracy": value, "ece": 4.0}}, "zero_shot_accuracy": 50.0, "tuned_on": "val"},
            **{"fewshot_digest": f"{dataset[-3:]}{shots:02}{seed}" + "f" * 20, "seconds": {"train": 2.0 * seed}},
            **{"trainable_parameters": 2048, "environment": {"dassl_lite": "0.1.0"}},
        }
        write_json(results, folder / f"{shots}shots-seed{seed}" / "results.json")

    for dataset, level in (("<b>one", 0.0), ("two", 10.0)):
        write("ZeroshotCLIP", dataset, -1, 1, 50.0 + level)
        for method, base in BASE.items():
            for shots in (1, 4, 16):
                for seed in (1, 2):
                    write(method, dataset, shots, seed, base + level + shots / 2 + seed)
    (root / "two" / "method1" / "16shots-seed2" / "results.json").rename(
        root / "two" / "method1" / "16shots-seed2" / "log.txt"
    )
    return root


@pytest.fixture(scope="module")
def page(sweep: Path) -> Path:
    path = sweep.parent / "report.html"
    assert run_tool(report.main, [str(sweep), "--html", str(path)]) == 0
    return path


def test_text_that_contains_a_number_is_sorted_by_it() -> None:
    table = Table(
        "", ["dataset", "4 shots", "p"], [["4 u", "61.50 ± 2.1", "< 0.001"], ["b", "-1,203.5", ""]], {(0, 1): BEST}
    )
    formatted = _table(table, "By dataset")
    assert formatted.caption == "By dataset"
    assert formatted.rows[0][:2] == ["4 u", Number("61.50 ± 2.1", 61.5, "best")]
    assert formatted.rows[0][2].value < 0.001
    assert formatted.rows[1][1:] == [Number("-1,203.5", -1203.5), None]
    assert _cell("+1.17 ± 0.72", "minus B", "").value == 1.17


@pytest.mark.slow
def test_the_page_has_every_table_of_the_terminal_and_the_missing_runs(sweep: Path, page: Path) -> None:
    report = make_report(sweep)
    text = page.read_text(encoding="utf-8")
    for table in report.tables:
        for row in table.rows:
            for cell in row:
                assert (
                    cell.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;") in text
                )
    assert "Missing: not finished (failed, stopped or still running): two/method1/16shots-seed2" in text
    assert "Missing: no result: CoOp on two, 16 shots (seed 2)" in text
    for expected in ("seed 1 one041ff", "Tables", "backbone RN50", "runs by dassl-lite 0.1.0"):
        assert expected in text
    assert 'class="n best"' in text
    assert 'class="n second"' in text
    assert "window.hit=1'>" not in text


@pytest.mark.slow
def test_the_figures_of_the_page_show_the_numbers_of_the_report(sweep: Path) -> None:
    report = make_report(sweep)
    shown = figures(report.cells)
    text = render(sweep_page(report, shown))
    charts = [json.loads(chart) for chart in re.findall(r'<script type="application/json">(.*?)</script>', text)]
    first = charts[0]["data"]
    line = next(trace for trace in first if trace["name"] == "TaskRes" and trace["mode"] == "lines+markers")
    assert line["x"] == [0.0, 2.0, 4.0]
    assert line["y"] == pytest.approx([60.0 + 5 + 1.5 + shots / 2 for shots in (1, 4, 16)])
    heat = next(chart["data"][0] for chart in charts if chart["data"][0].get("type") == "heatmap")
    assert heat["text"][0] == ["69.5", "79.5"]
    assert len(charts) == 1 + 2 + 1 + 2  # average, datasets, heat map, ranks and time
    assert all("<img" not in json.dumps(chart) for chart in charts)


@pytest.mark.slow
def test_a_browser_shows_the_page_of_a_sweep(browser: Any, page: Path) -> None:
    with opened(browser, page) as found:
        shown = found.page
        assert shown.evaluate("window.hit") is None
        assert HOSTILE in shown.locator(".plot").first.inner_text()

        # hiding a method in the average hides it in all panels, even after switching between light and dark
        hidden = (
            "[...document.querySelectorAll('.plot')].slice(0, 3)"
            ".map(plot => plot.data.filter(trace => trace.visible === 'legendonly').length)"
        )
        assert shown.evaluate(hidden) == [0, 0, 0]
        shown.locator(".plot").first.locator(".legendtoggle").nth(2).click()
        shown.wait_for_timeout(600)  # a second click would make it a double click
        assert shown.evaluate(hidden) == [2, 2, 2]  # a line and its band
        shown.get_by_label("Light or dark").click()
        assert shown.evaluate(hidden) == [2, 2, 2]

        shown.locator(".plot").nth(3).scroll_into_view_if_needed()
        box = shown.locator(".plot").nth(3).locator(".nsewdrag").bounding_box()
        shown.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 8)
        shown.wait_for_selector(".hoverlayer .hovertext")
        assert "from the dataset's median" in shown.locator(".plot").nth(3).locator(".hoverlayer").text_content()

        table = shown.locator("#tables .table").first
        table.get_by_role("button", name="16 shots").click()
        assert table.locator("tbody tr").first.inner_text().split("\t")[:2] == ["two", "TaskRes"]
        table.get_by_role("button", name="16 shots").click()
        assert table.locator("tbody tr").first.inner_text().split("\t")[1] == HOSTILE
        runs = shown.locator("#all-runs")
        runs.get_by_label("Filter the rows").fill("coop")
        assert runs.locator(".count").inner_text() == "6 of 20"
        assert shown.evaluate("window.hit") is None
        assert (found.complaints, found.requests, found.overflow()) == ([], [], 0)
    with opened(browser, page, dark=True, size=PHONE) as found:
        assert (found.complaints, found.requests, found.overflow()) == ([], [], 0)
