"""The runs of a sweep as the cells that its tables are made of.

A `Cell` is one method on one dataset with one number of shots, over its draws.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from dassl_lite.engine.build import uses_shots as trainer_uses_shots
from dassl_lite.engine.commands.arguments import OWN_DATA, data_label
from dassl_lite.engine.files.results import FILE_NAME, MAIN_METRICS, main_metric, read_results
from dassl_lite.engine.files.run_folder import REPLACED
from dassl_lite.evaluation.statistics import Estimate, estimate
from dassl_lite.utils.errors import UserError, shown, unknown
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)


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


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better."""
    return "error" in metric or metric == "ece"


def uses_shots(method: str) -> bool:
    """Whether the training images make a difference to a method, named as in tables."""
    return trainer_uses_shots(method.partition(" ")[0])


def dataset_label(results: Mapping[str, Any]) -> str:
    """The dataset of a run; the user's own data goes by the name of its folder or file, to tell one from another."""
    name = results["dataset"]
    path = results.get("config", {}).get("DATASET", {}).get(OWN_DATA.get(name, ""), "")
    return data_label(path) if path else name


def backbone_label(results: Mapping[str, Any]) -> str:
    """The backbone of a run; that of a feature file need not have a name."""
    return str(results["backbone"] or "unnamed")


def shots_label(number: int) -> str:
    """A number of shots, as tables say it; 0 is all training images."""
    return "all" if number == 0 else f"{number} shot{'s' if number > 1 else ''}"


def tuned_label(run: Run) -> str:
    """What a run was tuned on, as tables say it; the test images are marked."""
    return "test images (!)" if run.tuned_on == "test" else run.tuned_on.replace("_", "-")


def mean_of(runs: Sequence[Run], name: str) -> float:
    """Mean of an attribute over the runs that know it; NaN if none does."""
    known = [value for run in runs if not math.isnan(value := getattr(run, name))]
    return fmean(known) if known else math.nan


def grouped(cells: Sequence[Cell], key: Callable[[Cell], Any]) -> dict[Any, list[Cell]]:
    """The cells by what ``key`` says of each."""
    groups: dict[Any, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[key(cell)].append(cell)
    return groups
