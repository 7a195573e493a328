"""The search for a method's settings by what they reach on validation images; no test image is read.

A trial is a run as `tools/train.py` would do it, but for its images: the test split is taken out of the dataset before
anything is read. Where there are no validation images, folds of the training images are left out in turn.

Optuna proposes settings and says which trials to break off. What a trial is depends on the search's seed and on the
trials of the batches before it alone, so a search that was stopped goes on as if it had not been. A batch is as many
trials as run at a time.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm
from yacs.config import CfgNode

import dassl_lite
from dassl_lite.config import to_dict
from dassl_lite.config.check import leaves
from dassl_lite.data import DatasetBase, build_dataset
from dassl_lite.data.dataset import changed_datasets
from dassl_lite.data.fewshot import folds_of
from dassl_lite.data.manager import validates_on_test
from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands import run
from dassl_lite.engine.commands.arguments import ConfigArguments, DatasetChoice, nested
from dassl_lite.engine.commands.workers import Workers
from dassl_lite.engine.files import checkpoint
from dassl_lite.engine.files.results import main_metric
from dassl_lite.utils import UserError, get_logger, set_random_seed, setup_logger
from dassl_lite.utils.errors import NotFiniteError, printable, shown
from dassl_lite.utils.files import atomic_path
from dassl_lite.utils.lazy import optional_module
from dassl_lite.utils.seeding import random_streams_kept

logger = get_logger(__name__)

COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"
STORE, TABLE, RECIPE = "study.db", "trials.csv", "recipe.yaml"
STUDY = "search"
# Keys that a search sets itself -> what to use in their place.
FIXED = {
    **{"SEED": "--seed", "DATASET.NUM_SHOTS": "--shots", "OUTPUT_DIR": "--output-dir", "TRAINER.NAME": "--trainer"},
    **{"RESUME": "", "VERBOSE": "", "TEST.SPLIT": "", "TEST.NO_TEST": ""},
}
# Keys that say what the data are; these and what the machine is are nothing to search over, and no part of a recipe.
DATA_KEYS = (
    *("DATASET.NAME", "DATASET.ROOT", "DATASET.FILE", "DATASET.FEWSHOT_FILE", "DATASET.SUBSAMPLE_CLASSES"),
    *("DATASET.SOURCE_DOMAINS", "DATASET.TARGET_DOMAINS"),
)
_NOT_SEARCHED = (*DATA_KEYS, "DATASET.FEATURES.DIR", "DATALOADER.NUM_WORKERS", "USE_CUDA", "TEST.EVALUATOR")
_REPORTS, _COSTLY_REPORTS = 10, 4  # of a run on the way, where evaluating is cheap and where it encodes images
_BEFORE_PRUNING, _WARM_UP = 5, 2  # finished trials, and reports of a trial, before any is broken off
_TEMPORARY = ".trial-"
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
FORMS = "KEY=lo:hi, KEY=lo:hi:log, KEY=lo:hi:int or KEY=a,b,c"

Value = float | int | str


# ---- the space ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dimension:
    """A config key that is searched over, and its values: ``choices``, or numbers from ``low`` to ``high``."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_integer: bool = False
    is_log: bool = False

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values that have to be valid for all others to be."""
        if self.choices:
            return self.choices
        return (int(self.low), int(self.high)) if self.is_integer else (self.low, self.high)

    @property
    def size(self) -> float:
        """The number of its values."""
        return len(self.choices) or (self.high - self.low + 1 if self.is_integer else math.inf)

    @property
    def values(self) -> tuple[Value, ...]:
        """All of them, if they are finitely many."""
        return self.choices or tuple(range(int(self.low), int(self.high) + 1))

    @property
    def text(self) -> str:
        """As on the command line."""
        if self.choices:
            return f"{self.key}={','.join(self.choices)}"
        low, high = self.ends
        kinds = [":int"] * self.is_integer + [":log"] * self.is_log
        return f"{self.key}={low!r}:{high!r}{''.join(kinds)}"

    def distribution(self, optuna: Any) -> Any:
        """As Optuna has it."""
        kinds = optuna.distributions
        if self.choices:
            return kinds.CategoricalDistribution(self.choices)
        kind = kinds.IntDistribution if self.is_integer else kinds.FloatDistribution
        return kind(*self.ends, log=self.is_log)

    def own(self, value: Any) -> Value | None:
        """A config's value as one of these; None if it is none of them."""
        if self.choices:
            return next((text for text in self.choices if text == str(value) or _same_number(text, value)), None)
        return value if isinstance(value, float | int) and self.low <= value <= self.high else None


def _same_number(text: str, value: Any) -> bool:
    return isinstance(value, float | int) and bool(_NUMBER.match(text)) and float(text) == value


def parse_space(words: Sequence[str], default: Callable[[str], Any]) -> tuple[Dimension, ...]:
    """The dimensions that the command line describes.

    Args:
        words: in one of the `FORMS`.
        default: gives the value that a config has for a key, or None.

    Raises:
        UserError: a word is in none of the forms, or its bounds make no range.
    """
    found: dict[str, Dimension] = {}
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key or not text:
            raise UserError(f"--space {shown(word)} is not {FORMS}")
        if key in found:
            raise UserError(f"--space has {shown(key)} twice")
        found[key] = _dimension(word, key, text, default(key))
    return tuple(found.values())


def _dimension(word: str, key: str, text: str, default: Any) -> Dimension:
    choices = tuple(part.strip() for part in re.split(r",(?![^\[(]*[\])])", text))  # a list's commas are its own
    if len(choices) > 1:
        if not all(choices) or len(set(choices)) < len(choices):
            raise UserError(f"--space {shown(word)} has a value that is empty or there twice")
        return Dimension(key, choices)
    low, *others = text.split(":")
    if not others:
        raise UserError(f"--space {shown(word)} has one value; set it with {key} {text}, or give {FORMS}")
    high, *kinds = others
    numbers = [float(one) if _NUMBER.match(one) else math.nan for one in (low, high)]
    if not all(map(math.isfinite, numbers)) or len(set(kinds)) < len(kinds) or set(kinds) - {"log", "int"}:
        raise UserError(f"--space {shown(word)} is not {FORMS}")
    if numbers[0] >= numbers[1]:
        raise UserError(f"--space {shown(word)} is empty: {low} is not below {high}")
    if "log" in kinds and numbers[0] <= 0:
        raise UserError(f"--space {shown(word)} has no logarithm: {low} is not above 0")
    whole = "int" in kinds or (isinstance(default, int) and not isinstance(default, bool))
    if whole and not all(one.is_integer() for one in numbers):
        raise UserError(f"--space {shown(word)} takes whole numbers, and {low} or {high} is none")
    return Dimension(key, (), numbers[0], numbers[1], whole, "log" in kinds)


def check_space(space: Sequence[Dimension], shared: ConfigArguments, trainer: str) -> None:
    """Raise a UserError for a key that cannot be searched over, or a value that breaks its key's rule."""
    for one in space:
        for name in (*_NOT_SEARCHED, *FIXED):
            if one.key == name or one.key.startswith(f"{name}."):
                instead = f"; use {FIXED[name]}" if FIXED.get(name) else ""
                raise UserError(f"--space {one.key} is nothing to search over{instead}")
        for value in one.ends:
            make_config(
                trainer=trainer,
                dataset_file=shared["dataset_file"],
                method_file=shared["method_file"],
                flags=shared["flags"],
                options=[*shared["options"], one.key, str(value)],
                allow_new_keys=shared["allow_new_keys"],
            )


def _options(space: Sequence[Dimension], params: Mapping[str, Value]) -> list[str]:
    """Settings as KEY VALUE pairs."""
    return [text for one in space for text in (one.key, str(params[one.key]))]


# ---- a search -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """What is searched for, and how.

    Attributes:
        trainer: name of the method.
        shared: config arguments of all trials.
        space: the keys that are searched over.
        folder: of the search.
        trials: how many.
        seed: of the proposals, and of the folds.
        seeds: of the few-shot draws and of training; a trial is the mean over them.
        folds: parts that the training images are left out in; 0: there are validation images, which are used.
        prunes: whether trials that fall behind are broken off.
        jobs: trials at a time, which are proposed together.
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
        """The frozen config of a run: the recipe's, with these settings."""
        shared = self.shared
        cfg = make_config(
            trainer=self.trainer,
            dataset_file=shared["dataset_file"],
            method_file=shared["method_file"],
            flags=nested({"SEED": seed}, shared["flags"]),
            options=[*shared["options"], *(_options(self.space, params) if params else [])],
            allow_new_keys=shared["allow_new_keys"],
        )
        cfg.defrost()
        cfg.OUTPUT_DIR, cfg.VERBOSE = str(folder), False
        cfg.TEST.SPLIT, cfg.TEST.NO_TEST = ("test" if self.folds else "val"), False
        cfg.freeze()
        return cfg

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Seed and fold of each run of a trial; the fold is -1 where validation images are used."""
        return list(itertools.product(self.seeds, range(self.folds) if self.folds else (-1,)))

    @property
    def measured_on(self) -> str:
        """Where the value of a trial is from, for people."""
        where = f"training images left out in {self.folds} folds" if self.folds else "the validation images"
        return f"{where}, seed{'s' * (len(self.seeds) > 1)} {' '.join(map(str, self.seeds))}"


@dataclass(frozen=True)
class Trial:
    """What one process needs to do a trial.

    Attributes:
        number: from 0.
        params: key -> value.
        earlier: the reports of each trial that is complete, which say whether this one falls behind.
    """

    number: int
    params: dict[str, Value]
    earlier: tuple[dict[int, float], ...] = ()


@dataclass
class Result:
    """What became of a trial.

    Attributes:
        state: one of the words above.
        value: mean over its runs of the main metric, in percent; NaN unless it is complete.
        metric: its name.
        reports: step -> value on the way: tenths of the first run, then runs.
        runs: the metric of each.
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


class _BrokenOff(Exception):  # noqa: N818 (no error)
    """The trial falls behind others."""


def with_folds(search_folds: int, cfg: CfgNode) -> int:
    """The number of folds to measure in: 0 if the dataset has validation images, unless folds are asked for.

    Args:
        search_folds: as asked for; 0: no wish.
        cfg: of a run.

    Raises:
        UserError: nothing can be left out.
    """
    set_random_seed(max(cfg.SEED, 0))  # the draw is made here if it has not been made before
    dataset, name = build_dataset(cfg), cfg.DATASET.NAME
    if not search_folds and dataset.val and not validates_on_test(dataset):
        return 0
    if dataset.multi_label:
        raise UserError(
            f"{name} has no validation images to tune on; leaving out training images needs images of one class each, "
            "and it is multi-label"
        )
    found = int(_folds(dataset, search_folds or 5, 1).max()) + 1
    if found < 2:
        raise UserError(
            f"{name} has no validation images to tune on, and with one training image per class none can be left out; "
            "use --shots 2 or more"
        )
    return found


def _folds(dataset: DatasetBase, most: int, seed: int) -> torch.Tensor:
    return folds_of(torch.tensor([item.label for item in dataset.train_x]), most, seed)


def _without_test(dataset: DatasetBase, search: Search, fold: int) -> None:
    """Take the test images out of a dataset; a fold of the training images stands in for them, unless it is -1."""
    if fold < 0:
        assert not validates_on_test(dataset)
        dataset.use_splits(dataset.train_x, dataset.val, None)
        return
    out = (_folds(dataset, search.folds, search.seed) == fold).tolist()
    rest = [item for item, left_out in zip(dataset.train_x, out, strict=True) if not left_out]
    held_out = [item for item, left_out in zip(dataset.train_x, out, strict=True) if left_out]
    dataset.use_splits(rest, None, held_out)


# ---- a trial ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _run_of(search: Search, params: Mapping[str, Value] | None, seed: int, fold: int) -> Iterator[Any]:
    """The trainer of a run, ready to train; its files are gone afterwards."""
    place = search.folder if search.folder.is_dir() else None  # another machine may not see it
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=place, ignore_cleanup_errors=True) as folder:
        cfg = search.config(seed, params, folder)
        with changed_datasets(partial(_without_test, search=search, fold=fold)):
            trainer = run.build(cfg)
        try:
            run.before_training(trainer)  # draws the random numbers that it draws in train.py
            yield trainer
        finally:
            setup_logger()  # closes the run's log


def clear(folder: Path) -> None:
    """Remove what a search that was killed has left in its folder."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def prepare(search: Search) -> None:
    """Build a run of the search, so that what is wrong with all of them is told at once, and extract its features."""
    with _run_of(search, None, *search.runs[0]) as trainer:
        idle = trainer.idle_keys() if hasattr(trainer, "idle_keys") else {}
        for one in search.space:
            parts = one.key.split(".")
            names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
            why = next((idle[name] for name in names if name in idle), "")
            if why and len(search.space) == 1:
                raise UserError(f"--space {one.key} has no effect in these runs: {why}")
            if why:
                logger.warning(f"--space {one.key} has no effect with the recipe's values: {why}")
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
    except _BrokenOff:
        result.state = PRUNED
    except NotFiniteError as error:  # these settings are bad, and Optuna learns it
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
    """The name and the value of the metric that a run ends with.

    Raises:
        UserError: there is none, or it is no number.
    """
    metrics = trainer.results.get(trainer.cfg.TEST.SPLIT, {})
    name = main_metric(metrics)
    value = metrics.get(name)
    if not isinstance(value, float | int) or not math.isfinite(value):
        raise UserError(f"{trainer.cfg.TRAINER.NAME} reports no accuracy to tune by")
    return name, float(value)


def _reporter(trial: Trial, result: Result) -> Callable[[int, float], None]:
    """A function that notes a value on the way, and raises `_BrokenOff` if it is below the median of earlier trials."""
    optuna = _optuna()
    pruner = optuna.pruners.MedianPruner(n_startup_trials=_BEFORE_PRUNING, n_warmup_steps=_WARM_UP)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    study.add_trials([optuna.trial.create_trial(value=0.0, intermediate_values=one) for one in trial.earlier])

    def report(step: int, value: float) -> None:
        result.reports[step] = value
        now = study.ask()  # with this report alone: a trial that starts from CLIP's own texts was never worse before
        now.report(value, step)
        if now.should_prune():
            raise _BrokenOff

    return report


def _report_epochs(trainer: Any, report: Callable[[int, float], None]) -> None:
    """Have a trainer report after each tenth of its epochs, without a trace in what it draws and learns."""
    split, after_epoch = trainer.cfg.TEST.SPLIT, trainer.after_epoch
    cheap = getattr(trainer.val_loader if split == "val" else trainer.test_loader, "gives_features", False)
    reports = _REPORTS if cheap else _COSTLY_REPORTS

    def with_report() -> None:
        after_epoch()
        done, before = (reports * epoch // trainer.max_epoch for epoch in (trainer.epoch + 1, trainer.epoch))
        if before < done < reports:  # the last one is the trial's value
            report(done * _REPORTS // reports, _value_now(trainer, split))

    trainer.after_epoch = with_report


def _value_now(trainer: Any, split: str) -> float:
    """What a run would give if it ended now."""
    last = trainer.history[-1] if trainer.history else {}
    if (last.get("epoch"), last.get("split")) != (trainer.epoch + 1, split):  # an epoch is selected: it is known
        kept = list(trainer.history), dict(trainer.results), dict(trainer.seconds)
        with random_streams_kept(), trainer.deployed():
            trainer.test(split)
        last = trainer.history[-1]
        trainer.history, trainer.results, trainer.seconds = kept
    return float(last[main_metric(last)])


# ---- the study ----------------------------------------------------------------------------------------------------


def _optuna() -> Any:
    optuna = optional_module("optuna", "tune", "tune.py")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Study:
    """The finished trials of a search, kept in an SQLite file as Optuna keeps them.

    Args:
        search: whose trials they are.

    Raises:
        UserError: the folder holds another search, or a file that is none.
    """

    def __init__(self, search: Search) -> None:
        self.search, self.optuna = search, _optuna()
        self.space = {one.key: one.distribution(self.optuna) for one in search.space}
        path = search.folder / STORE
        try:
            self.stored = self._open(path)
            self._check_same(path)
            self.results = {one.number: one for one in map(self._result, self.stored.get_trials(deepcopy=False))}
        except (UserError, KeyboardInterrupt):
            raise
        except Exception as error:  # SQLAlchemy's are many
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path} is not the file of a search, or cannot be used: {reason}") from error

    def _open(self, path: Path) -> Any:
        from sqlalchemy.engine import URL

        url = URL.create("sqlite", database=str(path)).render_as_string()
        storage = self.optuna.storages.RDBStorage(url)
        return self.optuna.create_study(storage=storage, study_name=STUDY, direction="maximize", load_if_exists=True)

    def _check_same(self, path: Path) -> None:
        """Refuse to go on with another search."""
        search = self.search
        own = {
            "trainer": search.trainer,
            "--space": " ".join(one.text for one in search.space),
            "--seed": search.seed,
            "--seeds": list(search.seeds),
            "folds": search.folds,
            "pruning": search.prunes,
        }
        config = {key: value for key, value in to_dict(search.config(search.seeds[0])).items() if key != "SEED"}
        before = self.stored.user_attrs
        if not before:
            for key, value in {**own, "config": config, "version": dassl_lite.__version__}.items():
                self.stored.set_user_attr(key, value)
            return
        for key, value in own.items():
            if before.get(key) != value:
                raise UserError(
                    f"{path} belongs to a search with {key} {shown(before.get(key))}, but now it is {shown(value)}; "
                    "choose another --output-dir"
                )
        checkpoint.check_same_run(before.get("config", {}), config, path)

    def _result(self, one: Any) -> Result:
        about = one.user_attrs
        state = {"COMPLETE": COMPLETE, "PRUNED": PRUNED}.get(one.state.name, FAILED)
        return Result(
            about["number"],
            dict(one.params),
            state,
            one.value if state == COMPLETE else math.nan,
            about["metric"],
            dict(one.intermediate_values),
            about["runs"],
            about["seconds"],
            about["reason"],
        )

    def _frozen(self, result: Result) -> Any:
        """A result as a trial of Optuna's."""
        names = ("number", "metric", "runs", "seconds", "reason")
        state = {COMPLETE: "COMPLETE", PRUNED: "PRUNED", FAILED: "FAIL"}[result.state]
        return self.optuna.trial.create_trial(
            state=self.optuna.trial.TrialState[state],
            value=result.value if result.state == COMPLETE else None,
            params=result.params,
            distributions=self.space,
            intermediate_values=result.reports,
            user_attrs={name: getattr(result, name) for name in names},
        )

    def add(self, result: Result) -> None:
        """Keep the result of a trial."""
        self.stored.add_trial(self._frozen(result))
        self.results[result.number] = result

    def before(self, number: int) -> list[Result]:
        """The results of the trials before one, in their order."""
        return [self.results[one] for one in sorted(self.results) if one < number]

    def reports_before(self, number: int) -> tuple[dict[int, float], ...]:
        """The reports of the complete trials before one."""
        return tuple(one.reports for one in self.before(number) if one.state == COMPLETE)

    def proposals(self, numbers: range, first: Mapping[str, Value] | None) -> list[Trial]:
        """Trials with these numbers, from what those before all of them gave.

        Args:
            first: the settings of trial 0; None lets Optuna choose.
        """
        study, reports = self.optuna.create_study(direction="maximize"), self.reports_before(numbers[0])
        study.add_trials([self._frozen(one) for one in self.before(numbers[0])])
        found = []
        for number in numbers:
            seed = (self.search.seed * 1_000_003 + number) % 2**32
            study.sampler = self.optuna.samplers.TPESampler(seed=seed)
            params = dict(study.ask(self.space).params)
            found.append(Trial(number, dict(first) if first and not number else params, reports))
        return found

    @property
    def best(self) -> Result | None:
        """The complete trial with the highest value, the first of equals; None if there is none."""
        complete = [one for one in self.results.values() if one.state == COMPLETE]
        return max(complete, key=lambda one: (one.value, -one.number), default=None)

    def importances(self) -> dict[str, float]:
        """How much of the differences between trials each key explains, by fANOVA; empty if there are too few."""
        values = {one.value for one in self.results.values() if one.state == COMPLETE}
        if len(self.space) < 2 or len(values) < 4:
            return {}
        evaluator = self.optuna.importance.FanovaImportanceEvaluator(seed=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = self.optuna.importance.get_param_importances(self.stored, evaluator=evaluator)
            except (RuntimeError, ValueError, ImportError):
                return {}
        return {key: float(value) for key, value in found.items()}


def search_all(search: Search, study: Study, each: Workers) -> None:
    """Do the trials that are left; each is kept as it ends."""
    size = math.prod(one.size for one in search.space)
    exhaustive = size <= search.trials
    if exhaustive:
        logger.info(f"The space has {size:.0f} settings: each is tried once")
    batches = _grid(search, study) if exhaustive else _proposed(search, study)
    total = int(size) if exhaustive else search.trials
    with tqdm(total=total, desc="Search", unit="trial", file=sys.stderr, initial=len(study.results)) as bar:
        for batch in batches:
            for result in _done(batch, search, study, each):
                study.add(result)
                best = study.best
                bar.set_postfix_str(f"best {best.value:.2f} %, trial {best.number}" if best else "", refresh=False)
                bar.update()


def _grid(search: Search, study: Study) -> Iterator[list[Trial]]:
    """Batches of the settings of a finite space that have not been tried."""
    tried = [one.params for one in study.results.values()]
    keys = [one.key for one in search.space]
    settings = [dict(zip(keys, values, strict=True)) for values in itertools.product(*(d.values for d in search.space))]
    left = [one for one in settings if one not in tried]
    free = [number for number in range(len(left) + len(tried)) if number not in study.results]
    for start in range(0, len(left), search.jobs):
        both = list(zip(free, left, strict=False))[start : start + search.jobs]
        yield [Trial(number, params, study.reports_before(both[0][0])) for number, params in both]


def _proposed(search: Search, study: Study) -> Iterator[list[Trial]]:
    """Batches of Optuna's proposals, after the recipe's own settings where those are in the space."""
    values = leaves(search.config(search.seeds[0]))
    own = {one.key: one.own(values.get(one.key)) for one in search.space}
    first = {key: value for key, value in own.items() if value is not None}
    for start in range(0, search.trials, search.jobs):
        numbers = range(start, min(start + search.jobs, search.trials))
        if not all(number in study.results for number in numbers):
            yield study.proposals(numbers, first if len(first) == len(own) else None)


def _done(batch: Sequence[Trial], search: Search, study: Study, each: Workers) -> Iterator[Result]:
    """The results of the trials of a batch that have none yet, as they end."""
    todo = []
    for trial in batch:
        if trial.number in study.results:
            continue
        known = next((one for one in study.before(trial.number) if one.params == trial.params), None)
        if known is None:
            todo.append(trial)
        else:  # the same settings give the same
            yield replace(known, number=trial.number, seconds=0.0)
    yield from each(partial(do_trial, search=search), todo)


# ---- what it leaves -----------------------------------------------------------------------------------------------


def write_table(study: Study, path: Path) -> None:
    """All trials as CSV, in full precision."""
    keys = [one.key for one in study.search.space]
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", "value", "metric", "seconds", *keys, "reason"])
        for one in study.before(sys.maxsize):
            value = one.value if one.state == COMPLETE else ""
            settings = [one.params[key] for key in keys]
            writer.writerow([one.number, one.state, value, one.metric, f"{one.seconds:.3f}", *settings, one.reason])


def recipe_of(search: Search, best: Result, data: DatasetChoice) -> dict[str, Any]:
    """All keys of a trial that differ from the defaults and from what the dataset's yaml says, as a tree for a yaml."""
    cfg = leaves(search.config(search.seeds[0], best.params))
    without = make_config(
        dataset_file=data.file, flags=nested(data.flags), allow_new_keys=search.shared["allow_new_keys"]
    )
    plain, hidden = leaves(without), {*_NOT_SEARCHED, *FIXED} - {"DATASET.NUM_SHOTS"}
    own = {key: value for key, value in cfg.items() if key not in hidden and (key not in plain or plain[key] != value)}
    if own.get("OPTIM.EPOCHS_BY_SHOTS"):
        own.pop("OPTIM.MAX_EPOCH", None)  # follows from it
    own |= {key: cfg[key] for key in ("DATASET.NUM_SHOTS", *best.params)}
    return nested({key: _plain(value) for key, value in sorted(own.items())})


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value


def write_recipe(tree: Mapping[str, Any], header: Sequence[str], path: Path) -> None:
    """A recipe with comments above it, as those that come with the package."""
    title, *lines = (printable(" ".join(line.split())) for line in header)
    body = yaml.safe_dump(dict(tree), default_flow_style=None, sort_keys=False, width=120, allow_unicode=True)
    text = "\n".join([f"# {title}", "", *(f"# {line}" for line in lines), body])
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
