"""Gathers the runs of a sweep into the cells of its tables.

A `Cell` is one method on one dataset with one number of shots, over its few-shot draws.
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
    """The parts of a finished run's results that tables need; missing ones are NaN or "".

    Attributes:
        draw: identifies the few-shot draw: its digest, or the seed if nothing was drawn.
        tuned_on: "val", "leave_one_out", "cross_validation", "nothing" or "test".
        zero_shot: the metric of CLIP without adaptation, in percent.
        seconds: time of training and evaluation, without feature extraction.
        parameters: number of trainable parameters.
        memory: peak memory of the process, in MiB.
        classes: "all", or the half that was trained and tested ("base" or "new"); "" for the user's own data.
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
    trainer: str  # label in tables: marks transductive runs, and names the backbone if a dataset has several
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
        """What methods are compared on: the dataset and, unless it is part of the method's label, the backbone."""
        return self.dataset, "" if self.trainer.endswith(f" ({self.backbone})") else self.backbone

    @property
    def method(self) -> str:
        """The method's label without the backbone."""
        return self.trainer.removesuffix(f" ({self.backbone})")

    @property
    def classes(self) -> str:
        """The classes of its runs: "all", "base" or "new"; "" if they differ or are not known."""
        classes = {run.classes for run in self.runs}
        return classes.pop() if len(classes) == 1 else ""

    def by_draw(self) -> dict[Any, float]:
        """Values by (digest, seed) of the draw; digests may be missing, or equal for runs on all images."""
        return {(run.draw, run.seed): run.value for run in self.runs}

    def __str__(self) -> str:
        return str(self.estimate)


def gather(folder: str | Path, metric: str = "", split: str = "test") -> list[Cell]:
    """Gather all finished runs below ``folder``: one cell per dataset, method, backbone and number of shots.

    Args:
        folder: the sweep's folder.
        metric: metric to gather; "" for each run's main one: accuracy, or mAP on a multi-label dataset.
        split: "test" or "val".

    Raises:
        UserError: there is no run, or a run lacks the split or has no finite number for the metric.
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
            available = ", ".join(map(str, run["metrics"])) or "none"
            raise UserError(f"{path} has no results for the split '{split}'; it has results for: {available}")
        metrics = run["metrics"][split]
        name = metric or main_metric(metrics) or MAIN_METRICS[0]
        if name not in metrics:
            raise unknown("metric", name, metrics, f"These are in {path}.")
        if type(metrics[name]) not in (int, float) or not math.isfinite(metrics[name]):
            raise UserError(f"the {name} in {path} is {shown(metrics[name])}; delete the file and run again")
        key = (dataset_label(run), _method(run), backbone_label(run), max(run["num_shots"], 0), name)
        other = cells[key].get(run["seed"])
        if other is not None and other.value != metrics[name]:
            repeated.add(f"{_method(run)} on {dataset_label(run)}")
        cells[key][run["seed"]] = _run(run, metrics, name)
    if repeated:
        logger.warning(
            f"some runs below {root} differ in settings that the table does not show (other than dataset, method, "
            f"backbone, shots, seed), and only one of each is shown: {', '.join(sorted(repeated)[:5])}; "
            "report their folders one by one"
        )
    gathered = []
    kinds = [(dataset, trainer, shots, name) for dataset, trainer, _, shots, name in cells]
    by_backbone = len(set(kinds)) < len(kinds)  # one method has runs with different backbones: separate rows
    for (dataset, trainer, backbone, shots, name), by_seed in cells.items():
        trainer = f"{trainer} ({backbone})" if by_backbone else trainer
        in_order = tuple(by_seed[seed] for seed in sorted(by_seed))
        gathered.append(Cell(dataset, trainer, backbone, shots, tuple(run.value for run in in_order), name, in_order))
    return gathered


def _run(results: Mapping[str, Any], metrics: Mapping[str, Any], metric: str) -> Run:
    """Convert complete results to a `Run`; optional entries of a wrong type are ignored."""

    def number(value: Any) -> float:
        return float(value) if type(value) in (int, float) else math.nan

    def text(value: Any) -> str:
        return value if isinstance(value, str) else ""

    def of(key: str) -> Mapping[str, Any]:
        return part if isinstance(part := results.get(key), dict) else {}

    seconds = {phase: number(spent) for phase, spent in of("seconds").items()}
    return Run(
        seed=results["seed"],
        value=float(metrics[metric]),
        draw=text(results.get("fewshot_digest")),
        tuned_on=text(results.get("tuned_on")),
        zero_shot=number(results.get(f"zero_shot_{metric}")),
        ece=number(metrics.get("ece")),
        seconds=sum(spent for phase, spent in seconds.items() if phase != "features") if seconds else math.nan,
        parameters=number(results.get("trainable_parameters")),
        memory=number(of("peak_memory").get("host_mib")),
        precision=text(of("arithmetic").get("precision")),
        version=text(of("environment").get("dassl_lite")),
        classes=""
        if results["dataset"] in OWN_DATA
        else text(of("config").get("DATASET", {}).get("SUBSAMPLE_CLASSES")),
    )


def _method(results: Mapping[str, Any]) -> str:
    """The label of a run's method in tables: its trainer and, if it applies, "(transductive)"."""
    return str(results.get("method") or results["trainer"])


def _is_complete(run: Mapping[str, Any]) -> bool:
    """Whether results contain what a table needs."""
    texts = all(isinstance(run.get(key), str) for key in ("trainer", "dataset"))
    texts = texts and isinstance(run.get("backbone", 0), str | None)
    numbers = all(type(run.get(key)) is int for key in ("num_shots", "seed"))
    metrics = run.get("metrics")
    config = run.get("config", {})
    config = config.get("DATASET", {}) if isinstance(config, dict) else None
    splits = (
        isinstance(config, dict)
        and isinstance(metrics, dict)
        and all(isinstance(values, dict) for values in metrics.values())
    )
    return texts and numbers and splits


def lower_is_better(metric: str) -> bool:
    """Whether lower values of a metric are better."""
    return "error" in metric or metric == "ece"


def uses_shots(method: str) -> bool:
    """Whether a method, given by its label in tables, depends on the training images."""
    return trainer_uses_shots(method.partition(" ")[0])


def dataset_label(results: Mapping[str, Any]) -> str:
    """The dataset of a run; the user's own data is labelled by the name of its folder or file."""
    name = results["dataset"]
    path = results.get("config", {}).get("DATASET", {}).get(OWN_DATA.get(name, ""), "")
    return data_label(path) if path else name


def backbone_label(results: Mapping[str, Any]) -> str:
    """The backbone of a run; a feature file may not name one."""
    return str(results["backbone"] or "unnamed")


def shots_label(number: int) -> str:
    """The label of a number of shots in tables; 0 means all training images."""
    return "all" if number == 0 else f"{number} shot{'s' if number > 1 else ''}"


def tuned_label(run: Run) -> str:
    """The label for what a run was tuned on; test images are marked."""
    return "test images (!)" if run.tuned_on == "test" else run.tuned_on.replace("_", "-")


def mean_of(runs: Sequence[Run], name: str) -> float:
    """Mean of an attribute over the runs that have it; NaN if none has."""
    known = [value for run in runs if not math.isnan(value := getattr(run, name))]
    return fmean(known) if known else math.nan


def grouped(cells: Sequence[Cell], key: Callable[[Cell], Any]) -> dict[Any, list[Cell]]:
    """Group cells by ``key``."""
    groups: dict[Any, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[key(cell)].append(cell)
    return groups
