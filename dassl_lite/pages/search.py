"""The page of a search: its trials in turn, what each key does, the best settings and how to repeat them."""

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

_MOST_ROWS = 3000  # of trials in the table: the page shall stay small
_MOST_LINES = 500  # in parallel coordinates
_BEST, _PLAIN, _OFF = "#d1497f", "#3b82d6", "#8a8f98"
_SHADES = ("#3b82d6", "#6a9bdb", "#9db0c9", "#b5b9c0")  # of the best quarter of trials, the second, ...


def search_page(found: Record) -> Page:
    """The page of a search, which may be under way."""
    best = found.best
    metric = next((one.metric for one in found.results if one.metric), "accuracy")
    sections = [_trials(found, best, metric)]
    if best:
        sections.append(_keys(found, best, metric))
    sections.append(_table(found, best, metric))
    sections.append(_repeat(found))
    config = found.about.get("config")
    dataset = config.get("DATASET", {}).get("NAME", "") if isinstance(config, dict) else ""
    parts = [dataset, _measured(found), f"dassl-lite {found.about.get('version', '')}".strip()]
    notes = ["No test image was read: settings are chosen on other images, and the best value flatters a little."]
    return Page(
        f"Search of {found.trainer}",
        sections,
        ", ".join(part for part in parts if part),
        _facts(found, best, metric),
        notes=notes,
    )


def _measured(found: Record) -> str:
    seeds = found.about.get("--seeds") or [found.about.get("--seed", 1)]
    return f"measured on {measured_on(found.about.get('folds', 0), seeds)}"


def _facts(found: Record, best: Result | None, metric: str) -> list[Fact]:
    states = [one.state for one in found.results]
    counts = ", ".join(f"{states.count(state)} {state}" for state in (COMPLETE, PRUNED, FAILED) if state in states)
    facts = [Fact("trials", f"{len(states):,}", counts)]
    if best:
        facts.append(Fact(f"best {metric}", f"{best.value:.2f} %", f"trial {best.number}"))
    first = found.results[0]
    if best and first.number == 0 and first.state == COMPLETE and first is not best:
        facts.append(Fact("trial 0", f"{first.value:.2f} %", f"the best gains {best.value - first.value:+.2f}"))
    seconds = sorted(one.seconds for one in found.results if one.seconds)
    if seconds:
        median = f"{seconds[len(seconds) // 2]:.1f}"
        facts.append(Fact("seconds a trial", median, f"median; {sum(seconds):,.0f} in all"))
    return facts


# ---- one after the other --------------------------------------------------------------------------------------------


def _reached(one: Result) -> float:
    """The value of a trial or, of one that was broken off, of its last report."""
    return one.value if one.state == COMPLETE else one.reports[max(one.reports)] if one.reports else math.nan


def _hover(found: Record, one: Result) -> str:
    settings = [f"{plain(key)} {plain(shown_value(value))}" for key, value in one.params.items()]
    value = _reached(one)
    reached = "" if math.isnan(value) else f", {value:.2f} %"
    return "<br>".join([f"trial {one.number}: {one.state}{reached}", *settings])


def shown_value(value: Value) -> str:
    """A setting with as many digits as a reader wants."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _trials(found: Record, best: Result | None, metric: str) -> Section:
    looks = {COMPLETE: ("circle", _PLAIN, "complete"), PRUNED: ("x", _OFF, "broken off, at its last report")}
    data: list[dict[str, Any]] = []
    for state, (symbol, colour, name) in looks.items():
        own = [one for one in found.results if one.state == state and not math.isnan(_reached(one))]
        if own:
            data.append(
                {
                    **{"x": [one.number for one in own], "y": [_reached(one) for one in own], "mode": "markers"},
                    **{"name": name, "hovertext": [_hover(found, one) for one in own], "hoverinfo": "text"},
                    "marker": {"symbol": symbol, "color": colour, "size": 7},
                }
            )
    if best:
        numbers, values, top = [], [], -math.inf
        for one in found.results:
            top = max(top, one.value) if one.state == COMPLETE else top
            if top > -math.inf:
                numbers.append(one.number)
                values.append(top)
        line = {"color": _BEST, "width": 2, "shape": "hv"}
        data.append({"x": numbers, "y": values, "mode": "lines", "line": line, "name": "best so far"})
    layout = {
        "xaxis": {"title": {"text": "trial"}, "zeroline": False},
        "yaxis": {"title": {"text": f"{plain(metric)} %"}, "zeroline": False},
        "hovermode": "closest",
        "showlegend": True,
    }
    failed = [one for one in found.results if one.state == FAILED]
    text = "Each point is a trial; the line is the best value up to there."
    if failed:
        text += f" Not shown: {len(failed)} that failed, the first one with: {shown(failed[0].reason)}."
    return Section("Trials", [Chart({"data": data, "layout": layout}, height=380)], text)


# ---- what each key does ---------------------------------------------------------------------------------------------


def _keys(found: Record, best: Result, metric: str) -> Section:
    complete = [one for one in found.results if one.state == COMPLETE]
    slices = [_slice(found, one, complete, best, metric) for one in found.space]
    parts: list[Any] = [Row(slices)]
    if len(found.space) > 1:
        parts.append(_parallel(found, complete, metric))
    if found.importances:
        parts.append(_importances(found))
    return Section("Keys", parts, "The value of each complete trial over its setting of one key. The best is the star.")


def _slice(found: Record, key: Dimension, complete: Sequence[Result], best: Result, metric: str) -> Chart:
    data: list[dict[str, Any]] = []
    of_all: dict[str, Any] = {"color": _PLAIN, "size": 7, "opacity": 0.75}
    of_best: dict[str, Any] = {"color": _BEST, "size": 14, "symbol": "star"}
    for own, marker in (([one for one in complete if one is not best], of_all), ([best], of_best)):
        data.append(
            {
                **{"x": [_plain_text(key, one) for one in own], "y": [one.value for one in own], "mode": "markers"},
                **{"hovertext": [_hover(found, one) for one in own], "hoverinfo": "text", "marker": marker},
            }
        )
    axis: dict[str, Any] = {"title": {"text": plain(key.key)}, "zeroline": False}
    if key.choices:
        axis |= {"type": "category", "categoryorder": "array", "categoryarray": [plain(one) for one in key.choices]}
    elif key.is_log:
        axis["type"] = "log"
    layout = {"xaxis": axis, "yaxis": {"title": {"text": f"{plain(metric)} %"}, "zeroline": False}, "showlegend": False}
    return Chart({"data": data, "layout": layout}, height=280)


def _plain_text(key: Dimension, one: Result) -> Any:
    value = one.params[key.key]
    return plain(value) if key.choices else value


def _parallel(found: Record, complete: Sequence[Result], metric: str) -> Chart:
    """A line per trial through an axis per key; the last axis is the value."""
    ranked = sorted(complete, key=lambda one: (-one.value, one.number))[:_MOST_LINES]
    lowest, highest = ranked[-1].value, ranked[0].value
    labels, ends = [plain(metric) + " %"], [(f"{lowest:.2f}", f"{highest:.2f}")]
    labels[:0] = [plain(one.key.rpartition(".")[2]) for one in found.space]
    ends[:0] = [_ends_of(one) for one in found.space]

    def line(one: Result) -> list[float | None]:
        value = (one.value - lowest) / ((highest - lowest) or 1.0)
        return [*(_height(key, one.params[key.key]) for key in found.space), value, None]

    quarter = max(1, math.ceil((len(ranked) - 1) / len(_SHADES)))
    groups = [(ranked[1 + i * quarter : 1 + (i + 1) * quarter], colour, 1.2) for i, colour in enumerate(_SHADES)]
    data: list[dict[str, Any]] = []
    for own, colour, width in [*reversed(groups), (ranked[:1], _BEST, 3.0)]:  # the best on top
        if not own:
            continue
        places = [*range(len(labels)), None]
        data.append(
            {
                **{"x": places * len(own), "y": [height for one in own for height in line(one)], "mode": "lines"},
                **{"hovertext": [_hover(found, one) for one in own for _ in places], "hoverinfo": "text"},
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
    caption = "A line is a trial, the bluer the better; the thick one is the best. Lowest values are at the bottom."
    return Chart({"data": data, "layout": layout}, caption, height=380)


def _height(key: Dimension, value: Value) -> float:
    """Where a setting lies on its axis, from 0 to 1."""
    if key.choices:
        return key.choices.index(str(value)) / max(1, len(key.choices) - 1)
    if key.is_log:
        return math.log(float(value) / key.low) / math.log(key.high / key.low)
    return (float(value) - key.low) / (key.high - key.low)


def _ends_of(key: Dimension) -> tuple[str, str]:
    """The lowest and the highest value of a key."""
    return (key.choices[0], key.choices[-1]) if key.choices else (f"{key.low:g}", f"{key.high:g}")


def _importances(found: Record) -> Chart:
    ordered = sorted(found.importances.items(), key=lambda one: one[1])
    trace = {
        **{"type": "bar", "orientation": "h", "x": [100 * share for _, share in ordered]},
        **{"y": [plain(key) for key, _ in ordered], "marker": {"color": _PLAIN}, "hoverinfo": "x"},
    }
    layout = {"xaxis": {"title": {"text": "share of the differences (%)"}, "range": [0, 100]}, "showlegend": False}
    caption = "How much of the differences between complete trials each key explains (fANOVA)."
    return Chart({"data": [trace], "layout": layout}, caption, height=110 + 34 * len(ordered), title="Importance")


# ---- all of them, and how to repeat it ------------------------------------------------------------------------------


def _table(found: Record, best: Result | None, metric: str) -> Section:
    columns = [Column("trial"), Column("state"), Column(f"{metric} %", digits=2)]
    columns += [*(Column(one.key) for one in found.space), Column("seconds", digits=1), Column("reason")]
    ranked = sorted(found.results, key=lambda one: (-one.value if one.state == COMPLETE else math.inf, one.number))
    rows = [
        [
            one.number,
            one.state,
            Number(f"{one.value:.2f}", one.value, "best" if one is best else "") if one.state == COMPLETE else None,
            *(_setting(one.params[key.key]) for key in found.space),
            one.seconds,
            one.reason,
        ]
        for one in ranked[:_MOST_ROWS]
    ]
    more = f"The first {_MOST_ROWS:,} of {len(ranked):,}; all are in {TABLE}." if len(ranked) > _MOST_ROWS else ""
    return Section("All trials", [DataTable(columns, rows, more, name="all-trials")])


def _setting(value: Value) -> Any:
    return value if isinstance(value, str) else Number(shown_value(value), float(value))


def _repeat(found: Record) -> Section:
    command = shlex.join(["python", "tools/report.py", str(found.folder), "--html", "search.html"])
    marked = [line for line in found.recipe.splitlines() if line.startswith(("# Run:", "# Source:"))]
    head = dict(line.removeprefix("# ").split(":", 1) for line in marked)
    parts: list[Any] = []
    if found.recipe:
        parts.append(Text(found.recipe, code=True))
    for key, about in (("Run", "Train with it:"), ("Source", "The search:")):
        if text := head.get(key, "").strip():
            parts += [Text(about), Text(text.partition(" (trial ")[0], code=True)]
    parts += [Text("This page:"), Text(command, code=True)]
    text = "The recipe of the best trial." if found.recipe else "The search has not ended, so there is no recipe yet."
    return Section("How to repeat it", parts, text)
