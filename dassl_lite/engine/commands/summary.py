"""The results of a sweep as tables: over seeds, over datasets, and of one method compared with another.

They are built from the cells of `cells.py` and from `comparisons.py`. Notes list where the runs come from and which are
missing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from dassl_lite.engine.commands.cells import (
    Cell,
    grouped,
    lower_is_better,
    mean_of,
    shots_label,
    tuned_label,
    uses_shots,
)
from dassl_lite.engine.commands.comparisons import Average, against, against_by_draw, averages, rankings
from dassl_lite.engine.commands.published import AVERAGE, FIELD, Published
from dassl_lite.engine.commands.tables import Table, best_two
from dassl_lite.engine.files.results import FILE_NAME, MAIN_METRICS
from dassl_lite.engine.files.run_folder import REPLACED
from dassl_lite.evaluation.statistics import Difference


def as_table(cells: Sequence[Cell], published: Published | None = None) -> Table:
    """A row per dataset and method, a column per number of shots, and one for all training images.

    Columns with published numbers are followed by these and by our differences from them.

    A method that uses no shots has the same number in every column. If metrics differ between datasets, the dataset
    names include them. The best and second-best mean of a dataset's column are marked.
    """
    by_row: dict[tuple[str, str], dict[int, Cell]] = defaultdict(dict)
    mixed = len({cell.metric for cell in cells}) > 1
    for cell in cells:
        dataset = f"{cell.dataset} ({cell.metric})" if mixed else cell.dataset
        by_row[dataset, cell.trainer][cell.shots] = cell
    columns = sorted({cell.shots for cell in cells if cell.shots})
    if any(cell.shots == 0 and uses_shots(cell.trainer) for cell in cells):
        columns.append(0)
    rows: list[list[str]] = []
    means: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)  # (dataset, column) -> row -> mean
    comparisons: dict[int, dict[int, tuple[str, str]]] = defaultdict(dict)  # column -> row -> published, difference
    for (dataset, trainer), by_shots in sorted(by_row.items()):
        fixed = None if uses_shots(trainer) else by_shots.get(0)
        row = [by_shots.get(number) or fixed for number in columns or [0]]
        for column, entry in enumerate(row, start=2):
            if entry is not None:
                means[dataset, column][len(rows)] = entry.mean
                if published and (texts := _published_texts(entry, published)):
                    comparisons[column][len(rows)] = texts
        rows.append([dataset, trainer, *(str(entry or "") for entry in row)])
    places = {
        (row, column): place
        for (_, column), by_line in means.items()
        for row, place in best_two(by_line, lowest=lower_is_better(cells[0].metric)).items()
    }
    headers = ["dataset", "method", *(map(shots_label, columns) if columns else ["no shots"])]
    return Table("", headers, rows, places).with_columns(["published", "difference"], comparisons)


def _published_texts(cell: Cell, published: Published) -> tuple[str, str] | None:
    """Texts for the numbers published for a cell; None if there are none."""
    if cell.metric != MAIN_METRICS[0]:
        return None
    values = published.find(cell.dataset, cell.method, cell.shots, cell.backbone, cell.classes)
    return published.compare(cell.mean, values) if values else None


def average_table(cells: Sequence[Cell], published: Published | None = None) -> Table | None:
    """Means over datasets, the gain over zero-shot CLIP and how often it is negative; None for fewer than two datasets.

    Published averages are shown for averages over exactly the field's eleven datasets.
    """
    over_datasets = averages(cells)
    if not over_datasets:
        return None
    rows = [
        [
            average.trainer,
            shots_label(average.shots) if uses_shots(average.trainer) else "",
            str(average.estimate),
            "" if math.isnan(average.gain) else f"{average.gain:+.2f}",
            "" if math.isnan(average.gain) else f"{average.below} of {average.datasets}",
        ]
        for average in over_datasets
    ]
    headers = ["method", "shots", "average", "gain", "below zero-shot"]
    title = (
        "Average over datasets, ± 95 % interval with datasets as the unit; gain over zero-shot CLIP, datasets below it"
    )
    texts = {
        row: compared
        for row, average in enumerate(over_datasets)
        if published and (compared := _published_average(average, published))
    }
    return Table(title, headers, rows).with_columns(["published", "difference"], {2: texts})


def _published_average(average: Average, published: Published) -> tuple[str, str] | None:
    first = average.cells[0]
    kinds = {(cell.backbone, cell.classes, cell.metric) for cell in average.cells}
    if len(kinds) > 1 or {cell.dataset for cell in average.cells} != FIELD:
        return None
    mean = fmean(cell.mean for cell in average.cells)
    return _published_texts(replace(first, dataset=AVERAGE, values=(mean,)), published)


def rank_table(cells: Sequence[Cell]) -> Table | None:
    """Mean ranks, one column per number of shots; None if nothing can be ranked."""
    ranked = rankings(cells)
    if not ranked:
        return None
    methods = sorted({method for names, _ in ranked.values() for method in names})
    by_shots = {shots: dict(zip(names, ranking.mean_ranks, strict=True)) for shots, (names, ranking) in ranked.items()}
    rows = [
        [method, *(f"{ranks[method]:.2f}" if method in ranks else "" for ranks in by_shots.values())]
        for method in methods
    ]
    rankings_ = [ranking for _, ranking in ranked.values()]
    rows.append(["Friedman's p", *(_p(ranking.p) for ranking in rankings_)])
    rows.append(["critical difference", *(f"{ranking.critical_difference:.2f}" for ranking in rankings_)])
    rows.append(["datasets", *(str(ranking.datasets) for ranking in rankings_)])
    title = "Mean rank over datasets (1 is the best); Nemenyi's critical difference at 0.05"
    return Table(title, ["method", *map(shots_label, ranked)], rows)


def _order(cell: Cell) -> tuple[str, str, float]:
    """Sort key: dataset, method and number of shots, where all images come last."""
    return cell.dataset, cell.trainer, cell.shots if cell.shots >= 0 else math.inf


def versus_tables(cells: Sequence[Cell], reference: str) -> list[Table]:
    """Differences from ``reference``: on each dataset, paired by draw, and over datasets.

    Raises:
        UserError: there is no run of ``reference``.
    """
    tables = []
    by_draw = [
        [
            cell.dataset,
            cell.trainer,
            shots_label(cell.shots) if uses_shots(cell.trainer) else "",
            _signed(difference),
            _p(difference.p),
            str(difference.estimate.count),
        ]
        for cell, difference in sorted(against_by_draw(cells, reference), key=lambda pair: _order(pair[0]))
    ]
    if by_draw:
        headers = ["dataset", "method", "shots", f"minus {reference}", "paired t, p", "draws"]
        tables.append(Table(f"Against {reference} on each dataset, paired by draw", headers, by_draw))
    over = [
        [
            method,
            shots_label(shots),
            _signed(difference),
            _better_and_worse(difference, cells[0].metric),
            _p(difference.p),
            _p(difference.p_adjusted),
        ]
        for shots, by_method in against(cells, reference).items()
        for method, difference in sorted(by_method.items())
        if difference.estimate.count > 1
    ]
    if over:
        headers = ["method", "shots", f"minus {reference}", "better / worse", "Wilcoxon, p", "Holm, p"]
        tables.append(Table(f"Against {reference} over datasets", headers, over))
    return tables


def cost_table(cells: Sequence[Cell]) -> Table | None:
    """Means over a method's runs: calibration, time, trainable parameters, memory; None if no run has any of these."""
    rows = []
    for trainer, group in sorted(grouped(cells, lambda cell: cell.trainer).items()):
        runs = [run for cell in group for run in cell.runs]
        values = [mean_of(runs, name) for name in ("ece", "seconds", "parameters", "memory")]
        if not all(map(math.isnan, values)):
            formats = ("{:.2f}", "{:.1f}", "{:,.0f}", "{:,.0f}")
            texts = ["" if math.isnan(v) else f.format(v) for f, v in zip(formats, values, strict=True)]
            rows.append([trainer, *texts, ", ".join(sorted({tuned_label(run) for run in runs if run.tuned_on}))])
    headers = ["method", "ECE %", "seconds", "trainable", "memory MiB", "tuned on"]
    title = "Cost of a run, mean over a method's runs: calibration, time, trainable parameters, peak memory"
    return Table(title, headers, rows) if rows else None


def _better_and_worse(difference: Difference, metric: str) -> str:
    counts = difference.wins, difference.losses
    return "{} / {}".format(*(reversed(counts) if lower_is_better(metric) else counts))


def _signed(difference: Difference) -> str:
    text = str(difference.estimate)
    return text if text.startswith("-") else f"+{text}"


def _p(value: float) -> str:
    return "" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def provenance(cells: Sequence[Cell]) -> list[str]:
    """What a reader must know about the runs behind the tables, one line each, as far as the runs say it."""
    runs = [run for cell in cells for run in cell.runs]
    lines = [f"backbone: {', '.join(sorted({cell.backbone for cell in cells}))}"]
    for what, attribute in (("precision", "precision"), ("dassl-lite", "version")):
        if known := sorted({text for run in runs if (text := getattr(run, attribute))}):
            lines.append(f"{what}: {', '.join(known)}")
    draws: dict[tuple[str, int], set[tuple[int, str]]] = defaultdict(set)
    for cell in cells:
        draws[cell.dataset, cell.shots] |= {(run.seed, run.draw[:8]) for run in cell.runs if run.draw}
    for (dataset, shots), seeds in sorted(draws.items()):
        if seeds and shots:
            names = ", ".join(f"seed {seed} {digest}" for seed, digest in sorted(seeds))
            lines.append(f"draws of {dataset}, {shots_label(shots)}: {names}")
    if chosen := sorted({cell.trainer for cell in cells if any(run.tuned_on == "test" for run in cell.runs)}):
        lines.append(f"tuned on test images, so not comparable: {', '.join(chosen)}")
    return lines


_MAX_LISTED = 8


def gaps(cells: Sequence[Cell], folder: Path) -> list[str]:
    """What is missing from the tables, one line each: unfinished runs, and runs that the other runs suggest.

    Every method is expected to have runs with the same datasets, numbers of shots and seeds as the others.

    Args:
        cells: cells of the runs below ``folder``.
    """
    begun = sorted(
        str(path.parent.relative_to(folder))
        for path in folder.rglob("log.txt")
        if path.parent.name != REPLACED and not (path.parent / FILE_NAME).is_file()
    )
    seeds = {
        (cell.dataset, cell.trainer, cell.shots): {run.seed for run in cell.runs}
        for cell in cells
        if uses_shots(cell.trainer)
    }
    datasets, methods = sorted({cell.dataset for cell in cells}), sorted({cell.trainer for cell in cells})
    numbers = sorted({shots for _, _, shots in seeds})
    every = set().union(*seeds.values())
    missing = []
    for method in methods:
        if uses_shots(method):
            for dataset in datasets:
                for shots in numbers:
                    absent = every - seeds.get((dataset, method, shots), set())
                    if absent:
                        seeds_note = f" (seed {', '.join(map(str, sorted(absent)))})" if absent != every else ""
                        missing.append(f"{method} on {dataset}, {shots_label(shots)}{seeds_note}")
        else:
            present = {cell.dataset for cell in cells if cell.trainer == method}
            missing += [f"{method} on {dataset}" for dataset in datasets if dataset not in present]
    return [*_listed("not finished (failed, stopped or still running)", begun), *_listed("no result", missing)]


def _listed(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f"; and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return [f"{what}: {'; '.join(names[:_MAX_LISTED])}{more}"]
