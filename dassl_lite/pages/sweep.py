"""The page of a sweep or benchmark: its figures, its tables, every run, and missing runs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from dassl_lite.engine.commands.cells import Cell, Run, mean_of, shots_label, tuned_label, uses_shots
from dassl_lite.engine.commands.figures import AVERAGE, Curve, Figures, Panel, ends, limits, positions_of, tick
from dassl_lite.engine.commands.report import Report
from dassl_lite.engine.commands.residuals import Residual, Residuals, captions_of
from dassl_lite.engine.commands.tables import BEST, SECOND, Table
from dassl_lite.pages.base import Card, Chart, Column, DataTable, Fact, Number, Page, Row, Section, Text, plain

_SYMBOLS = (
    *("circle", "square", "triangle-up", "diamond", "triangle-down", "cross"),
    *("triangle-left", "x", "triangle-right", "star", "pentagon"),
)
_DASHES = ("solid", "dash", "dashdot", "dot")
_DIVERGING = [[0, "#b2182b"], [0.25, "#ef8a62"], [0.5, "#f2f2f2"], [0.75, "#67a9cf"], [1, "#2166ac"]]
_NUMBER = re.compile(r"(<\s*)?([+-]?\d[\d,]*(?:\.\d+)?)")
_WORDS = ("dataset", "method", "tuned on", "where", "what")  # columns without numbers
_MAX_ROWS = 3000  # rows in the table of runs, to keep the page small
_MARKS = {BEST: "best", SECOND: "second"}


def sweep_page(report: Report, figures: Figures | None) -> Page:
    """The page of a report.

    Args:
        report: report of a sweep or benchmark.
        figures: figures of its few-shot runs; None if there are none.
    """
    sections = []
    if figures:
        sections.append(_accuracy(figures))
        sections.append(Section(f"Methods by datasets, {shots_label(figures.shots)}", [_heat(figures)]))
        if figures.ranks or figures.costs:
            sections.append(Section("Ranks and time", [Row([*_ranks(figures), *_time(figures)])]))
    for residuals in report.residuals:
        sections.append(_residuals(residuals, several=len(report.residuals) > 1))
    sections.append(_tables(report))
    if report.cells:
        sections.append(
            Section(
                "Runs",
                [_runs(report.cells)],
                "The data behind the tables: a row per dataset, method and number of shots, over seeds.",
            )
        )
    sections.append(_about(report))
    name = report.folder.resolve().name or str(report.folder)
    return Page(f"Report of {name}", sections, _subtitle(report), _facts(report, figures), notes=())


def _subtitle(report: Report) -> str:
    backbones = ", ".join(sorted({cell.backbone for cell in report.cells}))
    versions = sorted({run.version for cell in report.cells for run in cell.runs if run.version})
    parts = [backbones and f"backbone {backbones}", versions and f"runs by dassl-lite {', '.join(versions)}"]
    return ", ".join(part for part in parts if part)


def _facts(report: Report, figures: Figures | None) -> list[Fact]:
    if figures is None:
        return []
    datasets, several = len(figures.heat.datasets), len(figures.heat.datasets) > 1
    facts = [
        Fact("methods", str(len(figures.methods))),
        Fact("datasets", str(datasets)),
        Fact("runs", f"{sum(len(cell.values) for cell in report.cells):,}", "; ".join(report.gaps[:1])[:90]),
    ]
    best = figures.heat.averages[0]
    if not math.isnan(best):
        what = f"average over {datasets} datasets" if several else figures.heat.datasets[0]
        facts.append(Fact("best", f"{best:.2f} %", f"{figures.heat.methods[0]}, {what}, {shots_label(figures.shots)}"))
    return facts


# ---- accuracy over shots ----------------------------------------------------------------------------------------


def _accuracy(figures: Figures) -> Section:
    first, *others = figures.panels
    text = figures.captions["accuracy"]
    if others:
        text += " Click a name to hide a method in all panels; double-click it to show only that method."
    lead = Chart(_panel(first, figures, legend=True), height=480 + 12 * len(figures.methods) // 2, title=_title(first))
    panels = [Chart(_panel(panel, figures, legend=False), height=280, title=_title(panel)) for panel in others]
    return Section("Accuracy over shots", [lead, *([Row(panels)] if panels else [])], text)


def _title(panel: Panel) -> str:
    return "Average over datasets" if panel.title == AVERAGE else panel.title


def _panel(panel: Panel, figures: Figures, *, legend: bool) -> dict[str, Any]:
    positions = positions_of(figures.numbers)
    data: list[dict[str, Any]] = []
    for curve in panel.curves:
        data += _traces(curve, figures, positions, legend=legend)
    low, high = limits(panel) if data else (0.0, 100.0)
    room = 0.25 if len(positions) > 1 else 0.6
    return {
        "data": data,
        "layout": {
            "xaxis": {
                "title": {"text": "training images per class"},
                **{"tickvals": list(positions.values()), "ticktext": [tick(number) for number in positions]},
                **{"range": [min(positions.values()) - room, max(positions.values()) + room], "zeroline": False},
            },
            "yaxis": {"range": [low, high], "title": {"text": plain(figures.metric)}, "zeroline": False},
            "showlegend": legend,
            "legend": {"itemsizing": "constant"},
            "margin": {"t": 8},
            **{"uirevision": "kept", "meta": "linked", "hovermode": "closest"},
        },
    }


def _traces(curve: Curve, figures: Figures, positions: dict[int, float], *, legend: bool) -> list[dict[str, Any]]:
    """A method's line and, if there is an interval, its band."""
    style, name = figures.styles[curve.method], plain(curve.method)
    shared = {"legendgroup": name, "name": name}
    line = {"color": style.colour or "ink", "dash": _DASHES[style.line], "width": 2}
    if not curve.uses_shots:
        mean = next(iter(curve.points.values())).mean
        line_x = [min(positions.values()) - 1, *positions.values(), max(positions.values()) + 1]
        text = f"{name}<br>{mean:.2f}, no training images"
        return [
            {
                **{"x": line_x, "y": [mean] * len(line_x), "mode": "lines", "line": line, "showlegend": legend},
                **{"hovertext": [text] * len(line_x), "hoverinfo": "text", **shared},
            }
        ]
    points = curve.shown
    x = [positions[number] for number in points]
    if len(positions) == 1:  # place the methods side by side
        x = [x[0] + 0.8 * ((figures.methods.index(curve.method) + 0.5) / len(figures.methods) - 0.5)]
    band = [point.half is not None for point in points.values()]
    crowded = len(figures.methods) > 9
    texts = [f"{name}<br>{plain(shots_label(number))}: {point}" for number, point in points.items()]
    trace: dict[str, Any] = {
        **{"x": x, "y": [point.mean for point in points.values()], "mode": "lines+markers", "line": line},
        **{"marker": {"symbol": _SYMBOLS[style.marker], "size": 7}, "hovertext": texts, "hoverinfo": "text"},
        **{"showlegend": legend, **shared},
    }
    if len(positions) == 1:
        trace["error_y"] = {"array": [point.half or 0.0 for point in points.values()], "thickness": 1.2, "width": 0}
        return [trace]
    if not all(band) or not style.colour:
        return [trace]
    low, high = zip(*(ends(point) for point in points.values()), strict=True)
    red, green, blue = (int(style.colour[i : i + 2], 16) for i in (1, 3, 5))
    return [
        {
            **{"x": [*x, *reversed(x)], "y": [*high, *reversed(low)], "fill": "toself", "mode": "none"},
            **{"fillcolor": f"rgba({red},{green},{blue},{0.07 if crowded else 0.16})", "hoverinfo": "skip"},
            **{"showlegend": False, **shared},
        },
        trace,
    ]


# ---- methods x datasets, ranks, time ----------------------------------------------------------------------------


def _heat(figures: Figures) -> Chart:
    heat = figures.heat
    methods, datasets = [plain(name) for name in heat.methods], [plain(name) for name in heat.datasets]
    several = len(datasets) > 1
    rows = range(len(methods))
    texts = [[_rounded(value, 1) for value in heat.values[i].tolist()] for i in rows]
    hover = [
        [
            f"{methods[i]} on {datasets[j]}<br>{_rounded(value)}"
            + ("" if math.isnan(value) else f"<br>{heat.contrast[i, j]:+.2f} from the dataset's median")
            for j, value in enumerate(heat.values[i].tolist())
        ]
        for i in rows
    ]
    labels = [
        f"{name}  <b>{_rounded(mean, 1)}</b>" if several else name
        for name, mean in zip(methods, heat.averages, strict=True)
    ]
    figure = {
        "data": [
            {
                **{"type": "heatmap", "z": heat.contrast.tolist(), "zmin": -heat.limit, "zmax": heat.limit},
                **{"text": texts, "texttemplate": "%{text}", "hovertext": hover, "hoverinfo": "text"},
                **{"colorscale": _DIVERGING, "xgap": 1, "ygap": 1, "showscale": len(methods) > 6},
                "colorbar": {"title": {"text": "from<br>median"}, "thickness": 10},
            }
        ],
        "layout": {
            "xaxis": {"tickvals": list(range(len(datasets))), "ticktext": datasets, "side": "top", "showgrid": False},
            "yaxis": {
                **{"tickvals": list(rows), "ticktext": labels, "autorange": "reversed"},
                **{"showgrid": False, "zeroline": False},
            },
            "margin": {"t": 90, "b": 12},
        },
    }
    caption = figures.captions["heatmap"] + (" The number next to a method is its average." if several else "")
    return Chart(figure, caption, height=150 + 26 * len(methods))


def _rounded(value: float, digits: int = 2) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _ranks(figures: Figures) -> list[Chart]:
    diagram = figures.ranks
    if not diagram:
        return []
    names = [plain(name) for name in diagram.methods]
    half = diagram.critical_difference / 2
    texts = [f"{name}<br>mean rank {rank:.2f}" for name, rank in zip(names, diagram.ranks, strict=True)]
    figure = {
        "data": [
            {
                **{"x": list(diagram.ranks), "y": list(range(len(names))), "mode": "markers", "hovertext": texts},
                **{"hoverinfo": "text", "marker": {"size": 9, "color": "#2f6fd0"}},
                "error_x": {"type": "constant", "value": half, "thickness": 1.4, "width": 3, "color": "#8c8c8c"},
            }
        ],
        "layout": {
            "xaxis": {
                "title": {"text": "mean rank (1 is the best)"},
                **{"range": [0.5, len(names) + 0.5], "zeroline": False},
            },
            "yaxis": {
                "tickvals": list(range(len(names))),
                "ticktext": names,
                "autorange": "reversed",
                "zeroline": False,
            },
        },
    }
    first, _, rest = figures.captions["ranks"].partition(" Bars join")
    p = rest.partition("Friedman's test")
    caption = (
        f"{first} Nemenyi's test at 0.05 distinguishes methods whose bars do not overlap: their mean ranks differ by "
        f"more than the critical difference {diagram.critical_difference:.2f}. {p[1]}{p[2]}"
    ).strip()
    return [Chart(figure, caption, height=130 + 26 * len(names), title="Ranks")]


def _time(figures: Figures) -> list[Chart]:
    if not figures.costs:
        return []
    data = []
    wide = max(cost.seconds for cost in figures.costs) > 100 * min(cost.seconds for cost in figures.costs)
    for cost in figures.costs:
        style, name = figures.styles[cost.method], plain(cost.method)
        data.append(
            {
                **{"x": [cost.seconds], "y": [cost.value], "mode": "markers", "name": name, "hoverinfo": "text"},
                "hovertext": [f"{name}<br>{cost.seconds:,.1f} s<br>{cost.value:.2f}"],
                "marker": {"symbol": _SYMBOLS[style.marker], "size": 11, "color": style.colour or "ink"},
            }
        )
    layout = {
        "xaxis": {"type": "log", "title": {"text": "seconds per run"}, "dtick": 1 if wide else "D2"},
        "yaxis": {"title": {"text": plain(figures.metric)}, "zeroline": False},
        "showlegend": True,
    }
    return [Chart({"data": data, "layout": layout}, figures.captions["time"], height=430 + 6 * len(data), title="Time")]


# ---- residual against difficulty --------------------------------------------------------------------------------


def _residuals(residuals: Residuals, *, several: bool) -> Section:
    captions = captions_of(residuals)
    names = [plain(row.dataset) for row in residuals.rows]
    texts = [
        f"{name}<br>{row.classes} classes, zero-shot {row.zero_shot:.2f} %<br>difficulty {row.difficulty:.4f}"
        f"<br>mean |residual| {row.magnitude.mean:.5f}"
        for name, row in zip(names, residuals.rows, strict=True)
    ]
    difficulties = [row.difficulty for row in residuals.rows]
    over = {
        "data": [
            {
                **{"x": difficulties, "y": [row.magnitude.mean for row in residuals.rows], "mode": "markers+text"},
                **{"text": names, "textposition": "top center", "hovertext": texts, "hoverinfo": "text"},
                **{"marker": {"size": 10}, "cliponaxis": False},
                "error_y": {
                    "array": [row.magnitude.half or 0.0 for row in residuals.rows],
                    "thickness": 1.2,
                    "width": 0,
                },
            }
        ],
        "layout": {
            "xaxis": {
                "title": {"text": "relative transfer difficulty, (1/K) / zero-shot accuracy"},
                **({"type": "log", "dtick": 1} if max(difficulties) > 10 * min(difficulties) else {}),
                "zeroline": False,
            },
            "yaxis": {"title": {"text": "mean |residual|"}, "rangemode": "tozero"},
        },
    }
    parts: list[Any] = [Chart(over, captions["residuals"], height=420)]
    known = [row for row in residuals.rows if row.by_class]
    if known:
        parts += [Row([_classes(row) for row in known]), Text(captions["residuals-classes"])]
    title = "Residual against difficulty"
    return Section(f"{title}, {residuals.title}" if several else title, parts)


def _classes(row: Residual) -> Chart:
    """A point per class, with a tooltip that names it."""
    known = [item for item in row.by_class if not math.isnan(item.zero_shot)]
    figure = {
        "data": [
            {
                **{"x": [item.zero_shot for item in known], "y": [item.norm for item in known], "mode": "markers"},
                **{"marker": {"size": 7, "opacity": 0.75}, "hoverinfo": "none"},
            }
        ],
        "layout": {
            "xaxis": {"title": {"text": "zero-shot accuracy of the class (%)"}, "range": [-4, 104], "zeroline": False},
            "yaxis": {"title": {"text": "length of its residual"}},
        },
    }
    cards = {
        f"0:{i}": Card(
            [item.classname, f"zero-shot {item.zero_shot:.1f} % of {item.images:,} images", f"length {item.norm:.4f}"]
        )
        for i, item in enumerate(known)
    }
    return Chart(figure, height=280, cards=cards, title=f"{row.dataset}: {row.within}")


# ---- tables -----------------------------------------------------------------------------------------------------


def _tables(report: Report) -> Section:
    text = "The same tables as in the terminal. In each dataset's column, the best is bold, the second-best underlined."
    tables = [_table(table, "By dataset, method and shots") for table in report.tables]
    return Section("Tables", tables, text)


def _table(table: Table, title: str) -> DataTable:
    columns = [Column(header) for header in table.headers]
    rows = [
        [_cell(text, table.headers[c], _MARKS.get(table.places.get((r, c), 0), "")) for c, text in enumerate(row)]
        for r, row in enumerate(table.rows)
    ]
    return DataTable(columns, rows, table.title or title, page=50)


def _cell(text: str, header: str, mark: str) -> Any:
    """A table cell; a text that begins with a number is sorted by it."""
    number = None if header in _WORDS else _NUMBER.match(text)
    if not text and header not in _WORDS:
        return None
    if not number:
        return text
    value = float(number[2].replace(",", ""))
    return Number(text, value * 0.999 if number[1] else value, mark)


def _runs(cells: Sequence[Cell]) -> DataTable:
    """A table with a row per dataset, method and number of shots, and details of its runs."""
    columns = [
        *(Column(title) for title in ("dataset", "method", "shots")),
        *(Column("mean %", digits=2), Column("±", digits=2, about="half the 95 % t-interval over seeds")),
        *(Column(title) for title in ("seeds", "draws", "tuned on", "classes", "precision")),
        *(Column("zero-shot %", digits=2), Column("ECE %", digits=2), Column("seconds", digits=1)),
        *(Column("trainable", digits=0), Column("memory MiB", digits=0)),
    ]
    rows = [
        [
            *(cell.dataset, cell.trainer, _shots(cell), cell.mean, cell.interval),
            " ".join(str(run.seed) for run in cell.runs),
            *(_distinct(cell, lambda run: run.draw[:8]), _distinct(cell, tuned_label), cell.classes),
            _distinct(cell, lambda run: run.precision),
            *(mean_of(cell.runs, name) for name in ("zero_shot", "ece", "seconds", "parameters", "memory")),
        ]
        for cell in sorted(cells, key=lambda cell: (cell.dataset, cell.trainer, cell.shots))
    ]
    more = f"The first {_MAX_ROWS:,} of {len(rows):,}; all are in report.csv." if len(rows) > _MAX_ROWS else ""
    return DataTable(columns, rows[:_MAX_ROWS], more, page=25, name="all-runs")


def _distinct(cell: Cell, of: Callable[[Run], str]) -> str:
    return " ".join(dict.fromkeys(text for run in cell.runs if (text := of(run))))


def _shots(cell: Cell) -> Any:
    if not uses_shots(cell.trainer):
        return None
    return Number("all", 1e9) if cell.shots == 0 else cell.shots


def _about(report: Report) -> Section:
    draws = [note for note in report.notes if note.startswith("draws of ")]
    parts = [
        *(Text(f"Missing: {gap}") for gap in report.gaps),
        *(Text(note) for note in report.notes if note not in draws),
        *([Text("\n".join(draws), code=True, label="Draws, by digest")] if draws else []),
        Text(f"python tools/report.py {report.folder} --html report.html", code=True),
    ]
    return Section("About the numbers", parts)
