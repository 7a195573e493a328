"""Hyper-parameter search by performance on validation images; no test image is read.

A trial is a run as `tools/train.py` would do it, except that the test split is removed from the dataset before anything
is read. If there are no validation images, folds of the training images are held out in turn.

Optuna proposes settings and decides which trials to prune. A trial depends only on the search's seed and on the trials
of earlier batches, so a stopped search resumes as if it had never been interrupted. A batch is the set of trials that
run in parallel.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

import dassl_lite
from dassl_lite.config import to_dict
from dassl_lite.config.check import leaves
from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands.arguments import DatasetChoice, nested
from dassl_lite.engine.commands.search_space import FIXED, NOT_SEARCHED, Dimension, Value
from dassl_lite.engine.commands.search_trial import (
    COMPLETE,
    FAILED,
    PRUNED,
    Result,
    Search,
    Trial,
    do_trial,
    optuna_library,
)
from dassl_lite.engine.commands.workers import Workers
from dassl_lite.engine.files import checkpoint
from dassl_lite.utils import UserError, get_logger
from dassl_lite.utils.errors import printable, shown
from dassl_lite.utils.files import atomic_path

logger = get_logger(__name__)

STORE, TABLE, RECIPE = "study.db", "trials.csv", "recipe.yaml"
STUDY = "search"


# ---- the study ----------------------------------------------------------------------------------------------------


class Study:
    """The finished trials of a search, stored in Optuna's SQLite format.

    Args:
        search: the search.

    Raises:
        UserError: the folder contains another search, or its file cannot be used.
    """

    def __init__(self, search: Search) -> None:
        self.search, self.optuna = search, optuna_library()
        self.space = {dimension.key: dimension.distribution(self.optuna) for dimension in search.space}
        path = search.folder / STORE
        with _reading(path):
            self.stored = self.optuna.create_study(
                storage=_storage(self.optuna, path), study_name=STUDY, direction="maximize", load_if_exists=True
            )
            self._check_same(path)
            self.results = {result.number: result for result in map(_result, self.stored.get_trials(deepcopy=False))}

    def _check_same(self, path: Path) -> None:
        """Refuse to resume a different search."""
        search = self.search
        settings = {
            "trainer": search.trainer,
            "--space": " ".join(dimension.text for dimension in search.space),
            "--seed": search.seed,
            "--seeds": list(search.seeds),
            "folds": search.folds,
            "pruning": search.prunes,
        }
        config = {key: value for key, value in to_dict(search.config(search.seeds[0])).items() if key != "SEED"}
        before = self.stored.user_attrs
        if not before:
            for key, value in {**settings, "config": config, "version": dassl_lite.__version__}.items():
                self.stored.set_user_attr(key, value)
            return
        for key, value in settings.items():
            if before.get(key) != value:
                raise UserError(
                    f"{path} belongs to a search with {key} {shown(before.get(key))}, but now it is {shown(value)}; "
                    "choose another --output-dir"
                )
        checkpoint.check_same_run(before.get("config", {}), config, path)

    def _frozen(self, result: Result) -> Any:
        """A result as an Optuna trial."""
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
        """Store the result of a trial."""
        self.stored.add_trial(self._frozen(result))
        self.results[result.number] = result

    def before(self, number: int) -> list[Result]:
        """The results of the trials before trial ``number``, in order."""
        return [self.results[earlier] for earlier in sorted(self.results) if earlier < number]

    def reports_before(self, number: int) -> tuple[dict[int, float], ...]:
        """The reports of the complete trials before trial ``number``."""
        return tuple(result.reports for result in self.before(number) if result.state == COMPLETE)

    def proposals(self, numbers: range, first: Mapping[str, Value] | None) -> list[Trial]:
        """Propose trials with these numbers, given the results of all trials before them.

        Args:
            first: the settings of trial 0; None lets Optuna choose.
        """
        study, reports = self.optuna.create_study(direction="maximize"), self.reports_before(numbers[0])
        study.add_trials([self._frozen(result) for result in self.before(numbers[0])])
        trials = []
        for number in numbers:
            seed = (self.search.seed * 1_000_003 + number) % 2**32
            study.sampler = self.optuna.samplers.TPESampler(seed=seed)
            params = dict(study.ask(self.space).params)
            trials.append(Trial(number, dict(first) if first and not number else params, reports))
        return trials

    @property
    def best(self) -> Result | None:
        """The complete trial with the highest value, the first in a tie; None if there is none."""
        return best_of(self.results.values())

    def importances(self) -> dict[str, float]:
        """The share of variation between trials that each key explains, by fANOVA; empty for too few trials."""
        return _importances(self.optuna, self.stored, self.results.values())


def _result(trial: Any) -> Result:
    """Convert an Optuna trial to a result."""
    about = trial.user_attrs
    state = {"COMPLETE": COMPLETE, "PRUNED": PRUNED}.get(trial.state.name, FAILED)
    return Result(
        about["number"],
        dict(trial.params),
        state,
        trial.value if state == COMPLETE else math.nan,
        about["metric"],
        dict(trial.intermediate_values),
        about["runs"],
        about["seconds"],
        about["reason"],
    )


def best_of(results: Iterable[Result]) -> Result | None:
    """The complete result with the highest value, the first in a tie; None if there is none."""
    complete = [result for result in results if result.state == COMPLETE]
    return max(complete, key=lambda result: (result.value, -result.number), default=None)


def _importances(optuna: Any, stored: Any, results: Iterable[Result]) -> dict[str, float]:
    complete = [result for result in results if result.state == COMPLETE]
    if len({result.value for result in complete}) < 4 or len(complete[0].params) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importances = optuna.importance.get_param_importances(stored, evaluator=evaluator)
        except (RuntimeError, ValueError, ImportError):
            return {}
    return {key: float(value) for key, value in importances.items()}


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A context in which errors about a search's file become a one-line UserError."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # SQLAlchemy raises many kinds
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not the file of a search, or cannot be used: {reason}") from error


def _storage(optuna: Any, path: Path) -> Any:
    from sqlalchemy.engine import URL

    return optuna.storages.RDBStorage(URL.create("sqlite", database=str(path)).render_as_string())


@dataclass(frozen=True)
class Record:
    """A search as stored in its folder.

    Attributes:
        space: the searched space.
        results: results of the trials, in order.
        about: the settings it was started with, by their command-line names.
        importances: see `Study.importances`.
        recipe: text of the recipe; "" while there is none.
    """

    folder: Path
    trainer: str
    space: tuple[Dimension, ...]
    results: tuple[Result, ...]
    about: Mapping[str, Any]
    importances: Mapping[str, float]
    recipe: str

    @property
    def best(self) -> Result | None:
        return best_of(self.results)


def holds_search(folder: Path) -> bool:
    """Whether a folder contains a search."""
    return (folder / STORE).is_file()


def read_search(folder: Path) -> Record:
    """Read the search in a folder, which may still be running.

    Raises:
        UserError: its file cannot be read, or no trial has ended yet.
    """
    optuna, path, recipe = optuna_library(), folder / STORE, folder / RECIPE
    with _reading(path):
        stored = optuna.load_study(study_name=STUDY, storage=_storage(optuna, path))
        trials, about = stored.get_trials(deepcopy=False), dict(stored.user_attrs)
        results = sorted(map(_result, trials), key=lambda result: result.number)
        if not results:
            raise UserError(f"{folder} contains a search whose first trial has not ended yet")
        space = tuple(Dimension.of(key, values) for key, values in trials[0].distributions.items())
        importances = _importances(optuna, stored, results)
        trainer = str(about["trainer"])
    text = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    return Record(folder, trainer, space, tuple(results), about, importances, text)


def search_all(search: Search, study: Study, each: Workers) -> None:
    """Do the remaining trials, storing each as it ends."""
    size = math.prod(dimension.size for dimension in search.space)
    exhaustive = size <= search.trials
    if exhaustive:
        logger.info(f"The space has {size:.0f} settings: each is tried once")
    batches = _grid(search, study) if exhaustive else _proposed(search, study)
    total = int(size) if exhaustive else search.trials
    with tqdm(total=total, desc="Search", unit="trial", file=sys.stderr, initial=len(study.results)) as bar:
        for batch in batches:
            for result in _run_batch(batch, search, study, each):
                study.add(result)
                best = study.best
                bar.set_postfix_str(f"best {best.value:.2f} %, trial {best.number}" if best else "", refresh=False)
                bar.update()


def _grid(search: Search, study: Study) -> Iterator[list[Trial]]:
    """Batches of the untried settings of a finite space."""
    tried = [result.params for result in study.results.values()]
    keys = [dimension.key for dimension in search.space]
    settings = [dict(zip(keys, values, strict=True)) for values in itertools.product(*(d.values for d in search.space))]
    untried = [params for params in settings if params not in tried]
    free = [number for number in range(len(untried) + len(tried)) if number not in study.results]
    for start in range(0, len(untried), search.jobs):
        batch = list(zip(free, untried, strict=False))[start : start + search.jobs]
        yield [Trial(number, params, study.reports_before(batch[0][0])) for number, params in batch]


def _proposed(search: Search, study: Study) -> Iterator[list[Trial]]:
    """Batches of Optuna's proposals, starting with the recipe's own settings if they are in the space."""
    values = leaves(search.config(search.seeds[0]))
    recipe = {dimension.key: dimension.match(values.get(dimension.key)) for dimension in search.space}
    first = {key: value for key, value in recipe.items() if value is not None}
    for start in range(0, search.trials, search.jobs):
        numbers = range(start, min(start + search.jobs, search.trials))
        if not all(number in study.results for number in numbers):
            yield study.proposals(numbers, first if len(first) == len(recipe) else None)


def _run_batch(batch: Sequence[Trial], search: Search, study: Study, each: Workers) -> Iterator[Result]:
    """Do the unfinished trials of a batch and yield their results as they end."""
    todo = []
    for trial in batch:
        if trial.number in study.results:
            continue
        known = next((result for result in study.before(trial.number) if result.params == trial.params), None)
        if known is None:
            todo.append(trial)
        else:  # the same settings give the same result
            yield replace(known, number=trial.number, seconds=0.0)
    yield from each(partial(do_trial, search=search), todo)


# ---- output files -------------------------------------------------------------------------------------------------


def write_table(study: Study, path: Path) -> None:
    """Write all trials as CSV, in full precision."""
    keys = [dimension.key for dimension in study.search.space]
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", "value", "metric", "seconds", *keys, "reason"])
        for trial in study.before(sys.maxsize):
            value = trial.value if trial.state == COMPLETE else ""
            row = [trial.number, trial.state, value, trial.metric, f"{trial.seconds:.3f}"]
            writer.writerow([*row, *(trial.params[key] for key in keys), trial.reason])


def recipe_of(search: Search, best: Result, data: DatasetChoice) -> dict[str, Any]:
    """A trial's keys that differ from the defaults and from the dataset's yaml, as a tree for a yaml."""
    cfg = leaves(search.config(search.seeds[0], best.params))
    without = make_config(
        dataset_file=data.file, flags=nested(data.flags), allow_new_keys=search.shared["allow_new_keys"]
    )
    plain, hidden = leaves(without), {*NOT_SEARCHED, *FIXED} - {"DATASET.NUM_SHOTS"}
    changed = {
        key: value for key, value in cfg.items() if key not in hidden and (key not in plain or plain[key] != value)
    }
    if changed.get("OPTIM.EPOCHS_BY_SHOTS"):
        changed.pop("OPTIM.MAX_EPOCH", None)  # derived from it
    changed |= {key: cfg[key] for key in ("DATASET.NUM_SHOTS", *best.params)}
    return nested({key: _plain(value) for key, value in sorted(changed.items())})


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def write_recipe(tree: Mapping[str, Any], header: Sequence[str], path: Path) -> None:
    """Write a recipe with header comments, like those shipped with the package."""
    title, *lines = (printable(" ".join(line.split())) for line in header)
    body = yaml.safe_dump(dict(tree), default_flow_style=None, sort_keys=False, width=120, allow_unicode=True)
    text = "\n".join([f"# {title}", "", *(f"# {line}" for line in lines), body])
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
