"""The page of a search: its trials, the effect of each key, the best settings and how to reproduce them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any

from dassl_lite.engine.commands.search_space import Dimension, Value
from dassl_lite.engine.commands.search_trial import COMPLETE, FAILED, PRUNED, Result, measured_on
from dassl_lite.engine.commands.tune import TABLE, Record
from dassl_lite.pages.base import Chart, Column, DataTable, Fact, Number, Page, Row, Section, Text, plain
from dassl_lite.utils.errors import shown

_MAX_ROWS = 3000  # trials in the table, to keep the page small
_MAX_LINES = 500  # trials in the parallel coordinates
_BEST, _PLAIN, _OFF = "#d1497f", "#3b82d6", "#8a8f98"
_SHADES = ("#3b82d6", "#6a9bdb", "#9db0c9", "#b5b9c0")  # for the best quarter of trials, the second, ...


def search_page(record: Record) -> Page:
    """The page of a search, which may still be running."""
    best = record.best
    metric = next((result.metric for result in record.results if result.metric), "accuracy")
    sections = [_trials(record, best, metric)]
    if best:
        sections.append(_keys(record, best, metric))
    sections.append(_table(record, best, metric))
    sections.append(_repeat(record))
    config = record.about.get("config")
    dataset = config.get("DATASET", {}).get("NAME", "") if isinstance(config, dict) else ""
    parts = [dataset, _measured(record), f"dassl-lite {record.about.get('version', '')}".strip()]
    notes = ["No test image was read. The best value is slightly optimistic, as it was selected on the same images."]
    return Page(
        f"Search of {record.trainer}",
        sections,
        ", ".join(part for part in parts if part),
        _facts(record, best, metric),
        notes=notes,
    )


def _measured(record: Record) -> str:
    seeds = record.about.get("--seeds") or [record.about.get("--seed", 1)]
    return f"measured on {measured_on(record.about.get('folds', 0), seeds)}"


def _facts(record: Record, best: Result | None, metric: str) -> list[Fact]:
    states = [result.state for result in record.results]
    counts = ", ".join(f"{states.count(state)} {state}" for state in (COMPLETE, PRUNED, FAILED) if state in states)
    facts = [Fact("trials", f"{len(states):,}", counts)]
    if best:
        facts.append(Fact(f"best {metric}", f"{best.value:.2f} %", f"trial {best.number}"))
    first = record.results[0]
    if best and first.number == 0 and first.state == COMPLETE and first is not best:
        facts.append(Fact("trial 0", f"{first.value:.2f} %", f"best: {best.value - first.value:+.2f}"))
    seconds = sorted(result.seconds for result in record.results if result.seconds)
    if seconds:
        median = f"{seconds[len(seconds) // 2]:.1f}"
        facts.append(Fact("seconds per trial", median, f"median; {sum(seconds):,.0f} in total"))
    return facts


# ---- trials ---------------------------------------------------------------------------------------------------------


def _last_value(trial: Result) -> float:
    """The value of a trial or, if it was pruned, its last reported value."""
    if trial.state == COMPLETE:
        return trial.value
    return trial.reports[max(trial.reports)] if trial.reports else math.nan


def _hover(trial: Result) -> str:
    settings = [f"{plain(key)} {plain(shown_value(value))}" for key, value in trial.params.items()]
    value = _last_value(trial)
    reached = "" if math.isnan(value) else f", {value:.2f} %"
    return "<br>".join([f"trial {trial.number}: {trial.state}{reached}", *settings])


def shown_value(value: Value) -> str:
    """Format a setting with a readable number of digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _trials(record: Record, best: Result | None, metric: str) -> Section:
    styles = {COMPLETE: ("circle", _PLAIN, "complete"), PRUNED: ("x", _OFF, "pruned, at its last report")}
    data: list[dict[str, Any]] = []
    for state, (symbol, colour, name) in styles.items():
        trials = [trial for trial in record.results if trial.state == state and not math.isnan(_last_value(trial))]
        if trials:
            data.append(
                {
                    **{"x": [trial.number for trial in trials], "y": [*map(_last_value, trials)], "mode": "markers"},
                    **{"name": name, "hovertext": [*map(_hover, trials)], "hoverinfo": "text"},
                    "marker": {"symbol": symbol, "color": colour, "size": 7},
                }
            )
    if best:
        numbers, values, top = [], [], -math.inf
        for trial in record.results:
            top = max(top, trial.value) if trial.state == COMPLETE else top
            if top > -math.inf:
                numbers.append(trial.number)
                values.append(top)
        line = {"color": _BEST, "width": 2, "shape": "hv"}
        data.append({"x": numbers, "y": values, "mode": "lines", "line": line, "name": "best so far"})
    layout = {
        "xaxis": {"title": {"text": "trial"}, "zeroline": False},
        "yaxis": {"title": {"text": f"{plain(metric)} %"}, "zeroline": False},
        "hovermode": "closest",
        "showlegend": True,
    }
    failed = [trial for trial in record.results if trial.state == FAILED]
    text = "Each point is a trial; the line is the best value so far."
    if failed:
        text += f" Not shown: {len(failed)} failed, the first with: {shown(failed[0].reason)}."
    return Section("Trials", [Chart({"data": data, "layout": layout}, height=380)], text)


# ---- effect of each key ---------------------------------------------------------------------------------------------


def _keys(record: Record, best: Result, metric: str) -> Section:
    complete = [trial for trial in record.results if trial.state == COMPLETE]
    slices = [_slice(key, complete, best, metric) for key in record.space]
    parts: list[Any] = [Row(slices)]
    if len(record.space) > 1:
        parts.append(_parallel(record, complete, metric))
    if record.importances:
        parts.append(_importances(record))
    return Section(
        "Keys", parts, "The value of each complete trial against its setting of a key. The star is the best trial."
    )


def _slice(key: Dimension, complete: Sequence[Result], best: Result, metric: str) -> Chart:
    data: list[dict[str, Any]] = []
    of_all: dict[str, Any] = {"color": _PLAIN, "size": 7, "opacity": 0.75}
    of_best: dict[str, Any] = {"color": _BEST, "size": 14, "symbol": "star"}
    for trials, marker in (([trial for trial in complete if trial is not best], of_all), ([best], of_best)):
        x, y = [_plain_text(key, trial) for trial in trials], [trial.value for trial in trials]
        data.append(
            {
                **{"x": x, "y": y, "mode": "markers", "marker": marker},
                **{"hovertext": [*map(_hover, trials)], "hoverinfo": "text"},
            }
        )
    axis: dict[str, Any] = {"title": {"text": plain(key.key)}, "zeroline": False}
    if key.choices:
        axis |= {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": [plain(choice) for choice in key.choices],
        }
    elif key.is_log:
        axis["type"] = "log"
    layout = {"xaxis": axis, "yaxis": {"title": {"text": f"{plain(metric)} %"}, "zeroline": False}, "showlegend": False}
    return Chart({"data": data, "layout": layout}, height=280)


def _plain_text(key: Dimension, trial: Result) -> Any:
    value = trial.params[key.key]
    return plain(value) if key.choices else value


def _parallel(record: Record, complete: Sequence[Result], metric: str) -> Chart:
    """Parallel coordinates: a line per trial through one axis per key and a last axis for the value."""
    ranked = sorted(complete, key=lambda trial: (-trial.value, trial.number))[:_MAX_LINES]
    lowest, highest = ranked[-1].value, ranked[0].value
    labels, ends = [plain(metric) + " %"], [(f"{lowest:.2f}", f"{highest:.2f}")]
    labels[:0] = [plain(dimension.key.rpartition(".")[2]) for dimension in record.space]
    ends[:0] = [_ends_of(dimension) for dimension in record.space]

    def line(trial: Result) -> list[float | None]:
        value = (trial.value - lowest) / ((highest - lowest) or 1.0)
        return [*(_height(key, trial.params[key.key]) for key in record.space), value, None]

    quarter = max(1, math.ceil((len(ranked) - 1) / len(_SHADES)))
    groups = [(ranked[1 + i * quarter : 1 + (i + 1) * quarter], colour, 1.2) for i, colour in enumerate(_SHADES)]
    data: list[dict[str, Any]] = []
    for trials, colour, width in [*reversed(groups), (ranked[:1], _BEST, 3.0)]:  # the best on top
        if not trials:
            continue
        places = [*range(len(labels)), None]
        data.append(
            {
                **{"x": places * len(trials), "y": [y for trial in trials for y in line(trial)], "mode": "lines"},
                **{"hovertext": [_hover(trial) for trial in trials for _ in places], "hoverinfo": "text"},
                "line": {"color": colour, "width": width},
            }
        )
    marks = [
        {"x": place, "y": height, "text": plain(text), "showarrow": False, "yshift": shift, "font": {"size": 11}}
        for place, both in enumerate(ends)
        for text, height, shift in zip(both, (0, 1), (-10, 10), strict=True)
    ]
    ticks = {"tickvals": list(range(len(labels))), "ticktext": labels}
    layout = {
        "xaxis": {**ticks, "range": [-0.3, len(labels) - 0.7], "zeroline": False, "fixedrange": True},
        "yaxis": {"range": [-0.1, 1.1], "showticklabels": False, "showgrid": False, "zeroline": False},
        **{"annotations": marks, "showlegend": False, "hovermode": "closest", "margin": {"l": 30, "r": 30}},
    }
    caption = "Each line is a trial; bluer is better, and the thick line is the best. Lowest values are at the bottom."
    return Chart({"data": data, "layout": layout}, caption, height=380)


def _height(key: Dimension, value: Value) -> float:
    """The position of a setting on its axis, from 0 to 1."""
    if key.choices:
        return key.choices.index(str(value)) / max(1, len(key.choices) - 1)
    if key.is_log:
        return math.log(float(value) / key.low) / math.log(key.high / key.low)
    return (float(value) - key.low) / (key.high - key.low)


def _ends_of(key: Dimension) -> tuple[str, str]:
    """The lowest and highest value of a key."""
    return (key.choices[0], key.choices[-1]) if key.choices else (f"{key.low:g}", f"{key.high:g}")


def _importances(record: Record) -> Chart:
    ordered = sorted(record.importances.items(), key=lambda item: item[1])
    trace = {
        **{"type": "bar", "orientation": "h", "x": [100 * share for _, share in ordered]},
        **{"y": [plain(key) for key, _ in ordered], "marker": {"color": _PLAIN}, "hoverinfo": "x"},
    }
    layout = {"xaxis": {"title": {"text": "share of the variation (%)"}, "range": [0, 100]}, "showlegend": False}
    caption = "How much of the variation between complete trials each key explains (fANOVA)."
    return Chart({"data": [trace], "layout": layout}, caption, height=110 + 34 * len(ordered), title="Importance")


# ---- all trials, and how to reproduce them --------------------------------------------------------------------------


def _table(record: Record, best: Result | None, metric: str) -> Section:
    columns = [Column("trial"), Column("state"), Column(f"{metric} %", digits=2)]
    columns += [*(Column(key.key) for key in record.space), Column("seconds", digits=1), Column("reason")]
    ranked = sorted(record.results, key=lambda t: (-t.value if t.state == COMPLETE else math.inf, t.number))
    rows = [
        [
            trial.number,
            trial.state,
            Number(f"{trial.value:.2f}", trial.value, "best" if trial is best else "")
            if trial.state == COMPLETE
            else None,
            *(_setting(trial.params[key.key]) for key in record.space),
            trial.seconds,
            trial.reason,
        ]
        for trial in ranked[:_MAX_ROWS]
    ]
    more = f"The first {_MAX_ROWS:,} of {len(ranked):,}; all are in {TABLE}." if len(ranked) > _MAX_ROWS else ""
    return Section("All trials", [DataTable(columns, rows, more, name="all-trials")])


def _setting(value: Value) -> Any:
    return value if isinstance(value, str) else Number(shown_value(value), float(value))


def _repeat(record: Record) -> Section:
    command = shlex.join(["python", "tools/report.py", str(record.folder), "--html", "search.html"])
    marked = [line for line in record.recipe.splitlines() if line.startswith(("# Run:", "# Source:"))]
    head = dict(line.removeprefix("# ").split(":", 1) for line in marked)
    parts: list[Any] = []
    if record.recipe:
        parts.append(Text(record.recipe, code=True))
    for key, about in (("Run", "Train with it:"), ("Source", "The search:")):
        if text := head.get(key, "").strip():
            parts += [Text(about), Text(text.partition(" (trial ")[0], code=True)]
    parts += [Text("This page:"), Text(command, code=True)]
    text = "The recipe of the best trial." if record.recipe else "The search is unfinished, so there is no recipe yet."
    return Section("How to reproduce it", parts, text)
