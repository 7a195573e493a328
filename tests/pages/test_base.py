"""A page: one self-contained file that shows its input verbatim."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import PHONE, opened

from dassl_lite.pages import base
from dassl_lite.pages.base import Card, Chart, Column, DataTable, Fact, Gallery, GalleryImage, Page, Row, Section, Text
from dassl_lite.utils.errors import UserError

HOSTILE = "<script>window.hit = 1</script><img src=x onerror='window.hit=1'>&amp;\"'"
PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()


def a_page() -> Page:
    counts = np.array([[5, 0], [2, 3]], dtype=np.uint8)
    names = [base.plain(name) for name in ("cat", HOSTILE)]
    ticks = {"tickvals": [0, 1], "ticktext": names}
    heat = {
        "data": [{"type": "heatmap", "z": counts, "colorscale": "page", "hovertemplate": "%{y}: %{z} images"}],
        "layout": {"xaxis": ticks, "yaxis": ticks},
    }
    line = {"data": [{"x": [1, 2, 3], "y": [1.0, float("nan"), 2.0], "name": names[1]}], "layout": {}}
    table = DataTable(
        [Column("class"), Column("accuracy %", digits=1, bar=100), Column("images")],
        [[HOSTILE, 60.04, 5], ["nothing", None, 0], *([f"class {n}", n / 2, 10 * n] for n in range(40))],
    )
    gallery = Gallery([GalleryImage(None, HOSTILE, [(HOSTILE, 0.7), ("cat", 0.3)], HOSTILE, right=1)], HOSTILE)
    parts = [Row([Chart(heat, HOSTILE, cards={"1,0": Card([HOSTILE], [(None, HOSTILE)])}), Chart(line, title=HOSTILE)])]
    sections = [Section("Pictures", [*parts, table, gallery, Text(HOSTILE, code=True, label=HOSTILE)], HOSTILE)]
    return Page(HOSTILE, sections, HOSTILE, [Fact(HOSTILE, "91.2 %", HOSTILE)], notes=[HOSTILE])


def addresses(text: str) -> list[str]:
    """What the elements of a page link to or load."""
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(value or "" for name, value in attrs if name in ("src", "href", "srcset", "action"))

    Reader().feed(text)
    return found


def test_a_page_is_one_file_without_external_references(tmp_path: Path) -> None:
    base.write_page(a_page(), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert len(text) < base.MAX_BYTES
    assert addresses(text) == ["data:,", "#pictures"]
    assert "<script>window" not in text
    assert "<img src=x" not in text


def test_a_page_contains_the_given_numbers() -> None:
    text = base.render(a_page())
    assert '<td class="n" data-v="60.04"><i style="width:60.0%"></i><span>60.0</span></td>' in text
    assert "<span>390</span>" in text
    assert "NaN" not in text.replace(str(base._plotly()), "")


def test_arrays_are_compact_and_non_finite_numbers_are_null() -> None:
    read = json.loads(base.as_json({"a": np.array([[1, 2]], dtype=np.int64), "b": [float("inf"), np.float32(0.5)]}))
    assert read["b"] == [None, 0.5]
    assert (read["a"]["dtype"], read["a"]["shape"]) == ("i4", "1, 2")
    assert np.frombuffer(base64.b64decode(read["a"]["bdata"]), "<i4").tolist() == [1, 2]


def test_a_lone_surrogate_and_a_control_character_are_shown_as_escapes() -> None:
    text = base.render(Page("a\ud800b\x1b", [Section("s", [DataTable([Column("c")], [["x\ud800"]])])]))
    assert "a\\ud800b\\x1b" in text
    assert "<td>x\\ud800</td>" in text
    text.encode("utf-8")


def test_a_page_over_the_limit_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    big = Page("big", [], images=["data:," + "a" * 4_000_000])
    with pytest.raises(UserError, match=r"big\.html would have 8\.\d MB, but the limit is 8 MB"):
        base.write_page(big, tmp_path / "big.html")
    assert list(tmp_path.iterdir()) == []


def test_a_page_without_its_libraries_names_the_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    base._environment.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(UserError, match=r'--html needs jinja2: pip install "dassl-lite\[html\]"'):
        base.render(Page("t", []))
    base._environment.cache_clear()


@pytest.mark.slow
def test_a_browser_shows_a_page_without_errors_or_requests(browser: Any, tmp_path: Path) -> None:
    base.write_page(a_page(), path := tmp_path / "page.html")
    with opened(browser, path) as found:
        page = found.page
        assert page.evaluate("window.hit") is None
        assert page.title() == HOSTILE
        assert HOSTILE in page.locator(".plot").first.inner_text()

        # sorting by a click, filtering, paging
        first = page.locator("tbody tr").first
        page.get_by_role("button", name="accuracy %").click()
        assert first.inner_text().startswith(HOSTILE)
        page.get_by_role("button", name="accuracy %").click()
        assert first.inner_text().split("\t")[0] == "class 0"
        page.get_by_role("button", name="Next rows").click()
        assert page.locator(".count").inner_text() == "26 to 42 of 42"
        assert (
            page.locator("tbody tr").last.inner_text().startswith("nothing")
        )  # rows without a number come last in both directions
        page.get_by_label("Filter the rows").fill("CLASS 3")
        assert page.locator(".count").inner_text() == "11 of 42"

        # hovering shows a count, and its card
        plot = page.locator(".plot .nsewdrag").first
        box = plot.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
        page.wait_for_selector(".hoverlayer .hovertext")
        assert "2 images" in page.locator(".hoverlayer").first.text_content()
        assert HOSTILE in page.locator("#_card").inner_text()
        assert page.evaluate("window.hit") is None

        # no button that would send data anywhere
        titles = "[...new Set([...document.querySelectorAll('.modebar-btn')].map(one => one.dataset.title))].length"
        assert page.evaluate(titles) == 6
        assert "Share" not in page.locator(".modebar-container").first.inner_html()

        paper = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(paper) == "rgb(255, 255, 255)"
        page.get_by_label("Light or dark").click()
        assert page.evaluate(paper) == "rgb(20, 23, 27)"
        assert page.pdf()[:5] == b"%PDF-"
        assert (found.complaints, found.requests, found.overflow()) == ([], [], 0)


@pytest.mark.slow
def test_a_page_fits_a_phone_and_follows_dark_mode(browser: Any, tmp_path: Path) -> None:
    base.write_page(a_page(), path := tmp_path / "page.html")
    with opened(browser, path, dark=True, size=PHONE) as found:
        assert found.page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert (found.complaints, found.requests, found.overflow()) == ([], [], 0)
