"""Builds a page of sections with charts, tables and images as one self-contained HTML file.

    chart = Chart({"data": [{"x": [1, 2], "y": [3, 4]}], "layout": {"xaxis": {"title": {"text": "shots"}}}}, "Accuracy")
    table = DataTable([Column("class"), Column("accuracy %", digits=1)], [["cat", 91.25]])
    write_page(Page("A run", [Section("Overview", [Row([chart, chart]), table])]), Path("run.html"))

Figures are Plotly figures, as plain values (``{"data": [...], "layout": {...}}``; NumPy arrays stay compact) or as a
Plotly ``Figure``. They define only the content. The colours of background, text and grid come from the page, for light
and dark mode, as does the colour scale of a trace with ``"colorscale": "page"``. Text in tables and captions is escaped
here. Within figures, where Plotly accepts some HTML, pass untrusted names through `plain`.
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
MAX_BYTES = 8_000_000  # of a page, including 5 MB for Plotly's script
# Distinguishable with all common kinds of colour blindness, and visible on white and on black.
COLOURS = ("#3b82d6", "#e8820c", "#1a9e77", "#d1497f", "#8b6fd8", "#b8960b", "#12a5bd", "#8a8f98")
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Card:
    """A tooltip for a point of a chart.

    Attributes:
        lines: lines of text.
        images: pairs of an image's number in the page (None if it has none) and the line below it.
    """

    lines: Sequence[str] = ()
    images: Sequence[tuple[int | None, str]] = ()


@dataclass(frozen=True)
class Chart:
    """A Plotly figure.

    Attributes:
        figure: its data and layout, as plain values or as a `plotly.graph_objects.Figure`.
        caption: what the figure shows, in a sentence or two; "" for none.
        height: height in CSS pixels.
        cards: tooltips by point: "row,column" in a heat map, "trace:point" in other charts.
        title: title; "" for none.
        square: both axes have the same scale; in a narrow window the chart is lower and may omit tick labels.
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
        digits: number of decimals; None shows integers with commas and other values unchanged.
        bar: the value whose bar fills the cell; 0 for no bars.
        about: tooltip of the header.
    """

    title: str
    digits: int | None = None
    bar: float = 0.0
    about: str = ""

    def text(self, value: Any) -> str:
        """A value as shown in the table; "" for None and NaN."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if isinstance(value, str):
            return value
        return f"{value:,}" if self.digits is None else f"{value:,.{self.digits}f}"


@dataclass(frozen=True)
class Number:
    """A table cell that shows a text and sorts by a number.

    Attributes:
        mark: "best", "second" or "".
    """

    text: str
    value: float
    mark: str = ""
    kind: str = field(default="number", init=False)


@dataclass(frozen=True)
class DataTable:
    """A table that a reader can sort, filter and page through.

    Attributes:
        rows: one value per column: text, a number, a `Number`, None, or markup.
        caption: caption above the table; "" for none.
        page: rows per page.
        name: id of the element, for links; "" for none.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    page: int = 25
    name: str = ""
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class GalleryImage:
    """An image with text, in a `Gallery`.

    Attributes:
        number: number of the image in the page; None if it has none.
        title: the first line.
        scores: text and share, from 0 to 1, of each line with a bar.
        name: file name, shown as a tooltip.
        right: index in ``scores`` of the true class; None if it is not among them.
    """

    number: int | None
    title: str
    scores: Sequence[tuple[str, float]] = ()
    name: str = ""
    right: int | None = None


@dataclass(frozen=True)
class Gallery:
    """A grid of images."""

    images: Sequence[GalleryImage]
    title: str = ""
    caption: str = ""
    kind: str = field(default="gallery", init=False)


@dataclass(frozen=True)
class Text:
    """A paragraph or, with ``code``, lines to copy; with ``label``, collapsed under that heading."""

    text: str
    code: bool = False
    label: str = ""
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Html:
    """Raw markup, which is not escaped."""

    markup: Markup
    kind: str = field(default="html", init=False)


@dataclass(frozen=True)
class Row:
    """Parts side by side, if the window is wide enough."""

    parts: Sequence[Any]
    kind: str = field(default="row", init=False)


@dataclass(frozen=True)
class Section:
    """Parts under a heading that the page's menu links to.

    Attributes:
        parts: `Chart`, `DataTable`, `Gallery`, `Text`, `Html` or `Row`.
        text: what the section is about, in a sentence or two.
    """

    title: str
    parts: Sequence[Any]
    text: str = ""

    @property
    def name(self) -> str:
        """Id of the element, for links."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Fact:
    """A number in the page header: its name, its value and a line below."""

    name: str
    value: str
    about: str = ""


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        facts: key numbers, in the page header.
        images: the page's images, as ``data:`` URLs.
        notes: caveats for the reader, at the end.
    """

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    facts: Sequence[Fact] = ()
    images: Sequence[str] = ()
    notes: Sequence[str] = ()


def write_page(page: Page, path: Path) -> None:
    """Write a page atomically.

    Raises:
        UserError: Jinja2 or Plotly is not installed, the file cannot be written, or it would exceed `MAX_BYTES`.
    """
    data = render(page).encode("utf-8")
    if len(data) > MAX_BYTES:
        raise UserError(f"{path} would have {len(data) / 1e6:.1f} MB, but the limit is {MAX_BYTES / 1e6:.0f} MB")
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def render(page: Page) -> str:
    """Render a page as HTML."""
    template = _environment().get_template("page.html")
    return template.render(page=page, version=dassl_lite.__version__, plotly=_plotly())


def plain(text: object) -> str:
    """Escape untrusted text for a figure, so that Plotly shows it literally and interprets no tags."""
    return html.escape(printable(text), quote=False)


def as_json(value: Any) -> Markup:
    """Convert a value to JSON that is safe inside a ``script`` element; NaN becomes null."""
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
        return {str(key): _plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_values(item) for item in value]
    return value


def _compact(array: Any) -> Any:
    """Encode a numeric array for Plotly: its bytes in base64."""
    if array.dtype.itemsize == 8:  # JavaScript has no 64-bit integers
        array = array.astype(np.int32 if array.dtype.kind in "iu" else np.float64)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    encoded = {"dtype": array.dtype.str[1:], "bdata": base64.b64encode(array.tobytes()).decode("ascii")}
    return encoded if array.ndim == 1 else {**encoded, "shape": ", ".join(map(str, array.shape))}


def _figure(chart: Chart) -> Any:
    figure = chart.figure
    plain_figure = figure if isinstance(figure, Mapping) else figure.to_plotly_json()
    cards = {key: {"lines": card.lines, "images": card.images} for key, card in chart.cards.items()}
    return {"data": plain_figure["data"], "layout": plain_figure.get("layout", {}), "cards": cards}


@cache
def _environment() -> Environment:
    jinja2 = optional_module("jinja2", EXTRA, "--html")
    environment: Environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value, "\n") if type(value) is str else value,
    )
    environment.filters |= {"json": as_json, "figure": _figure}
    environment.globals |= {"COLOURS": COLOURS, "source": _source}
    return environment


def _source(name: str) -> Markup:
    """The content of a style sheet or script of the templates, unescaped."""
    from markupsafe import Markup

    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


@cache
def _plotly() -> Markup:
    """Plotly's script, which is part of its Python package."""
    from markupsafe import Markup

    script: str = optional_module("plotly.offline", EXTRA, "--html").get_plotlyjs()
    return Markup(script.replace("</script", "<\\/script"))
