"""The content of a sweep's figures: numbers, captions and styles, shared by plot files and pages.

The numbers are those of the report's tables: cells, averages and rankings. Nothing is estimated here.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np
import numpy.typing as npt

from dassl_lite.engine.commands.cells import Cell, Run, lower_is_better, mean_of, shots_label, uses_shots
from dassl_lite.engine.commands.comparisons import Average, averages, rankings
from dassl_lite.evaluation.statistics import Estimate, alike
from dassl_lite.utils.errors import UserError

ALL_IMAGES = 0  # number of shots that means all training images
AVERAGE = "Average"
ZERO_SHOT = "ZeroshotCLIP"  # drawn in its own style
# Okabe and Ito's colours without yellow and black, plus grey: distinguishable for colour-blind readers, on white and on
# black. Markers and lines repeat with other periods, so that colour and line alone distinguish 28 methods.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
MARKERS, LINES = 11, 4


@dataclass(frozen=True)
class Style:
    """How a method is drawn, the same in all figures.

    Attributes:
        colour: "#rrggbb"; "" for the text colour, used for zero-shot CLIP.
        marker: index of the marker, below `MARKERS`.
        line: index of the line style, below `LINES`; 0 is solid.
    """

    colour: str
    marker: int
    line: int


@dataclass(frozen=True)
class Curve:
    """A method's curve: number of shots -> mean and interval. A method that uses no shots has a single value."""

    method: str
    points: Mapping[int, Estimate]
    uses_shots: bool

    @property
    def shown(self) -> dict[int, Estimate]:
        """The points in ascending number of shots, all training images last."""
        return dict(sorted(self.points.items(), key=lambda point: point[0] or math.inf))


@dataclass(frozen=True)
class Panel:
    """The curves for a dataset, or for the average over datasets."""

    title: str
    metric: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class HeatMap:
    """Means of M methods on N datasets, best average first.

    Attributes:
        values: (M, N), NaN where there is no run.
        averages: (M,) over all datasets, NaN where one is missing.
        contrast: (M, N), how much better a value is than the methods' median on its dataset.
    """

    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    values: npt.NDArray[np.float64]
    averages: npt.NDArray[np.float64]
    contrast: npt.NDArray[np.float64]

    @property
    def limit(self) -> float:
        """Limit of the colour scale, which covers 95 % of the contrasts."""
        known = np.abs(self.contrast[~np.isnan(self.contrast)])
        return max(1.0, float(np.quantile(known, 0.95))) if known.size else 1.0


@dataclass(frozen=True)
class RankDiagram:
    """Methods by mean rank, best first.

    Attributes:
        groups: maximal sets of indices of methods that Nemenyi's test does not distinguish.
        p: p-value of Friedman's test.
    """

    methods: tuple[str, ...]
    ranks: tuple[float, ...]
    critical_difference: float
    groups: tuple[tuple[int, ...], ...]
    p: float
    datasets: int


@dataclass(frozen=True)
class Cost:
    """A method's cost and performance with one number of shots, over all datasets."""

    method: str
    seconds: float
    value: float


@dataclass(frozen=True)
class Figures:
    """The figures of a sweep.

    Attributes:
        numbers: numbers of shots in the panels.
        shots: number of shots in the heat map, rank diagram and costs.
        ranks, costs: None or empty if the runs do not allow them.
        captions: figure ("accuracy", "heatmap", "ranks", "time") -> caption.
        styles: method -> style.
    """

    panels: tuple[Panel, ...]
    numbers: tuple[int, ...]
    shots: int
    heat: HeatMap
    ranks: RankDiagram | None
    costs: tuple[Cost, ...]
    captions: Mapping[str, str]
    styles: Mapping[str, Style]

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.styles)

    @property
    def metric(self) -> str:
        return metric_label(panel.metric for panel in self.panels)


def metric_label(metrics: Iterable[str]) -> str:
    """Label of an axis, such as "accuracy (%)"."""
    return f"{' or '.join(sorted(set(metrics))).replace('_', ' ')} (%)"


def styles_of(methods: Iterable[str]) -> dict[str, Style]:
    """A style for each method; zero-shot CLIP always gets the same one."""
    styles, number = {}, 0
    for method in methods:
        if method == ZERO_SHOT:
            styles[method] = Style("", 0, 1)
            continue
        styles[method] = Style(COLOURS[number % len(COLOURS)], number % MARKERS, number // len(COLOURS) % LINES)
        number += 1
    return styles


def figures(cells: Sequence[Cell], shots: int | None = None, split: str = "test") -> Figures:
    """Build the figures of a sweep.

    Args:
        cells: cells of the sweep; not empty.
        shots: number of shots for figures that show only one; None for the largest with runs.
        split: split to name in captions.

    Raises:
        UserError: there is no run with ``shots``.
    """
    labels = _datasets(cells)
    numbers = _numbers(cells)
    if shots is not None and shots not in numbers:
        available = ", ".join(shots_label(number) for number in numbers)
        raise UserError(f"there is no run with --shots {shots}; there are runs with {available}")
    chosen = max(numbers) if shots is None else shots
    selected = [cell for cell in cells if cell.shots == chosen or not uses_shots(cell.trainer)]
    means = {(mean.trainer, mean.shots): mean for mean in averages(cells) if mean.datasets == len(labels)}
    panels = _panels(cells, labels, means)
    heat = _heat_map(selected, labels)
    ranks = _rank_diagram(cells, chosen)
    costs = _costs(selected, labels, heat)
    captions = _captions(cells, split, chosen, ranks, incomplete=_incomplete(cells, means, labels))
    styles = styles_of(sorted({cell.trainer for cell in cells}))
    return Figures(panels, numbers, chosen, heat, ranks, costs, captions, styles)


def _datasets(cells: Sequence[Cell]) -> dict[tuple[str, str, str], str]:
    """(dataset, backbone, metric) -> panel title: the dataset's name and, if needed, what distinguishes it."""
    keys = sorted(set(map(_key, cells)))
    several = [len({key[i] for key in keys}) > 1 for i in (1, 2)]
    extras = {key: [text for text, shown in zip(key[1:], several, strict=True) if shown] for key in keys}
    return {key: f"{key[0]} ({', '.join(extra)})" if (extra := extras[key]) else key[0] for key in keys}


def _key(cell: Cell) -> tuple[str, str, str]:
    return *cell.unit, cell.metric


def _numbers(cells: Sequence[Cell]) -> tuple[int, ...]:
    """Numbers of shots with runs, all training images last."""
    shots = {cell.shots for cell in cells if uses_shots(cell.trainer)}
    return tuple(sorted(shots, key=lambda number: number or math.inf)) or (ALL_IMAGES,)


def _panels(
    cells: Sequence[Cell],
    labels: Mapping[tuple[str, str, str], str],
    means: Mapping[tuple[str, int], Average],
) -> tuple[Panel, ...]:
    """The panels, the average first if any; it includes a method's numbers of shots that ran on all datasets."""
    points: dict[tuple[str, str, str], dict[str, dict[int, Estimate]]] = defaultdict(lambda: defaultdict(dict))
    for cell in cells:
        points[_key(cell)][cell.trainer][cell.shots] = cell.estimate
    over: dict[str, dict[int, Estimate]] = defaultdict(dict)
    for (method, number), average in sorted(means.items()):
        over[method][number] = average.over_draws
    metrics = " or ".join(sorted({cell.metric for cell in cells}))
    first = [Panel(AVERAGE, metrics, _curves(over))] if over else []
    return (*first, *(Panel(label, key[2], _curves(points[key])) for key, label in labels.items()))


def _curves(points: Mapping[str, Mapping[int, Estimate]]) -> tuple[Curve, ...]:
    return tuple(Curve(method, dict(estimates), uses_shots(method)) for method, estimates in sorted(points.items()))


def _heat_map(cells: Sequence[Cell], labels: Mapping[tuple[str, str, str], str]) -> HeatMap:
    keys, methods = list(labels), sorted({cell.trainer for cell in cells})
    values = np.full((len(methods), len(keys)), np.nan)
    for cell in cells:
        values[methods.index(cell.trainer), keys.index(_key(cell))] = cell.mean
    sign = -1 if lower_is_better(cells[0].metric) else 1
    over_all = np.array([fmean(row) if not np.isnan(row).any() else math.nan for row in values.tolist()])
    order = sorted(range(len(methods)), key=lambda i: (math.isnan(over_all[i]), -sign * over_all[i], methods[i]))
    of_dataset = [median(known) if (known := [v for v in column if not math.isnan(v)]) else 0.0 for column in values.T]
    contrast = sign * (values - np.array(of_dataset))
    return HeatMap(
        tuple(methods[i] for i in order), tuple(labels.values()), values[order], over_all[order], contrast[order]
    )


def _rank_diagram(cells: Sequence[Cell], shots: int) -> RankDiagram | None:
    ranked = rankings(cells).get(shots)
    if ranked is None:
        return None
    methods, ranking = ranked
    order = sorted(range(len(methods)), key=lambda i: (ranking.mean_ranks[i], methods[i]))
    ranks = tuple(ranking.mean_ranks[i] for i in order)
    return RankDiagram(
        tuple(methods[i] for i in order),
        ranks,
        ranking.critical_difference,
        tuple(alike(ranks, ranking.critical_difference)),
        ranking.p,
        ranking.datasets,
    )


def _costs(cells: Sequence[Cell], labels: Mapping[tuple[str, str, str], str], heat: HeatMap) -> tuple[Cost, ...]:
    """Costs of the methods that were run on every dataset and recorded their time."""
    runs: dict[str, list[Run]] = defaultdict(list)
    for cell in cells:
        runs[cell.trainer] += cell.runs
    costs = []
    for method, value in zip(heat.methods, heat.averages.tolist(), strict=True):
        seconds = mean_of(runs[method], "seconds")
        if not math.isnan(value) and seconds > 0:
            costs.append(Cost(method, seconds, value))
    return tuple(costs)


def _incomplete(
    cells: Sequence[Cell], means: Mapping[tuple[str, int], Average], labels: Mapping[tuple[str, str, str], str]
) -> list[str]:
    """Methods missing from some average because they were not run on every dataset."""
    return (
        sorted({cell.trainer for cell in cells if (cell.trainer, cell.shots) not in means}) if len(labels) > 1 else []
    )


def _captions(
    cells: Sequence[Cell], split: str, shots: int, ranks: RankDiagram | None, incomplete: Sequence[str]
) -> dict[str, str]:
    metric = " or ".join(sorted({cell.metric for cell in cells})).replace("_", " ")
    draws = sorted({len(cell.values) for cell in cells if uses_shots(cell.trainer)})
    number = " or ".join(map(str, draws))
    missing = f" Not run on every dataset, so not in each average: {', '.join(incomplete)}." if incomplete else ""
    bands = (
        f"means over {number} draws of the training images, bands: 95 % t-intervals over the draws (cut off where they "
        "leave the panel). The average's band is over draws of the mean over datasets."
        if max(draws, default=1) > 1
        else "one draw of the training images, so without intervals."
    )
    fixed = any(not uses_shots(cell.trainer) for cell in cells)
    lines = " Horizontal lines: methods that use no training images." if fixed else ""
    setting = f"with {shots_label(shots)}" if shots != ALL_IMAGES else "with all training images"
    what = f"{split.capitalize()} {metric} (%)"
    captions = {
        "accuracy": f"{what} over the number of training images per class: {bands}{lines}{missing}",
        "heatmap": f"{what} {setting}, best average first. Colours: points better (blue) or worse (red) than the "
        "median of the methods on the same dataset.",
        "time": f"{what} {setting} against the seconds of training and evaluating a run, without encoding images; "
        f"means over datasets and draws.{missing}",
    }
    if ranks:
        p = (
            ""
            if math.isnan(ranks.p)
            else f" Friedman's test: p {'< 0.001' if ranks.p < 0.001 else f'= {ranks.p:.3f}'}."
        )
        captions["ranks"] = (
            f"Mean rank (1 is the best) over {ranks.datasets} datasets {setting}. Bars join methods that Nemenyi's "
            f"test at 0.05 does not distinguish: their mean ranks differ by no more than the critical difference "
            f"{ranks.critical_difference:.2f}.{p}"
        )
    return captions


# ---- axes --------------------------------------------------------------------------------------------------------


def tick(number: int) -> str:
    return "all" if number == ALL_IMAGES else str(number)


def positions_of(numbers: Sequence[int]) -> dict[int, float]:
    """Positions of numbers of shots on a base-2 logarithmic axis, with all training images rightmost."""
    positions = {number: math.log2(number) for number in numbers if number != ALL_IMAGES}
    if ALL_IMAGES in numbers:
        positions[ALL_IMAGES] = max(positions.values(), default=-1.0) + 1.0
    return positions


def ends(point: Estimate) -> tuple[float, float]:
    """The ends of a band; both are the mean if there is no interval."""
    half = point.half or 0.0
    return point.mean - half, point.mean + half


def limits(panel: Panel) -> tuple[float, float]:
    """Limits of a panel's axis: they contain all means, and as much of the bands as leaves the curves legible."""
    points = [point for curve in panel.curves for point in curve.points.values()]
    low, high = min(point.mean for point in points), max(point.mean for point in points)
    room = max(0.25 * (high - low), 2.0)
    lowest, highest = min(ends(point)[0] for point in points), max(ends(point)[1] for point in points)
    margin = 0.06 * (high - low) + 0.5
    return max(low - room, lowest - margin, -1.0), min(high + room, highest + margin, 101.0)
