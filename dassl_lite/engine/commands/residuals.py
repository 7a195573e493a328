"""The size of a task's residual versus its difficulty for zero-shot CLIP: figure 4 of the TaskRes paper.

    relative transfer difficulty = (1 / K) / zero-shot accuracy

is the accuracy of guessing among K classes divided by that of zero-shot CLIP. It is compared with the mean absolute
value of the learned residual x (K, D), before its scale alpha. Within a dataset, the norm of a class's row of x is
compared with zero-shot CLIP's accuracy on the images of the class.

Methods are included if they declare ``class_residual``, the name of their residual in the checkpoint. Zero-shot
accuracies are those that the runs logged as "Zero-shot CLIP before training".
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from dassl_lite.engine.build import TRAINER_REGISTRY
from dassl_lite.engine.commands import evaluate
from dassl_lite.engine.commands.cells import backbone_label, dataset_label
from dassl_lite.engine.commands.evaluate import config_for, stored_config
from dassl_lite.engine.commands.tables import Table
from dassl_lite.engine.files.checkpoint import CheckpointStore
from dassl_lite.engine.files.results import FILE_NAME, config_in, read_results
from dassl_lite.engine.files.run_folder import REPLACED
from dassl_lite.evaluation.statistics import Estimate, estimate, permutation_p, rank_correlation
from dassl_lite.utils import UserError, setup_logger
from dassl_lite.utils.torchtools import load_run_checkpoint

SHOTS = 16  # as in the paper


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of ``count`` pairs, its 95 % interval and permutation p; NaN if undefined."""

    r: float
    low: float
    high: float
    p: float
    count: int

    @classmethod
    def of(cls, x: Sequence[float], y: Sequence[float]) -> Correlation:
        return cls(*rank_correlation(x, y), permutation_p(x, y), len(x))

    @property
    def interval(self) -> str:
        return "" if math.isnan(self.low) else f"{self.low:+.2f} to {self.high:+.2f}"

    def __str__(self) -> str:
        if math.isnan(self.r):
            return "no rank correlation"
        return f"rank correlation {self.r:+.2f}" + (f" ({self.interval})" if self.interval else "")


@dataclass(frozen=True)
class ClassResidual:
    """The residual of one class of a dataset.

    Attributes:
        images: number of test images.
        zero_shot: zero-shot CLIP's accuracy on them, in percent; NaN if there are none.
        norm: norm of the residual's row, mean over seeds.
    """

    classname: str
    images: int
    zero_shot: float
    norm: float


@dataclass(frozen=True)
class Residual:
    """A method's residual on one dataset, over seeds.

    Attributes:
        classes: number of classes K.
        zero_shot: zero-shot CLIP's accuracy, in percent.
        magnitudes: mean absolute value of the residual, one per seed.
        scale: factor alpha of the residual; NaN if the config does not contain it.
        by_class: residuals by class; empty if not known, for the reason in ``reason``.
    """

    method: str
    dataset: str
    backbone: str
    shots: int
    seeds: tuple[int, ...]
    classes: int
    zero_shot: float
    magnitudes: tuple[float, ...]
    scale: float
    by_class: tuple[ClassResidual, ...] = ()
    reason: str = ""

    @property
    def difficulty(self) -> float:
        """Relative transfer difficulty; infinite if zero-shot CLIP's accuracy is zero."""
        return 100.0 / self.classes / self.zero_shot if self.zero_shot else math.inf

    @property
    def magnitude(self) -> Estimate:
        return estimate(self.magnitudes)

    @property
    def within(self) -> Correlation:
        """Correlation of the rows' norms with zero-shot CLIP's accuracy on the classes."""
        known = [residual for residual in self.by_class if not math.isnan(residual.zero_shot)]
        return Correlation.of([residual.zero_shot for residual in known], [residual.norm for residual in known])


@dataclass(frozen=True)
class Residuals:
    """The residuals of one method and backbone with one number of shots, easy datasets first."""

    method: str
    backbone: str
    shots: int
    rows: tuple[Residual, ...]

    @property
    def over_datasets(self) -> Correlation:
        """Correlation of the mean magnitude with the relative transfer difficulty."""
        return Correlation.of([row.difficulty for row in self.rows], [row.magnitude.mean for row in self.rows])

    @property
    def title(self) -> str:
        return f"{self.method} with {self.shots} shots, {self.backbone}"


@dataclass(frozen=True)
class _Run:
    folder: Path
    seed: int
    classnames: tuple[str, ...]
    residual: torch.Tensor  # (K, D)
    zero_shot: float
    scale: float


def gather_residuals(folder: Path, shots: int = SHOTS, *, by_class: bool = True) -> tuple[list[Residuals], list[str]]:
    """Gather the residuals of the runs with ``shots`` below a folder, and notes on runs that were left out.

    Args:
        by_class: also evaluate zero-shot CLIP for each class, which needs the datasets or their cached features.

    Raises:
        UserError: no run has a residual.
    """
    groups: dict[tuple[str, str, str], list[_Run]] = defaultdict(list)
    notes: list[str] = []
    for path in sorted(folder.rglob(FILE_NAME)):
        results = None if path.parent.name == REPLACED else read_results(path.parent)
        name = _residual_of(results) if results and results.get("num_shots") == shots else ""
        if results and name:
            run = _read(path.parent, results, name)
            label = f"{results.get('method') or results['trainer']} on {dataset_label(results)}"
            if isinstance(run, str):
                notes.append(f"{label} is left out: {run}")
                continue
            key = (str(results.get("method") or results["trainer"]), backbone_label(results), dataset_label(results))
            groups[key].append(run)
    if not groups:
        why = f" ({'; '.join(dict.fromkeys(notes))})" if notes else ""
        raise UserError(f"--residuals: no finished run with {shots} shots below {folder} has a residual per class{why}")
    by_method: dict[tuple[str, str], list[Residual]] = defaultdict(list)
    for (method, backbone, dataset), runs in groups.items():
        row = _row(method, backbone, dataset, shots, runs)
        if by_class:
            row = _with_classes(row, runs)
        if row.reason:
            notes.append(f"{method} on {dataset}: no results per class, since {row.reason}")
        by_method[method, backbone].append(row)
    found = [
        Residuals(method, backbone, shots, tuple(sorted(rows, key=lambda row: (row.difficulty, row.dataset))))
        for (method, backbone), rows in sorted(by_method.items())
    ]
    for residuals in found:
        if len({row.scale for row in residuals.rows if not math.isnan(row.scale)}) > 1:
            notes.append(
                f"{residuals.method} has different residual scales on some datasets; magnitudes are before scaling"
            )
    return found, list(dict.fromkeys(notes))


def _residual_of(results: Mapping[str, Any]) -> str:
    """The name of the residual in the checkpoint of a run's method; "" if it has none."""
    trainer = results.get("trainer")
    kind = TRAINER_REGISTRY.get(trainer) if isinstance(trainer, str) and trainer in TRAINER_REGISTRY else None
    return str(getattr(kind, "class_residual", ""))


def _read(folder: Path, results: Mapping[str, Any], name: str) -> _Run | str:
    """The run in ``folder``, or why it cannot be included."""
    zero_shot = results.get("zero_shot_accuracy")
    if not isinstance(zero_shot, int | float) or isinstance(zero_shot, bool) or not math.isfinite(zero_shot):
        return "its results do not contain zero-shot CLIP's accuracy"
    if zero_shot <= 0:
        return "zero-shot CLIP's accuracy is zero, so the difficulty is infinite"
    kind = TRAINER_REGISTRY.get(results["trainer"])
    try:
        state = load_run_checkpoint(CheckpointStore(folder).find(kind.model_name))
    except UserError as error:
        return str(error)
    weights = state["state_dict"]
    names = tuple(map(str, state.get("meta", {}).get("classnames") or ()))
    residual = weights.get(name) if isinstance(weights, Mapping) else None
    if not isinstance(residual, torch.Tensor) or residual.dim() != 2 or len(residual) != (len(names) or len(residual)):
        return "its residual does not have one row per class"
    if not residual.isfinite().all():
        return "its residual is not finite"
    node = config_in(results, folder)["TRAINER"].get(results["trainer"], {})
    scale = node.get("RESIDUAL_SCALE", math.nan) if isinstance(node, Mapping) else math.nan
    return _Run(folder, int(results["seed"]), names, residual.detach().double(), float(zero_shot), float(scale))


def _row(method: str, backbone: str, dataset: str, shots: int, runs: Sequence[_Run]) -> Residual:
    runs = sorted(runs, key=lambda run: run.seed)
    magnitudes = tuple(run.residual.abs().mean().item() for run in runs)
    zero_shot = fmean(run.zero_shot for run in runs)
    seeds = tuple(run.seed for run in runs)
    return Residual(
        method, dataset, backbone, shots, seeds, len(runs[0].residual), zero_shot, magnitudes, runs[0].scale
    )


def _with_classes(row: Residual, runs: Sequence[_Run]) -> Residual:
    first = runs[0]
    if any(run.classnames != first.classnames or run.residual.shape != first.residual.shape for run in runs):
        return replace(row, reason="its runs are on different classes")
    try:
        with _quiet():
            cfg = config_for(stored_config(first.folder), None, {}, allow_new_keys=True)
            trainer = evaluate.evaluate(cfg, first.folder)
            counts = trainer.zero_shot_by_class()
    except (UserError, RuntimeError) as error:
        return replace(row, reason=str(error))
    if counts is None:
        return replace(row, reason="zero-shot CLIP has no per-class accuracy there")
    norms = torch.stack([run.residual.norm(dim=1) for run in runs]).mean(dim=0).tolist()
    names = first.classnames or tuple(trainer.classnames)
    classes = [
        ClassResidual(name, images, 100.0 * right / images if images else math.nan, norm)
        for name, images, right, norm in zip(names, *(count.tolist() for count in counts), norms, strict=True)
    ]
    return replace(row, by_class=tuple(classes))


@contextmanager
def _quiet() -> Any:
    setup_logger(console=False).handlers[0].setLevel(logging.ERROR)
    try:
        yield
    finally:
        setup_logger()


# ---- tables, files, figures -------------------------------------------------------------------------------------


def residual_tables(found: Sequence[Residuals]) -> tuple[list[Table], list[str]]:
    """For each method, a table with a row per dataset and one of rank correlations; and notes for the reader."""
    tables, notes = [], []
    for residuals in found:
        rows = [
            [
                row.dataset,
                str(row.classes),
                f"{row.zero_shot:.2f}",
                f"{row.difficulty:.4f}",
                _small(row.magnitude),
                "" if math.isnan(row.scale) else f"{row.scale:g}",
                str(len(row.seeds)),
            ]
            for row in residuals.rows
        ]
        headers = ["dataset", "classes", "zero-shot %", "difficulty", "mean |residual|", "scale", "seeds"]
        tables.append(Table(f"Residual against relative transfer difficulty, {residuals.title}", headers, rows))
        correlations = []
        if len(residuals.rows) > 1:
            correlations.append(("over datasets", "mean |residual| with difficulty", residuals.over_datasets))
        what = "length of the class's residual with zero-shot accuracy"
        correlations += [(f"classes of {row.dataset}", what, row.within) for row in residuals.rows if row.by_class]
        lines = [
            [
                where,
                what,
                "" if math.isnan(correlation.r) else f"{correlation.r:+.2f}",
                correlation.interval,
                _p(correlation.p),
                str(correlation.count),
            ]
            for where, what, correlation in correlations
        ]
        if lines:
            headers = ["where", "what", "Spearman", "95 % interval", "permutation p", "pairs"]
            tables.append(Table(f"Rank correlations, {residuals.title}", headers, lines))
        if len(residuals.rows) == 1:
            name = residuals.rows[0].dataset
            notes.append(f"{residuals.title}: one dataset ({name}), so no rank correlation over datasets")
    notes.append(
        "relative transfer difficulty: (1 / classes) / zero-shot accuracy; residual: as learned, before its scale; "
        "interval of a rank correlation: Fisher's z with Bonett and Wright's variance"
    )
    return tables, notes


def _small(value: Estimate) -> str:
    return f"{value.mean:.5f}" if value.half is None else f"{value.mean:.5f} ± {value.half:.5f}"


def _p(value: float) -> str:
    return "" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def as_plain(found: Sequence[Residuals]) -> list[dict[str, Any]]:
    """Everything in full precision, for JSON; None where a number is undefined."""
    return [
        {
            **{"method": residuals.method, "backbone": residuals.backbone, "shots": residuals.shots},
            "over_datasets": _finite(asdict(residuals.over_datasets)),
            "datasets": [
                _finite({**asdict(row), "difficulty": row.difficulty, "magnitude": row.magnitude.mean})
                | {"by_class": [_finite(asdict(item)) for item in row.by_class], "within": _finite(asdict(row.within))}
                for row in residuals.rows
            ],
        }
        for residuals in found
    ]


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }


def captions_of(residuals: Residuals) -> dict[str, str]:
    """Captions of the figure "residuals" and, if classes are known, of "residuals-classes"."""
    over = residuals.over_datasets
    correlation = str(over)
    if not math.isnan(over.p):
        correlation += f", permutation test p {'< 0.001' if over.p < 0.001 else f'= {over.p:.3f}'}"
    captions = {
        "residuals": f"Mean absolute value of the learned residual against the relative transfer difficulty "
        f"(1/K)/(zero-shot accuracy) of {len(residuals.rows)} datasets: {residuals.title}. Bars: 95 % t-intervals over "
        f"draws. Over datasets: {correlation}."
    }
    if any(row.by_class for row in residuals.rows):
        captions["residuals-classes"] = (
            "Length of each class's learned residual, mean over draws, against zero-shot CLIP's accuracy on the class: "
            f"{residuals.title}. In brackets: Spearman's rank correlation."
        )
    return captions
