"""What a sweep has found: tables over seeds, over datasets, and of one method against another.

A `Cell` is one method on one dataset with one number of shots, over its draws. The tables are made of cells; what may
be concluded from them is computed in `dassl_lite.evaluation.statistics`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from dassl_lite.engine.build import uses_shots as trainer_uses_shots
from dassl_lite.engine.commands.arguments import OWN_DATA, data_label
from dassl_lite.engine.commands.published import AVERAGE, FIELD, Published
from dassl_lite.engine.commands.tables import Table, best_two
from dassl_lite.engine.files.results import FILE_NAME, MAIN_METRICS, main_metric, read_results
from dassl_lite.engine.files.run_folder import REPLACED
from dassl_lite.evaluation.statistics import Difference, Estimate, Ranking, estimate, paired, rank, versus
from dassl_lite.utils.errors import UserError, shown, unknown
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)


ZERO_SHOT = "ZeroshotCLIP"


@dataclass(frozen=True)
class Run:
    """What a table needs of a finished run; NaN and "" where its results do not say it.

    Attributes:
        draw: names the images that were drawn: the draw's digest, or the seed where there was no draw.
        tuned_on: "val", "leave_one_out", "cross_validation", "nothing" or "test".
        zero_shot: the metric of CLIP without adaptation, in percent.
        seconds: of training and of evaluating; features that were extracted on the way do not count.
        parameters: trainable numbers.
        memory: peak of the process, in MiB.
        classes: "all", or the half that was trained and tested: "base" or "new"; "" of the user's own data.
    """

    seed: int
    value: float
    draw: str = ""
    tuned_on: str = ""
    zero_shot: float = math.nan
    ece: float = math.nan
    seconds: float = math.nan
    parameters: float = math.nan
    memory: float = math.nan
    precision: str = ""
    version: str = ""
    classes: str = ""


@dataclass(frozen=True)
class Cell:
    """One method on one dataset with one number of shots, over its seeds; ``values`` are of ``metric``, in percent."""

    dataset: str
    trainer: str  # as tables name it: a transductive run is called so; with its backbone where a dataset has several
    backbone: str
    shots: int
    values: tuple[float, ...]
    metric: str = MAIN_METRICS[0]
    runs: tuple[Run, ...] = field(default=(), repr=False)

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def estimate(self) -> Estimate:
        """The mean with its 95 % confidence interval over seeds."""
        return estimate(self.values)

    @property
    def interval(self) -> float | None:
        """Half the width of the mean's 95 % confidence interval; None for a single value."""
        return self.estimate.half

    @property
    def unit(self) -> tuple[str, str]:
        """What methods are compared on: the dataset and, unless methods are called by theirs, the backbone."""
        return self.dataset, "" if self.trainer.endswith(f" ({self.backbone})") else self.backbone

    @property
    def method(self) -> str:
        """The method without the backbone."""
        return self.trainer.removesuffix(f" ({self.backbone})")

    @property
    def classes(self) -> str:
        """As of its runs: "all", "base" or "new"; "" if they differ or do not say it."""
        found = {run.classes for run in self.runs}
        return found.pop() if len(found) == 1 else ""

    def by_draw(self) -> dict[Any, float]:
        """Value by draw: by its digest, and by its seed where a digest is not there or, of all images, the same."""
        return {(run.draw, run.seed): run.value for run in self.runs}

    def __str__(self) -> str:
        return str(self.estimate)


def gather(folder: str | Path, metric: str = "", split: str = "test") -> list[Cell]:
    """All finished runs below ``folder``, one cell per dataset, method, backbone and number of shots.

    Args:
        folder: of the sweep.
        metric: "" for each run's main one: accuracy, or mAP on a multi-label dataset.
        split: "test" or "val".

    Raises:
        UserError: there is none, or one lacks the split or the metric, or has no number; names it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder")
    paths = [path for path in sorted(root.rglob(FILE_NAME)) if path.parent.name != REPLACED]
    runs = [(path, results) for path in paths if (results := read_results(path.parent))]
    if not runs:
        raise UserError(f"no finished run (a folder with {FILE_NAME}) below {root}")
    cells: dict[tuple[str, str, str, int, str], dict[int, Run]] = defaultdict(dict)
    repeated: set[str] = set()
    for path, run in runs:
        if not _is_complete(run):
            raise UserError(f"{path} does not hold the results of a run; delete it")
        if split not in run["metrics"]:
            there = ", ".join(map(str, run["metrics"])) or "none"
            raise UserError(f"{path} has no results of the split '{split}'; it has those of: {there}")
        metrics = run["metrics"][split]
        name = metric or main_metric(metrics) or MAIN_METRICS[0]
        if name not in metrics:
            raise unknown("metric", name, metrics, f"These are in {path}.")
        if type(metrics[name]) not in (int, float) or not math.isfinite(metrics[name]):
            raise UserError(f"{path} says that its {name} is {shown(metrics[name])}; delete it and run again")
        key = (dataset_label(run), _method(run), backbone_label(run), max(run["num_shots"], 0), name)
        other = cells[key].get(run["seed"])
        if other is not None and other.value != metrics[name]:
            repeated.add(f"{_method(run)} on {dataset_label(run)}")
        cells[key][run["seed"]] = _run(run, metrics, name)
    if repeated:
        logger.warning(
            f"some runs below {root} differ in settings that the table does not show (other than dataset, method, "
            f"backbone, shots, seed); of each, one is shown: {', '.join(sorted(repeated)[:5])}; "
            "report their folders one by one"
        )
    found = []
    kinds = [(dataset, trainer, shots, name) for dataset, trainer, _, shots, name in cells]
    by_backbone = len(set(kinds)) < len(kinds)  # a method on a dataset with two: they are not one row
    for (dataset, trainer, backbone, shots, name), by_seed in cells.items():
        trainer = f"{trainer} ({backbone})" if by_backbone else trainer
        in_order = tuple(by_seed[seed] for seed in sorted(by_seed))
        found.append(Cell(dataset, trainer, backbone, shots, tuple(run.value for run in in_order), name, in_order))
    return found


def _run(results: Mapping[str, Any], metrics: Mapping[str, Any], metric: str) -> Run:
    """The run of results that are complete; what else they say may be of any kind."""

    def number(value: Any) -> float:
        return float(value) if type(value) in (int, float) else math.nan

    def words(value: Any) -> str:
        return value if isinstance(value, str) else ""

    def of(key: str) -> Mapping[str, Any]:
        return found if isinstance(found := results.get(key), dict) else {}

    seconds = {phase: number(spent) for phase, spent in of("seconds").items()}
    return Run(
        seed=results["seed"],
        value=float(metrics[metric]),
        draw=words(results.get("fewshot_digest")),
        tuned_on=words(results.get("tuned_on")),
        zero_shot=number(results.get(f"zero_shot_{metric}")),
        ece=number(metrics.get("ece")),
        seconds=sum(spent for phase, spent in seconds.items() if phase != "features") if seconds else math.nan,
        parameters=number(results.get("trainable_parameters")),
        memory=number(of("peak_memory").get("host_mib")),
        precision=words(of("arithmetic").get("precision")),
        version=words(of("environment").get("dassl_lite")),
        classes=""
        if results["dataset"] in OWN_DATA
        else words(of("config").get("DATASET", {}).get("SUBSAMPLE_CLASSES")),
    )


def _method(results: Mapping[str, Any]) -> str:
    """The method of a run as tables name it: its trainer, and what else a reader has to know ("(transductive)")."""
    return str(results.get("method") or results["trainer"])


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better."""
    return "error" in metric or metric == "ece"


def uses_shots(method: str) -> bool:
    """Whether the training images make a difference to a method, named as in tables."""
    return trainer_uses_shots(method.partition(" ")[0])


def _is_complete(run: Mapping[str, Any]) -> bool:
    """Whether results have what a table needs."""
    words = all(isinstance(run.get(key), str) for key in ("trainer", "dataset"))
    words = words and isinstance(run.get("backbone", 0), str | None)
    numbers = all(type(run.get(key)) is int for key in ("num_shots", "seed"))
    metrics = run.get("metrics")
    config = run.get("config", {})
    config = config.get("DATASET", {}) if isinstance(config, dict) else None
    splits = (
        isinstance(config, dict) and isinstance(metrics, dict) and all(isinstance(of, dict) for of in metrics.values())
    )
    return words and numbers and splits


def dataset_label(results: Mapping[str, Any]) -> str:
    """The dataset of a run; the user's own data goes by the name of its folder or file, to tell one from another."""
    name = results["dataset"]
    path = results.get("config", {}).get("DATASET", {}).get(OWN_DATA.get(name, ""), "")
    return data_label(path) if path else name


def backbone_label(results: Mapping[str, Any]) -> str:
    """The backbone of a run; that of a feature file need not have a name."""
    return str(results["backbone"] or "unnamed")


def as_table(cells: Sequence[Cell], published: Published | None = None) -> Table:
    """A row per dataset and method, a column per number of shots, and one for all training images.

    Published numbers and our differences from them stand beside a column of which any is published.

    A method that uses no shots has the same number in every column. Where datasets have different metrics, their names
    say which. The best and the second-best mean of a dataset's column are marked.
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
    beside: dict[int, dict[int, tuple[str, str]]] = defaultdict(dict)  # column -> row -> published, difference
    for (dataset, trainer), found in sorted(by_row.items()):
        fixed = None if uses_shots(trainer) else found.get(0)
        shown = [found.get(number) or fixed for number in columns or [0]]
        for column, one in enumerate(shown, start=2):
            if one is not None:
                means[dataset, column][len(rows)] = one.mean
                if published and (texts := _beside(one, published)):
                    beside[column][len(rows)] = texts
        rows.append([dataset, trainer, *(str(one or "") for one in shown)])
    places = {
        (row, column): place
        for (_, column), by_line in means.items()
        for row, place in best_two(by_line, lowest=lower_is_better(cells[0].metric)).items()
    }
    headers = ["dataset", "method", *(map(shots_label, columns) if columns else ["no shots"])]
    return Table("", headers, rows, places).with_columns(["published", "difference"], beside)


def _beside(cell: Cell, published: Published) -> tuple[str, str] | None:
    """Texts of what is published for a cell; None for nothing."""
    if cell.metric != MAIN_METRICS[0]:
        return None
    values = published.find(cell.dataset, cell.method, cell.shots, cell.backbone, cell.classes)
    return published.beside(cell.mean, values) if values else None


def shots_label(number: int) -> str:
    return "all" if number == 0 else f"{number} shot{'s' if number > 1 else ''}"


# ---- over datasets ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Average:
    """One method with one number of shots over datasets, where a dataset's mean is one value.

    Attributes:
        estimate: the mean with its interval over datasets.
        over_draws: the mean with the interval over draws of such means; without one if the datasets' seeds differ.
        gain: mean over the datasets' gains over zero-shot CLIP; NaN if no run says what zero-shot CLIP has.
        below: datasets where the method is below zero-shot CLIP.
        datasets: how many it has been run on; averages over others do not compare.
        cells: of these datasets.
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
    """Averages over datasets; empty if there is only one. A method that uses no shots has one row."""
    found = []
    for (trainer, shots), group in sorted(_grouped(cells, lambda cell: (cell.trainer, cell.shots)).items()):
        datasets = {cell.dataset for cell in group}
        if len(datasets) < 2 or len(datasets) < len(group):  # not one dataset, nor two backbones in one row
            continue
        gains = [cell.mean - zero for cell in group if not math.isnan(zero := mean_of(cell.runs, "zero_shot"))]
        gain, below = (fmean(gains), sum(value < 0 for value in gains)) if gains else (math.nan, 0)
        mean = estimate([cell.mean for cell in group])
        found.append(Average(trainer, shots, mean, _over_draws(group), gain, below, len(group), tuple(group)))
    return found


def _over_draws(cells: Sequence[Cell]) -> Estimate:
    """The mean over datasets, with the interval over seeds of these means if every dataset has the same seeds."""
    by_seed = [{run.seed: run.value for run in cell.runs} for cell in cells]
    if any(set(of) != set(by_seed[0]) for of in by_seed):
        return Estimate(fmean(cell.mean for cell in cells), None, 1)
    return estimate([fmean(of[seed] for of in by_seed) for seed in by_seed[0]])


def rankings(cells: Sequence[Cell]) -> dict[int, tuple[list[str], Ranking]]:
    """Methods ranked over the datasets, by number of shots; one that uses no shots takes part in each.

    Only methods with a result on every dataset take part; there are two or more, and two or more datasets.
    """
    scores = _scores(cells)
    found = {}
    for shots, by_method in scores.items():
        datasets = sorted({dataset for by_dataset in by_method.values() for dataset in by_dataset})
        methods = [method for method, by_dataset in by_method.items() if len(by_dataset) == len(datasets)]
        if len(methods) > 1 and len(datasets) > 1:
            table = np.array([[by_method[method][dataset] for method in methods] for dataset in datasets])
            found[shots] = methods, rank(-table if lower_is_better(cells[0].metric) else table)
    return found


def against(cells: Sequence[Cell], reference: str) -> dict[int, dict[str, Difference]]:
    """Every method against ``reference`` over datasets, by number of shots.

    Raises:
        UserError: there is no run of ``reference``.
    """
    _require(cells, reference)
    scores = {shots: by_method for shots, by_method in _scores(cells).items() if reference in by_method}
    return {shots: versus(by_method, reference) for shots, by_method in scores.items() if len(by_method) > 1}


def against_by_draw(cells: Sequence[Cell], reference: str) -> list[tuple[Cell, Difference]]:
    """Every cell against that of ``reference``, paired by draw; a method that uses no shots has the same value in each.

    Raises:
        UserError: there is no run of ``reference``.
    """
    _require(cells, reference)
    of = {(cell.unit, cell.shots): cell for cell in cells if cell.trainer == reference}
    found = []
    for cell in cells:
        other = of.get((cell.unit, cell.shots))
        second = other.by_draw() if other else None
        if other is None and (fixed := of.get((cell.unit, 0))) and not uses_shots(reference):
            second = dict.fromkeys(cell.by_draw(), fixed.mean)
        if cell.trainer == reference or second is None:
            continue
        difference = paired(cell.by_draw(), second)
        if difference is not None:
            found.append((cell, difference))
    return found


def _require(cells: Sequence[Cell], reference: str) -> None:
    known = {cell.trainer for cell in cells}
    if reference not in known:
        raise unknown("method", reference, sorted(known))


def _grouped(cells: Sequence[Cell], key: Callable[[Cell], Any]) -> dict[Any, list[Cell]]:
    groups: dict[Any, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[key(cell)].append(cell)
    return groups


def _scores(cells: Sequence[Cell]) -> dict[int, dict[str, dict[str, float]]]:
    """shots -> method -> dataset -> mean; methods that use no shots are in all of them."""
    groups = _grouped(cells, lambda cell: cell.shots)
    fixed = [cell for cell in groups.get(0, []) if not uses_shots(cell.trainer)]
    found = {}
    for shots in sorted(groups):
        taking_part = [*groups[shots], *(fixed if shots else [])]
        by_method: dict[str, dict[str, float]] = defaultdict(dict)
        for cell in taking_part:
            by_method[cell.trainer][" ".join(cell.unit)] = cell.mean
        if len(fixed) < len(groups[shots]) or shots:
            found[shots] = dict(by_method)
    return found


def average_table(cells: Sequence[Cell], published: Published | None = None) -> Table | None:
    """Means over datasets, the gain over zero-shot CLIP and where it is negative; None with fewer than two datasets.

    Published averages stand beside those over exactly the field's eleven datasets.
    """
    found = averages(cells)
    if not found:
        return None
    rows = [
        [
            one.trainer,
            shots_label(one.shots) if uses_shots(one.trainer) else "",
            str(one.estimate),
            "" if math.isnan(one.gain) else f"{one.gain:+.2f}",
            "" if math.isnan(one.gain) else f"{one.below} of {one.datasets}",
        ]
        for one in found
    ]
    headers = ["method", "shots", "average", "gain", "below zero-shot"]
    title = (
        "Average over datasets, ± 95 % interval with datasets as the unit; gain over zero-shot CLIP, datasets below it"
    )
    texts = {row: found_ for row, one in enumerate(found) if published and (found_ := _average_beside(one, published))}
    return Table(title, headers, rows).with_columns(["published", "difference"], {2: texts})


def _average_beside(average: Average, published: Published) -> tuple[str, str] | None:
    first = average.cells[0]
    same = {(cell.backbone, cell.classes, cell.metric) for cell in average.cells}
    if len(same) > 1 or {cell.dataset for cell in average.cells} != FIELD:
        return None
    mean = fmean(cell.mean for cell in average.cells)
    return _beside(replace(first, dataset=AVERAGE, values=(mean,)), published)


def rank_table(cells: Sequence[Cell]) -> Table | None:
    """Mean ranks, a column per number of shots; None if nothing can be ranked."""
    found = rankings(cells)
    if not found:
        return None
    methods = sorted({method for names, _ in found.values() for method in names})
    by_shots = {shots: dict(zip(names, ranking.mean_ranks, strict=True)) for shots, (names, ranking) in found.items()}
    rows = [[method, *(f"{of[method]:.2f}" if method in of else "" for of in by_shots.values())] for method in methods]
    rankings_ = [ranking for _, ranking in found.values()]
    rows.append(["Friedman's p", *(_p(ranking.p) for ranking in rankings_)])
    rows.append(["critical difference", *(f"{ranking.critical_difference:.2f}" for ranking in rankings_)])
    rows.append(["datasets", *(str(ranking.datasets) for ranking in rankings_)])
    title = "Mean rank over datasets (1 is the best); Nemenyi's critical difference at 0.05"
    return Table(title, ["method", *map(shots_label, found)], rows)


def _order(cell: Cell) -> tuple[str, str, float]:
    """By dataset, method and number of shots, of which all images are the most."""
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
            _signed(found),
            _p(found.p),
            str(found.estimate.count),
        ]
        for cell, found in sorted(against_by_draw(cells, reference), key=lambda one: _order(one[0]))
    ]
    if by_draw:
        headers = ["dataset", "method", "shots", f"minus {reference}", "paired t, p", "draws"]
        tables.append(Table(f"Against {reference} on each dataset, paired by draw", headers, by_draw))
    over = [
        [
            method,
            shots_label(shots),
            _signed(found),
            _better_and_worse(found, cells[0].metric),
            _p(found.p),
            _p(found.p_adjusted),
        ]
        for shots, by_method in against(cells, reference).items()
        for method, found in sorted(by_method.items())
        if found.estimate.count > 1
    ]
    if over:
        headers = ["method", "shots", f"minus {reference}", "better / worse", "Wilcoxon, p", "Holm, p"]
        tables.append(Table(f"Against {reference} over datasets", headers, over))
    return tables


def cost_table(cells: Sequence[Cell]) -> Table | None:
    """Means over all runs of a method: calibration, time, trainable numbers, memory; None if no run says any."""
    rows = []
    for trainer, group in sorted(_grouped(cells, lambda cell: cell.trainer).items()):
        runs = [run for cell in group for run in cell.runs]
        values = [mean_of(runs, name) for name in ("ece", "seconds", "parameters", "memory")]
        if not all(map(math.isnan, values)):
            formats = ("{:.2f}", "{:.1f}", "{:,.0f}", "{:,.0f}")
            texts = ["" if math.isnan(v) else f.format(v) for f, v in zip(formats, values, strict=True)]
            rows.append([trainer, *texts, ", ".join(sorted({tuned_label(run) for run in runs if run.tuned_on}))])
    headers = ["method", "ECE %", "seconds", "trainable", "memory MiB", "tuned on"]
    return (
        Table(
            "Cost of a run, mean over a method's runs: calibration, time, trainable numbers, peak memory", headers, rows
        )
        if rows
        else None
    )


def mean_of(runs: Sequence[Run], name: str) -> float:
    """Mean of an attribute over the runs that know it; NaN if none does."""
    known = [value for run in runs if not math.isnan(value := getattr(run, name))]
    return fmean(known) if known else math.nan


def tuned_label(run: Run) -> str:
    """What a run was tuned on, as tables say it; the test images are marked."""
    return "test images (!)" if run.tuned_on == "test" else run.tuned_on.replace("_", "-")


def _better_and_worse(difference: Difference, metric: str) -> str:
    counts = difference.wins, difference.losses
    return "{} / {}".format(*(reversed(counts) if lower_is_better(metric) else counts))


def _signed(difference: Difference) -> str:
    text = str(difference.estimate)
    return text if text.startswith("-") else f"+{text}"


def _p(value: float) -> str:
    return "" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def provenance(cells: Sequence[Cell]) -> list[str]:
    """What a reader must know of the runs behind the tables, a line each; nothing that no run says."""
    runs = [run for cell in cells for run in cell.runs]
    lines = [f"backbone: {', '.join(sorted({cell.backbone for cell in cells}))}"]
    for what, of in (("precision", "precision"), ("dassl-lite", "version")):
        if known := sorted({text for run in runs if (text := getattr(run, of))}):
            lines.append(f"{what}: {', '.join(known)}")
    draws: dict[tuple[str, int], set[tuple[int, str]]] = defaultdict(set)
    for cell in cells:
        draws[cell.dataset, cell.shots] |= {(run.seed, run.draw[:8]) for run in cell.runs if run.draw}
    for (dataset, shots), found in sorted(draws.items()):
        if found and shots:
            names = ", ".join(f"seed {seed} {digest}" for seed, digest in sorted(found))
            lines.append(f"draws of {dataset}, {shots_label(shots)}: {names}")
    if chosen := sorted({cell.trainer for cell in cells if any(run.tuned_on == "test" for run in cell.runs)}):
        lines.append(f"tuned on test images, so not comparable: {', '.join(chosen)}")
    return lines


_MOST_NAMED = 8


def gaps(cells: Sequence[Cell], folder: Path) -> list[str]:
    """What is not in the tables, a line each: runs that have begun and not finished, and runs that others suggest.

    A method is taken to be meant for every dataset and number of shots that it or another method has been run on, with
    as many seeds.

    Args:
        cells: of the runs below ``folder``.
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
                    lacking = every - seeds.get((dataset, method, shots), set())
                    if lacking:
                        of = f" (seed {', '.join(map(str, sorted(lacking)))})" if lacking != every else ""
                        missing.append(f"{method} on {dataset}, {shots_label(shots)}{of}")
        else:
            there = {cell.dataset for cell in cells if cell.trainer == method}
            missing += [f"{method} on {dataset}" for dataset in datasets if dataset not in there]
    return [*_named("not finished (failed, stopped or still running)", begun), *_named("no result", missing)]


def _named(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f"; and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return [f"{what}: {'; '.join(names[:_MOST_NAMED])}{more}"]
