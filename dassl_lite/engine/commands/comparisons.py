"""Averages over datasets, rankings, and comparisons of one method with another, from the cells of a sweep.

The statistical tests are in `dassl_lite.evaluation.statistics`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np

from dassl_lite.engine.commands.cells import Cell, grouped, lower_is_better, mean_of, uses_shots
from dassl_lite.evaluation.statistics import Difference, Estimate, Ranking, estimate, paired, rank, versus
from dassl_lite.utils.errors import unknown


@dataclass(frozen=True)
class Average:
    """One method with one number of shots, averaged over datasets; each dataset's mean counts as one value.

    Attributes:
        estimate: the mean with its interval over datasets.
        over_draws: the mean with its interval over draws; without an interval if the datasets' seeds differ.
        gain: mean gain over zero-shot CLIP over the datasets; NaN if no run contains zero-shot results.
        below: number of datasets on which the method is below zero-shot CLIP.
        datasets: number of datasets; averages over different datasets are not comparable.
        cells: cells of these datasets.
    """

    trainer: str
    shots: int
    estimate: Estimate
    over_draws: Estimate
    gain: float
    below: int
    datasets: int
    cells: tuple[Cell, ...] = field(default=(), repr=False)


def averages(cells: Sequence[Cell]) -> list[Average]:
    """Averages over datasets; empty if there is only one. A method that uses no shots gets one row."""
    rows = []
    for (trainer, shots), group in sorted(grouped(cells, lambda cell: (cell.trainer, cell.shots)).items()):
        datasets = {cell.dataset for cell in group}
        if len(datasets) < 2 or len(datasets) < len(group):  # needs several datasets, and one backbone per row
            continue
        gains = [cell.mean - zero for cell in group if not math.isnan(zero := mean_of(cell.runs, "zero_shot"))]
        gain, below = (fmean(gains), sum(value < 0 for value in gains)) if gains else (math.nan, 0)
        mean = estimate([cell.mean for cell in group])
        rows.append(Average(trainer, shots, mean, _over_draws(group), gain, below, len(group), tuple(group)))
    return rows


def _over_draws(cells: Sequence[Cell]) -> Estimate:
    """The mean over datasets, with its interval over seeds if every dataset has the same seeds."""
    by_seed = [{run.seed: run.value for run in cell.runs} for cell in cells]
    if any(set(values) != set(by_seed[0]) for values in by_seed):
        return Estimate(fmean(cell.mean for cell in cells), None, 1)
    return estimate([fmean(values[seed] for values in by_seed) for seed in by_seed[0]])


def rankings(cells: Sequence[Cell]) -> dict[int, tuple[list[str], Ranking]]:
    """Methods ranked over the datasets, by number of shots; a method that uses no shots is ranked in each.

    Only methods with a result on every dataset are ranked; at least two methods and two datasets are needed.
    """
    scores = _scores(cells)
    ranked = {}
    for shots, by_method in scores.items():
        datasets = sorted({dataset for by_dataset in by_method.values() for dataset in by_dataset})
        methods = [method for method, by_dataset in by_method.items() if len(by_dataset) == len(datasets)]
        if len(methods) > 1 and len(datasets) > 1:
            table = np.array([[by_method[method][dataset] for method in methods] for dataset in datasets])
            ranked[shots] = methods, rank(-table if lower_is_better(cells[0].metric) else table)
    return ranked


def against(cells: Sequence[Cell], reference: str) -> dict[int, dict[str, Difference]]:
    """Compare every method with ``reference`` over datasets, by number of shots.

    Raises:
        UserError: there is no run of ``reference``.
    """
    _require(cells, reference)
    scores = {shots: by_method for shots, by_method in _scores(cells).items() if reference in by_method}
    return {shots: versus(by_method, reference) for shots, by_method in scores.items() if len(by_method) > 1}


def against_by_draw(cells: Sequence[Cell], reference: str) -> list[tuple[Cell, Difference]]:
    """Compare every cell with that of ``reference``, paired by draw; a reference without shots has one value for all.

    Raises:
        UserError: there is no run of ``reference``.
    """
    _require(cells, reference)
    reference_cells = {(cell.unit, cell.shots): cell for cell in cells if cell.trainer == reference}
    differences = []
    for cell in cells:
        other = reference_cells.get((cell.unit, cell.shots))
        second = other.by_draw() if other else None
        if other is None and (fixed := reference_cells.get((cell.unit, 0))) and not uses_shots(reference):
            second = dict.fromkeys(cell.by_draw(), fixed.mean)
        if cell.trainer == reference or second is None:
            continue
        difference = paired(cell.by_draw(), second)
        if difference is not None:
            differences.append((cell, difference))
    return differences


def _require(cells: Sequence[Cell], reference: str) -> None:
    known = {cell.trainer for cell in cells}
    if reference not in known:
        raise unknown("method", reference, sorted(known))


def _scores(cells: Sequence[Cell]) -> dict[int, dict[str, dict[str, float]]]:
    """shots -> method -> dataset -> mean; methods that use no shots are included for every number of shots."""
    groups = grouped(cells, lambda cell: cell.shots)
    fixed = [cell for cell in groups.get(0, []) if not uses_shots(cell.trainer)]
    scores = {}
    for shots in sorted(groups):
        included = [*groups[shots], *(fixed if shots else [])]
        by_method: dict[str, dict[str, float]] = defaultdict(dict)
        for cell in included:
            by_method[cell.trainer][" ".join(cell.unit)] = cell.mean
        if len(fixed) < len(groups[shots]) or shots:
            scores[shots] = dict(by_method)
    return scores
