"""A sweep's figures as files for a paper: PNG, SVG and PDF by matplotlib, and LaTeX that includes them with captions.

Text remains text in PDF (TrueType) and SVG. Widths are those of a two-column article: `COLUMN` or `PAGE`. Matplotlib's
settings and backend are left unchanged for the rest of the process, and equal numbers give identical files.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dassl_lite.engine.commands.figures import (
    COLOURS,
    MARKERS,
    Figures,
    HeatMap,
    Panel,
    RankDiagram,
    Style,
    ends,
    limits,
    positions_of,
    tick,
)
from dassl_lite.engine.commands.residuals import Residual, Residuals, captions_of
from dassl_lite.engine.commands.tables import escape_latex
from dassl_lite.utils import UserError, atomic_path
from dassl_lite.utils.errors import printable
from dassl_lite.utils.lazy import optional_module

COLUMN, PAGE = 3.35, 6.9  # inches
Drawing = Callable[[Any], Any]  # draws on a matplotlib Figure
FORMATS = ("png", "svg", "pdf")
TEXT = "#1a1a1a"
_MARKERS = "os^DvP<X>*p"
_LINES = ("-", (0, (4, 1.5)), (0, (4, 1.2, 1, 1.2)), (0, (1, 1.2)))
assert len(_MARKERS) == MARKERS
_SETTINGS: dict[str, Any] = {
    **{"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "dassl-lite"},
    **{"font.size": 7, "axes.titlesize": 7, "axes.labelsize": 7, "xtick.labelsize": 6, "ytick.labelsize": 6},
    **{"legend.fontsize": 6.5, "legend.frameon": False, "legend.handlelength": 2.6, "legend.columnspacing": 1.2},
    **{"axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5},
    **{"ytick.major.size": 2.5, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False},
    **{"text.color": TEXT, "axes.labelcolor": TEXT, "xtick.color": TEXT, "ytick.color": TEXT, "axes.edgecolor": TEXT},
    **{"text.usetex": False, "figure.dpi": 100, "savefig.dpi": 300, "axes.unicode_minus": True},
    **{"font.family": "sans-serif", "axes.grid": False, "savefig.bbox": None},
}
_WITHOUT_DATE: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}


def draw(figures: Figures | None, folder: Path, residuals: Sequence[Residuals] = ()) -> list[Path]:
    """Write the figures of a sweep into ``folder``, and ``figures.tex`` with their captions.

    Args:
        figures: the figures; None to draw only residuals.
        residuals: residuals of the methods that have them.

    Returns:
        Paths of the figures, without suffixes.

    Raises:
        UserError: matplotlib is not installed, or the folder cannot be written.
    """
    drawings: dict[str, Drawing] = {}
    captions: dict[str, str] = {}
    if figures:
        captions |= figures.captions
        drawings |= {"accuracy": partial(_field, figures), "heatmap": partial(_heat, figures.heat)}
        if figures.ranks:
            drawings["ranks"] = partial(_ranks, figures.ranks)
        if figures.costs:
            drawings["time"] = partial(_time, figures)
    for number, residual in enumerate(residuals, start=1):
        for name, caption in captions_of(residual).items():
            key = name if number == 1 else f"{name}-{number}"
            captions[key] = caption
            drawings[key] = partial(_residuals if name == "residuals" else _residuals_by_class, residual)
    return write(drawings, captions, folder)


def write(drawings: Mapping[str, Drawing], captions: Mapping[str, str], folder: Path) -> list[Path]:
    """Write figures into ``folder`` in all formats.

    Args:
        drawings: name -> function that draws the figure on a matplotlib ``Figure``.
        captions: name -> caption.
    """
    with _style():
        from matplotlib.figure import Figure

        paths = []
        for name, drawing in drawings.items():
            figure = Figure(layout="constrained")
            drawing(figure)
            paths.append(folder / name)
            _save(figure, folder / name)
    with _writing(folder), atomic_path(folder / "figures.tex") as temporary:
        temporary.write_text(_latex(drawings, captions, folder), encoding="utf-8")
    return paths


@contextmanager
def _style() -> Iterator[None]:
    """A context with matplotlib settings for papers."""
    matplotlib = optional_module("matplotlib", "plots", "--plots")
    with matplotlib.rc_context(_SETTINGS):
        yield


def _save(figure: Any, path: Path) -> None:
    with _writing(path.parent), warnings.catch_warnings():
        path.parent.mkdir(parents=True, exist_ok=True)
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box is drawn instead
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # one layout serves all formats
        for kind in FORMATS:
            with atomic_path(path.parent / f"{path.name}.{kind}") as temporary:
                figure.savefig(temporary, format=kind, metadata=_WITHOUT_DATE[kind])


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None


def _latex(names: Mapping[str, Any], captions: Mapping[str, str], folder: Path) -> str:
    """LaTeX for a document that uses graphicx and whose \\graphicspath contains the folder."""
    lines = [
        r"% \usepackage{graphicx}, and \graphicspath{{FOLDER/}} with the folder of the figures",
        r"\makeatletter % a figure keeps its size unless the text is narrower",
        r"\def\maxwidth{\ifdim\Gin@nat@width>\linewidth\linewidth\else\Gin@nat@width\fi}",
        r"\makeatother",
    ]
    for name in names:
        lines += [
            r"\begin{figure*}",
            r"\centering",
            rf"\includegraphics[width=\maxwidth]{{{name}.pdf}}",
            rf"\caption{{{escape_latex(captions[name])}}}",
            rf"\label{{fig:{name}}}",
            r"\end{figure*}",
        ]
    return "\n".join(lines) + "\n"


def label(text: str, width: int = 26) -> str:
    """A name as shown in figures: printable and shortened. Legends omit names that start with an underscore."""
    text = printable(text)
    text = text if len(text) <= width else f"{text[: width - 9]}…{text[-8:]}"
    return f"\N{ZERO WIDTH SPACE}{text}" if text.startswith("_") else text


# ---- accuracy over shots ----------------------------------------------------------------------------------------


def _field(figures: Figures, figure: Any) -> None:
    """Draw a panel per dataset and one for the average, with a common legend."""
    rows = math.ceil(len(figures.panels) / 4)
    columns = math.ceil(len(figures.panels) / rows)
    width = COLUMN if columns == 1 else PAGE
    legend = _legend(figure, figures.styles, width, lines=True)
    figure.set_size_inches(width, (2.4 if columns < 3 else 1.55) * rows + legend + 0.25)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for number, (axis, panel) in enumerate(zip(axes, figures.panels, strict=False)):
        _panel(axis, panel, figures)
        if number % columns == 0:
            axis.set_ylabel(figures.metric.capitalize())
        if number + columns >= len(figures.panels):
            axis.set_xlabel("Training images per class")
    for axis in figure.axes[len(figures.panels) :]:
        axis.remove()


def _panel(axis: Any, panel: Panel, figures: Figures) -> None:
    positions = positions_of(figures.numbers)
    several = len(figures.numbers) > 1
    crowded = len(panel.curves) > 9
    values = [point.mean for curve in panel.curves for point in curve.points.values()]
    for curve in panel.curves:
        style = figures.styles[curve.method]
        colour = style.colour or TEXT
        if not curve.uses_shots:
            axis.axhline(
                next(iter(curve.points.values())).mean, color=colour, lw=0.9, ls=_LINES[style.line or 1], zorder=1.5
            )
            continue
        x = [positions[number] for number in curve.shown]
        means = [point.mean for point in curve.shown.values()]
        marker: dict[str, Any] = {**_marker(style, 2.6 if crowded else 3.4), "mew": 0.3, "color": colour}
        if several:
            axis.plot(x, means, lw=0.8 if crowded else 1.1, ls=_LINES[style.line], **marker)
            low, high = zip(*(ends(point) for point in curve.shown.values()), strict=True)
            axis.fill_between(x, low, high, color=colour, alpha=0.05 if crowded else 0.14, lw=0)
        else:
            shift = (figures.methods.index(curve.method) + 0.5) / len(figures.methods) - 0.5
            half = [point.half or 0.0 for point in curve.shown.values()]
            axis.errorbar([x[0] + 0.8 * shift], means, half, lw=0, elinewidth=0.7, **marker)
    axis.set_title(
        label(panel.title, 30),
        fontweight="bold" if panel is figures.panels[0] and len(figures.panels) > 1 else "normal",
        pad=3,
    )
    axis.set_xticks(list(positions.values()), [tick(number) for number in positions])
    axis.set_xlim(
        min(positions.values()) - 0.3 - 0.3 * (not several), max(positions.values()) + 0.3 + 0.3 * (not several)
    )
    if values:
        axis.set_ylim(*limits(panel))
    axis.grid(axis="y", lw=0.4, color="#dddddd")
    axis.set_axisbelow(True)


def _legend(figure: Any, styles: Mapping[str, Style], width: float, *, lines: bool) -> float:
    """Draw a legend below a figure; returns its approximate height in inches."""
    from matplotlib.lines import Line2D

    names = [label(name) for name in styles]
    handles = [
        Line2D(
            [],
            [],
            color=style.colour or TEXT,
            ls=_LINES[style.line] if lines else "none",
            lw=1.0,
            mew=0.3,
            **({} if lines and not style.colour else _marker(style, 4.0)),
        )
        for style in styles.values()
    ]
    longest = max(map(len, names))
    columns = max(1, min(len(names), int(width / (0.06 * longest + (0.55 if lines else 0.3)))))
    length = {} if lines else {"handlelength": 0.8}
    figure.legend(handles, names, loc="outside lower center", ncols=columns, **length)
    return 0.14 * math.ceil(len(names) / columns) + 0.1


def _marker(style: Style, size: float) -> dict[str, Any]:
    """Settings of a method's marker, sized so that all kinds look about equally large."""
    kind = _MARKERS[style.marker]
    return {"marker": kind, "ms": size * {"D": 0.8, "*": 1.45, "s": 0.92}.get(kind, 1.05), "mec": "white"}


# ---- methods x datasets -----------------------------------------------------------------------------------------


def _heat(heat: HeatMap, figure: Any) -> None:
    several = len(heat.datasets) > 1
    columns = len(heat.datasets) + several
    width = max(COLUMN, min(PAGE, 1.5 + 0.46 * columns))
    figure.set_size_inches(width, max(1.6, 0.9 + 0.17 * len(heat.methods)))
    axis = figure.subplots()
    contrast, values = heat.contrast, heat.values
    if several:  # the average is a separate column, without colour
        contrast = np.column_stack([contrast, np.full(len(heat.methods), np.nan)])
        values = np.column_stack([values, heat.averages])
    axis.hlines(np.arange(1, len(heat.methods)) - 0.5, -0.5, columns - 0.5, color="white", lw=0.7)
    axis.vlines(np.arange(1, columns) - 0.5, -0.5, len(heat.methods) - 0.5, color="white", lw=0.7)
    image = axis.imshow(contrast, cmap="RdBu", vmin=-heat.limit, vmax=heat.limit, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        strong = abs(contrast[row, column]) > 0.6 * heat.limit
        text = "\N{EN DASH}" if math.isnan(value) else f"{value:.1f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=5.5, color="white" if strong else TEXT)
    names = [*(label(name, 22) for name in heat.datasets), *(["Average"] if several else [])]
    axis.set_xticks(range(columns), names, rotation=40, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(heat.methods)), [label(name) for name in heat.methods])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axis, pad=0.015, fraction=0.03, extend="both", label="Points from median")
    bar.outline.set_linewidth(0.4)


# ---- ranks ------------------------------------------------------------------------------------------------------


def _ranks(diagram: RankDiagram, figure: Any) -> None:
    """Draw Demsar's diagram: an axis of ranks, the better half on the left, bars joining indistinguishable methods."""
    count = len(diagram.methods)
    left = math.ceil(count / 2)
    low, high = 1.0, float(count)
    bars = diagram.groups
    step, top = 1.0, 1.6  # heights in units of a line of text
    width = COLUMN if count < 9 else 0.75 * PAGE
    depth = 0.55 * len(bars) + 0.9
    lines = depth + step * left
    figure.set_size_inches(width, 0.15 * (lines + top + 1.6))
    axis = figure.subplots()
    axis.set_axis_off()
    longest = max(len(label(name)) for name in diagram.methods)
    margin = (high - low) * (0.075 * longest * 6.5 / 7 + 0.1) / max(width - 2 * (0.075 * longest + 0.1), 1.0)
    axis.set_xlim(low - margin, high + margin)
    axis.set_ylim(-lines - 0.5, top + 1.2)
    ink = {"color": TEXT, "solid_capstyle": "butt"}
    axis.plot([low, high], [0, 0], lw=0.8, **ink)
    for number in range(1, count + 1) if count < 13 else range(1, count + 1, 2):
        axis.plot([number, number], [0, 0.3], lw=0.8, **ink)
        axis.text(number, 0.4, str(number), ha="center", va="bottom", fontsize=6)
    if diagram.critical_difference <= high - low:
        end = low + diagram.critical_difference
        axis.plot([low, end], [top + 0.35] * 2, lw=0.8, **ink)
        for x in (low, end):
            axis.plot([x, x], [top + 0.2, top + 0.5], lw=0.8, **ink)
        axis.text(
            (low + end) / 2,
            top + 0.5,
            f"critical difference {diagram.critical_difference:.2f}",
            ha="center",
            va="bottom",
            fontsize=6,
        )
    for number, group in enumerate(bars):
        height = -0.55 * (number + 1)
        ends_of = diagram.ranks[group[0]], diagram.ranks[group[-1]]
        axis.plot([ends_of[0] - 0.04, ends_of[1] + 0.04], [height] * 2, lw=2.2, **ink)
    for number, (method, rank) in enumerate(zip(diagram.methods, diagram.ranks, strict=True)):
        better = number < left
        height = -depth - step * (number if better else count - 1 - number)
        edge = low - 0.02 * margin if better else high + 0.02 * margin
        axis.plot([rank, rank, edge], [0, height, height], lw=0.6, color=TEXT)
        text = f"{label(method)}  {rank:.2f}" if better else f"{rank:.2f}  {label(method)}"
        axis.text(edge, height, f" {text} ", ha="right" if better else "left", va="center", fontsize=6.5)


# ---- time against accuracy --------------------------------------------------------------------------------------


def _time(figures: Figures, figure: Any) -> None:
    styles = {
        method: figures.styles[method]
        for method in figures.methods
        if method in {cost.method for cost in figures.costs}
    }
    legend = _legend(figure, styles, COLUMN, lines=False)
    figure.set_size_inches(COLUMN, 2.1 + legend)
    axis = figure.subplots()
    for cost in figures.costs:
        style = figures.styles[cost.method]
        colour = style.colour or TEXT
        axis.plot([cost.seconds], [cost.value], ls="", mew=0.4, color=colour, **_marker(style, 5.0))
    log_axis(axis, [cost.seconds for cost in figures.costs])
    axis.set_xlabel("Seconds of a run")
    axis.set_ylabel(figures.metric.capitalize() + (", average" if len(figures.heat.datasets) > 1 else ""))
    axis.grid(lw=0.4, color="#dddddd")
    axis.set_axisbelow(True)


def log_axis(axis: Any, values: Sequence[float]) -> None:
    """Make the x axis logarithmic, with plain numbers as ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    low, high = min(values) / 1.6, max(values) * 1.6
    axis.set_xlim(low, high)
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 300 else (1.0, 2.0, 5.0), numticks=20))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


# ---- residual against difficulty --------------------------------------------------------------------------------


def _residuals(residuals: Residuals, figure: Any) -> None:
    """Draw a named point per dataset, with intervals over draws as bars."""
    figure.set_size_inches(COLUMN, 2.5)
    axis = figure.subplots()
    x = [row.difficulty for row in residuals.rows]
    y = [row.magnitude.mean for row in residuals.rows]
    half = [row.magnitude.half or 0.0 for row in residuals.rows]
    axis.errorbar(x, y, half, lw=0, elinewidth=0.7, marker="o", ms=4, mec="white", mew=0.4, color=COLOURS[0])
    if max(x) > 10 * min(x):
        log_axis(axis, x)
    else:
        axis.margins(x=0.15)
    axis.set_ylim(0.0, 1.15 * max(a + b for a, b in zip(y, half, strict=True)) or 1.0)
    axis.set_xlabel("Relative transfer difficulty, (1/K) / zero-shot accuracy")
    axis.set_ylabel("Mean |residual|")
    axis.set_title(
        _minus(str(residuals.over_datasets)) if len(residuals.rows) > 1 else "one dataset", fontsize=6.5, pad=3
    )
    axis.grid(lw=0.4, color="#dddddd")
    axis.set_axisbelow(True)
    _name_points(axis, [label(row.dataset, 18) for row in residuals.rows], x, y)


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _name_points(axis: Any, names: Sequence[str], x: Sequence[float], y: Sequence[float]) -> None:
    """Write a name next to each point, where it covers the fewest other points and names."""
    axis.figure.draw_without_rendering()  # fixes the positions of the points
    points = axis.transData.transform(np.column_stack([x, y])) * 72 / axis.figure.dpi  # in typographic points
    (left, bottom), (right, top) = axis.bbox.get_points() * 72 / axis.figure.dpi
    taken = [(a - 2.5, b - 2.5, a + 2.5, b + 2.5) for a, b in points]

    def covered(box: tuple[float, float, float, float]) -> float:
        outside = box[0] < left or box[1] < bottom or box[2] > right or box[3] > top
        return 2.0 * outside + sum(
            box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken
        )

    for name, at, (a, b) in zip(names, zip(x, y, strict=True), points, strict=True):
        width, height = 3.5 * len(name), 6.0
        places = [(a + 4, b - 2), (a - 4 - width, b - 2), (a - width / 2, b + 4), (a - width / 2, b - 4 - height)]
        boxes = [(left_, low, left_ + width, low + height) for left_, low in places]
        box = min(boxes, key=covered)
        taken.append(box)
        middle = ((box[0] + box[2]) / 2 - a, (box[1] + box[3]) / 2 - b)
        axis.annotate(name, at, middle, textcoords="offset points", ha="center", va="center", fontsize=6)


def _residuals_by_class(residuals: Residuals, figure: Any) -> None:
    """Draw a panel per dataset, with a point per class."""
    rows = [row for row in residuals.rows if row.by_class]
    lines = math.ceil(len(rows) / 4)
    columns = math.ceil(len(rows) / lines)
    figure.set_size_inches(COLUMN if columns == 1 else PAGE, (2.2 if columns < 3 else 1.55) * lines + 0.2)
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for number, (axis, row) in enumerate(zip(axes, rows, strict=False)):
        _classes(axis, row)
        if number % columns == 0:
            axis.set_ylabel("Length of residual")
        if number + columns >= len(rows):
            axis.set_xlabel("Zero-shot accuracy (%)")
    for axis in figure.axes[len(rows) :]:
        axis.remove()


def _classes(axis: Any, row: Residual) -> None:
    known = [residual for residual in row.by_class if not math.isnan(residual.zero_shot)]
    size = 3.0 if len(known) < 120 else 1.6
    x, y = [residual.zero_shot for residual in known], [residual.norm for residual in known]
    axis.plot(x, y, "o", ms=size, mec="white", mew=0.2, color=COLOURS[0])
    axis.set_xlim(-4, 104)
    r = row.within.r
    axis.set_title(label(row.dataset, 24) + ("" if math.isnan(r) else _minus(f" ({r:+.2f})")), pad=3)
    axis.grid(lw=0.4, color="#dddddd")
    axis.set_axisbelow(True)
