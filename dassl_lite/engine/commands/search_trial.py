"""One trial of a search: a run with some settings, measured on validation images or on folds of the training images.

The test split is removed from the dataset before anything is read.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from dassl_lite.data import DatasetBase, build_dataset
from dassl_lite.data.dataset import changed_datasets
from dassl_lite.data.fewshot import folds_of
from dassl_lite.data.manager import validates_on_test
from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands import run
from dassl_lite.engine.commands.arguments import ConfigArguments, nested
from dassl_lite.engine.commands.search_space import Dimension, Value, options_of
from dassl_lite.engine.files.results import main_metric
from dassl_lite.utils import UserError, get_logger, set_random_seed, setup_logger
from dassl_lite.utils.errors import NotFiniteError
from dassl_lite.utils.lazy import optional_module
from dassl_lite.utils.seeding import random_streams_kept

logger = get_logger(__name__)

COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"
_REPORTS, _COSTLY_REPORTS = 10, 4  # intermediate reports of a run: if evaluation is cheap, and if it encodes images
_BEFORE_PRUNING, _WARM_UP = 5, 2  # finished trials, and reports of a trial, before pruning starts
_TEMPORARY = ".trial-"


@dataclass(frozen=True)
class Search:
    """The settings of a search.

    Attributes:
        trainer: name of the method.
        shared: config arguments of all trials.
        space: the keys to search over.
        folder: folder of the search.
        trials: number of trials.
        seed: seed of the proposals and of the folds.
        seeds: seeds of the few-shot draws and of training; a trial's value is the mean over them.
        folds: number of cross-validation folds of the training images; 0 uses validation images.
        prunes: whether trials that fall behind are pruned.
        jobs: number of parallel trials, which are proposed together.
    """

    trainer: str
    shared: ConfigArguments
    space: tuple[Dimension, ...]
    folder: Path
    trials: int = 50
    seed: int = 1
    seeds: tuple[int, ...] = (1,)
    folds: int = 0
    prunes: bool = True
    jobs: int = 1

    def config(self, seed: int, params: Mapping[str, Value] | None = None, folder: str | Path = "") -> CfgNode:
        """The frozen config of a run: the recipe with these settings."""
        shared = self.shared
        cfg = make_config(
            trainer=self.trainer,
            dataset_file=shared["dataset_file"],
            method_file=shared["method_file"],
            flags=nested({"SEED": seed}, shared["flags"]),
            options=[*shared["options"], *(options_of(self.space, params) if params else [])],
            allow_new_keys=shared["allow_new_keys"],
        )
        cfg.defrost()
        cfg.OUTPUT_DIR, cfg.VERBOSE = str(folder), False
        cfg.TEST.SPLIT, cfg.TEST.NO_TEST = ("test" if self.folds else "val"), False
        cfg.freeze()
        return cfg

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Seed and fold of each run of a trial; the fold is -1 if validation images are used."""
        return list(itertools.product(self.seeds, range(self.folds) if self.folds else (-1,)))

    @property
    def measured_on(self) -> str:
        """What a trial's value is measured on, for messages."""
        return measured_on(self.folds, self.seeds)


def measured_on(folds: int, seeds: Sequence[int]) -> str:
    """What a trial's value is measured on, for messages."""
    where = f"training images held out in {folds} folds" if folds else "the validation images"
    return f"{where}, seed{'s' * (len(seeds) > 1)} {' '.join(map(str, seeds))}"


@dataclass(frozen=True)
class Trial:
    """A trial to be done by one process.

    Attributes:
        number: number of the trial, from 0.
        params: key -> value.
        earlier: the reports of each complete trial, to detect whether this one falls behind.
    """

    number: int
    params: dict[str, Value]
    earlier: tuple[dict[int, float], ...] = ()


@dataclass
class Result:
    """The result of a trial.

    Attributes:
        state: `COMPLETE`, `PRUNED` or `FAILED`.
        value: mean of the main metric over its runs, in percent; NaN unless it is complete.
        metric: name of the main metric.
        reports: step -> intermediate value; the steps are tenths of the first run, then runs.
        runs: the metric of each run.
        reason: why it failed.
    """

    number: int
    params: dict[str, Value]
    state: str = COMPLETE
    value: float = math.nan
    metric: str = ""
    reports: dict[int, float] = field(default_factory=dict)
    runs: list[float] = field(default_factory=list)
    seconds: float = 0.0
    reason: str = ""


class _Pruned(Exception):  # noqa: N818 (not an error)
    """The trial falls behind others."""


def with_folds(search_folds: int, cfg: CfgNode) -> int:
    """The number of cross-validation folds; 0 if the dataset has validation images, unless folds are requested.

    Args:
        search_folds: requested number; 0 for no preference.
        cfg: config of a run.

    Raises:
        UserError: no training image can be held out.
    """
    set_random_seed(max(cfg.SEED, 0))  # the few-shot split is drawn here if it does not exist yet
    dataset, name = build_dataset(cfg), cfg.DATASET.NAME
    if not search_folds and dataset.val and not validates_on_test(dataset):
        return 0
    if dataset.multi_label:
        raise UserError(
            f"{name} has no validation images to tune on; holding out training images needs one class per image, "
            "but it is multi-label"
        )
    folds = int(_folds(dataset, search_folds or 5, 1).max()) + 1
    if folds < 2:
        raise UserError(
            f"{name} has no validation images to tune on, and with one training image per class none can be held out; "
            "use --shots 2 or more"
        )
    return folds


def _folds(dataset: DatasetBase, most: int, seed: int) -> torch.Tensor:
    return folds_of(torch.tensor([item.label for item in dataset.train_x]), most, seed)


def _without_test(dataset: DatasetBase, search: Search, fold: int) -> None:
    """Remove the test images from a dataset; a fold of the training images replaces them, unless it is -1."""
    if fold < 0:
        assert not validates_on_test(dataset)
        dataset.use_splits(dataset.train_x, dataset.val, None)
        return
    mask = (_folds(dataset, search.folds, search.seed) == fold).tolist()
    rest = [item for item, is_held_out in zip(dataset.train_x, mask, strict=True) if not is_held_out]
    held_out = [item for item, is_held_out in zip(dataset.train_x, mask, strict=True) if is_held_out]
    dataset.use_splits(rest, None, held_out)


# ---- a trial ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _run_of(search: Search, params: Mapping[str, Value] | None, seed: int, fold: int) -> Iterator[Any]:
    """A context with the trainer of a run, ready to train; its files are deleted afterwards."""
    place = search.folder if search.folder.is_dir() else None  # another machine may not have access to it
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=place, ignore_cleanup_errors=True) as folder:
        cfg = search.config(seed, params, folder)
        with changed_datasets(partial(_without_test, search=search, fold=fold)):
            trainer = run.build(cfg)
        try:
            run.before_training(trainer)  # draws the same random numbers as in train.py
            yield trainer
        finally:
            setup_logger()  # closes the run's log


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of a killed search."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def prepare(search: Search) -> None:
    """Build one run of the search, so that common errors are reported first, and extract its features."""
    with _run_of(search, None, *search.runs[0]) as trainer:
        idle = trainer.idle_keys() if hasattr(trainer, "idle_keys") else {}
        for dimension in search.space:
            parts = dimension.key.split(".")
            names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
            why = next((idle[name] for name in names if name in idle), "")
            if why and len(search.space) == 1:
                raise UserError(f"--space {dimension.key} has no effect in these runs: {why}")
            if why:
                logger.warning(f"--space {dimension.key} has no effect with the recipe's values: {why}")
        for loader in (trainer.train_loader_x, trainer.val_loader, trainer.test_loader):
            if getattr(loader, "gives_features", False):
                _ = loader.views


def do_trial(trial: Trial, search: Search) -> Result:
    """Train and evaluate with a trial's settings."""
    start, result = time.perf_counter(), Result(trial.number, trial.params)
    report = _reporter(trial, result) if search.prunes else None
    try:
        for number, (seed, fold) in enumerate(search.runs):
            with _run_of(search, trial.params, seed, fold) as trainer:
                if report and not number and trainer.has_epochs():
                    _report_epochs(trainer, report)
                trainer.train()
                result.metric, value = _value(trainer)
            result.runs.append(value)
            result.value = sum(result.runs) / len(result.runs)
            if report and number + 1 < len(search.runs):
                report(_REPORTS + number + 1, result.value)
    except _Pruned:
        result.state = PRUNED
    except NotFiniteError as error:  # bad settings, which Optuna should learn to avoid
        result.state, result.reason = PRUNED, str(error)
    except UserError as error:
        result.state, result.reason = FAILED, str(error)
    except Exception as error:
        logger.warning(f"trial {trial.number} failed", exc_info=True)
        result.state, result.reason = FAILED, f"{type(error).__name__}: {error}"
    if result.state != COMPLETE:
        result.value = math.nan
    result.seconds = time.perf_counter() - start
    return result


def _value(trainer: Any) -> tuple[str, float]:
    """The name and final value of a run's main metric.

    Raises:
        UserError: there is none, or it is not a number.
    """
    metrics = trainer.results.get(trainer.cfg.TEST.SPLIT, {})
    name = main_metric(metrics)
    value = metrics.get(name)
    if not isinstance(value, float | int) or not math.isfinite(value):
        raise UserError(f"{trainer.cfg.TRAINER.NAME} reports no accuracy to tune by")
    return name, float(value)


def optuna_library() -> Any:
    optuna = optional_module("optuna", "tune", "tune.py")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _reporter(trial: Trial, result: Result) -> Callable[[int, float], None]:
    """A function that records an intermediate value and raises `_Pruned` if it is below earlier trials' median."""
    optuna = optuna_library()
    pruner = optuna.pruners.MedianPruner(n_startup_trials=_BEFORE_PRUNING, n_warmup_steps=_WARM_UP)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    study.add_trials([optuna.trial.create_trial(value=0.0, intermediate_values=reports) for reports in trial.earlier])

    def report(step: int, value: float) -> None:
        result.reports[step] = value
        now = study.ask()  # this report only: a trial that starts from CLIP's text features was never worse before
        now.report(value, step)
        if now.should_prune():
            raise _Pruned

    return report


def _report_epochs(trainer: Any, report: Callable[[int, float], None]) -> None:
    """Make a trainer report after each tenth of its epochs, without affecting its random draws or training."""
    split, after_epoch = trainer.cfg.TEST.SPLIT, trainer.after_epoch
    cheap = getattr(trainer.val_loader if split == "val" else trainer.test_loader, "gives_features", False)
    reports = _REPORTS if cheap else _COSTLY_REPORTS

    def with_report() -> None:
        after_epoch()
        done, before = (reports * epoch // trainer.max_epoch for epoch in (trainer.epoch + 1, trainer.epoch))
        if before < done < reports:  # the last one is reported as the trial's value
            report(done * _REPORTS // reports, _value_now(trainer, split))

    trainer.after_epoch = with_report


def _value_now(trainer: Any, split: str) -> float:
    """The metric that a run would reach if it ended now."""
    last = trainer.history[-1] if trainer.history else {}
    if (last.get("epoch"), last.get("split")) != (
        trainer.epoch + 1,
        split,
    ):  # with epoch selection, it has been evaluated already
        saved = list(trainer.history), dict(trainer.results), dict(trainer.seconds)
        with random_streams_kept(), trainer.deployed():
            trainer.test(split)
        last = trainer.history[-1]
        trainer.history, trainer.results, trainer.seconds = saved
    return float(last[main_metric(last)])
