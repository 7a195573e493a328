"""A page of sections of charts, tables and pictures, written as one self-contained HTML file.

    chart = Chart({"data": [{"x": [1, 2], "y": [3, 4]}], "layout": {"xaxis": {"title": {"text": "shots"}}}}, "Accuracy")
    table = DataTable([Column("class"), Column("accuracy %", digits=1)], [["cat", 91.25]])
    write_page(Page("A run", [Section("Overview", [Row([chart, chart]), table])]), Path("run.html"))

Figures are Plotly's, as plain values (``{"data": [...], "layout": {...}}``; NumPy arrays stay compact) or as its own
Figure. They say what is shown; colours of paper, text and grid come from the page, in light and in dark, and so does
the colour scale of a trace with ``"colorscale": "page"``, from nothing to much. All text is escaped: here in tables and
captions; within a figure, where Plotly takes some HTML, pass names from outside through `plain`.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import dassl_lite
from dassl_lite.utils.errors import UserError, printable
from dassl_lite.utils.files import atomic_path
from dassl_lite.utils.lazy import optional_module

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

EXTRA = "html"
MOST_BYTES = 8_000_000  # of a page, of which Plotly's script takes five
# Told apart by all common kinds of colour blindness, and seen on white and on black.
COLOURS = ("#3b82d6", "#e8820c", "#1a9e77", "#d1497f", "#8b6fd8", "#b8960b", "#12a5bd", "#8a8f98")
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Card:
    """What is shown beside a point of a chart while the mouse is on it.

    Attributes:
        lines: of text.
        pictures: numbers of pictures of the page, None where there is none to show, and the line under each.
    """

    lines: Sequence[str] = ()
    pictures: Sequence[tuple[int | None, str]] = ()


@dataclass(frozen=True)
class Chart:
    """A figure of Plotly.

    Attributes:
        figure: its data and layout, as plain values or as a `plotly.graph_objects.Figure`.
        caption: what a reader sees in it, in a sentence or two; "" for none.
        height: in CSS pixels.
        cards: beside a point: "row,column" of a heat map, "trace:point" of others.
        title: "" for none.
        square: a chart whose axes have one scale: in a narrow window it is lower, and names on axes may be left out.
    """

    figure: Any
    caption: str = ""
    height: int = 360
    cards: Mapping[str, Card] = field(default_factory=dict)
    title: str = ""
    square: bool = False
    kind: str = field(default="chart", init=False)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        digits: behind the point, of numbers; None shows integers with commas and others as they are.
        bar: the value whose bar fills the cell; 0 for no bars.
        about: said when the mouse is on the header.
    """

    title: str
    digits: int | None = None
    bar: float = 0.0
    about: str = ""

    def text(self, value: Any) -> str:
        """A value as the table shows it; "" for None and NaN."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if isinstance(value, str):
            return value
        return f"{value:,}" if self.digits is None else f"{value:,.{self.digits}f}"


@dataclass(frozen=True)
class Number:
    """A cell of a table that shows a text and is sorted by a number.

    Attributes:
        mark: "best", "second" or "".
    """

    text: str
    value: float
    mark: str = ""
    kind: str = field(default="number", init=False)


@dataclass(frozen=True)
class DataTable:
    """A table that a reader can sort, filter and leaf through.

    Attributes:
        rows: a value for each column: text, a number, a `Number`, None, or markup.
        caption: above it; "" for none.
        page: rows that are shown at once.
        name: of the element, to link to; "" for none.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    page: int = 25
    name: str = ""
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Picture:
    """A picture with text, in a `Gallery`.

    Attributes:
        number: of the page's picture; None where there is none to show.
        title: the first line.
        scores: text and share, from 0 to 1, of each line with a bar.
        name: of the file; shown when the mouse is on it.
        right: which of ``scores`` is the true class; None for none.
    """

    number: int | None
    title: str
    scores: Sequence[tuple[str, float]] = ()
    name: str = ""
    right: int | None = None


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side."""

    pictures: Sequence[Picture]
    title: str = ""
    caption: str = ""
    kind: str = field(default="gallery", init=False)


@dataclass(frozen=True)
class Text:
    """A paragraph or, with ``code``, lines to copy, with ``label`` as the heading of a part that is opened by hand."""

    text: str
    code: bool = False
    label: str = ""
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Html:
    """Markup of one's own, which is not escaped."""

    markup: Markup
    kind: str = field(default="html", init=False)


@dataclass(frozen=True)
class Row:
    """Parts side by side, as far as the window is wide enough."""

    parts: Sequence[Any]
    kind: str = field(default="row", init=False)


@dataclass(frozen=True)
class Section:
    """Parts under a heading, which the page's menu links to.

    Attributes:
        parts: `Chart`, `DataTable`, `Gallery`, `Text`, `Html` or `Row`.
        text: what the section is about, in a sentence or two.
    """

    title: str
    parts: Sequence[Any]
    text: str = ""

    @property
    def name(self) -> str:
        """Of the element that links lead to."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Fact:
    """A number in the head of the page: its name, its value, and a line below."""

    name: str
    value: str
    about: str = ""


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        facts: what a reader wants to know first.
        pictures: of the page, as ``data:`` addresses.
        notes: what a reader must know to believe it; at the end.
    """

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    facts: Sequence[Fact] = ()
    pictures: Sequence[str] = ()
    notes: Sequence[str] = ()


def write_page(page: Page, path: Path) -> None:
    """Write a page, whole or not at all.

    Raises:
        UserError: Jinja2 or Plotly is not installed, the file cannot be written, or would have more than `MOST_BYTES`.
    """
    data = render(page).encode("utf-8")
    if len(data) > MOST_BYTES:
        raise UserError(f"{path} would have {len(data) / 1e6:.1f} MB, more than the {MOST_BYTES / 1e6:.0f} of a page")
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def render(page: Page) -> str:
    """A page as HTML."""
    template = _environment().get_template("page.html")
    return template.render(page=page, version=dassl_lite.__version__, plotly=_plotly())


def plain(text: object) -> str:
    """Text from outside for a figure: Plotly shows it letter by letter, and takes nothing in it for a tag."""
    return html.escape(printable(text), quote=False)


def as_json(value: Any) -> Markup:
    """A value as JSON that may stand within an element ``script``; NaN is null."""
    from markupsafe import Markup

    text = json.dumps(_plain_values(value), separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _plain_values(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _compact(value) if value.dtype.kind in "iuf" else _plain_values(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain_values(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_values(one) for one in value]
    return value


def _compact(array: Any) -> Any:
    """An array of numbers as Plotly reads it: its bytes in base64."""
    if array.dtype.itemsize == 8:  # which JavaScript has for floats only
        array = array.astype(np.int32 if array.dtype.kind in "iu" else np.float64)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    found = {"dtype": array.dtype.str[1:], "bdata": base64.b64encode(array.tobytes()).decode("ascii")}
    return found if array.ndim == 1 else {**found, "shape": ", ".join(map(str, array.shape))}


def _figure(chart: Chart) -> Any:
    figure = chart.figure
    plain_figure = figure if isinstance(figure, Mapping) else figure.to_plotly_json()
    cards = {key: {"lines": card.lines, "pictures": card.pictures} for key, card in chart.cards.items()}
    return {"data": plain_figure["data"], "layout": plain_figure.get("layout", {}), "cards": cards}


@cache
def _environment() -> Environment:
    jinja2 = optional_module("jinja2", EXTRA, "--html")
    made: Environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value, "\n") if type(value) is str else value,
    )
    made.filters |= {"json": as_json, "figure": _figure}
    made.globals |= {"COLOURS": COLOURS, "source": _source}
    return made


def _source(name: str) -> Markup:
    """A file of ours as it is: a style sheet, a script."""
    from markupsafe import Markup

    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


@cache
def _plotly() -> Markup:
    """Plotly's script, of the Python package, which brings it along."""
    from markupsafe import Markup

    script: str = optional_module("plotly.offline", EXTRA, "--html").get_plotlyjs()
    return Markup(script.replace("</script", "<\\/script"))
