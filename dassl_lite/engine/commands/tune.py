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
    """The finished trials of a search, kept in an SQLite file as Optuna keeps them.

    Args:
        search: whose trials they are.

    Raises:
        UserError: the folder holds another search, or a file that is none.
    """

    def __init__(self, search: Search) -> None:
        self.search, self.optuna = search, optuna_library()
        self.space = {one.key: one.distribution(self.optuna) for one in search.space}
        path = search.folder / STORE
        with _reading(path):
            self.stored = self.optuna.create_study(
                storage=_storage(self.optuna, path), study_name=STUDY, direction="maximize", load_if_exists=True
            )
            self._check_same(path)
            self.results = {one.number: one for one in map(_result, self.stored.get_trials(deepcopy=False))}

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
        return best_of(self.results.values())

    def importances(self) -> dict[str, float]:
        """How much of the differences between trials each key explains, by fANOVA; empty if there are too few."""
        return _importances(self.optuna, self.stored, self.results.values())


def _result(one: Any) -> Result:
    """A trial of Optuna's as a result."""
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


def best_of(results: Iterable[Result]) -> Result | None:
    """The complete one with the highest value, the first of equals; None if there is none."""
    complete = [one for one in results if one.state == COMPLETE]
    return max(complete, key=lambda one: (one.value, -one.number), default=None)


def _importances(optuna: Any, stored: Any, results: Iterable[Result]) -> dict[str, float]:
    complete = [one for one in results if one.state == COMPLETE]
    if len({one.value for one in complete}) < 4 or len(complete[0].params) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = optuna.importance.get_param_importances(stored, evaluator=evaluator)
        except (RuntimeError, ValueError, ImportError):
            return {}
    return {key: float(value) for key, value in found.items()}


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A context in which what is wrong with the file of a search is told in one line."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # SQLAlchemy's are many
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not the file of a search, or cannot be used: {reason}") from error


def _storage(optuna: Any, path: Path) -> Any:
    from sqlalchemy.engine import URL

    return optuna.storages.RDBStorage(URL.create("sqlite", database=str(path)).render_as_string())


@dataclass(frozen=True)
class Record:
    """A search as its folder holds it.

    Attributes:
        space: what was searched.
        results: of its trials, in their order.
        about: what it was started with, by the names of the command line.
        importances: see `Study.importances`.
        recipe: the text of the recipe; "" while there is none.
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
    """Whether this is the folder of a search."""
    return (folder / STORE).is_file()


def read_search(folder: Path) -> Record:
    """The search in a folder, which may be under way.

    Raises:
        UserError: its file cannot be read, or no trial has ended yet.
    """
    optuna, path, recipe = optuna_library(), folder / STORE, folder / RECIPE
    with _reading(path):
        stored = optuna.load_study(study_name=STUDY, storage=_storage(optuna, path))
        trials, about = stored.get_trials(deepcopy=False), dict(stored.user_attrs)
        results = sorted(map(_result, trials), key=lambda one: one.number)
        if not results:
            raise UserError(f"{folder} holds a search of which no trial has ended yet")
        space = tuple(Dimension.of(key, one) for key, one in trials[0].distributions.items())
        importances = _importances(optuna, stored, results)
        trainer = str(about["trainer"])
    text = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    return Record(folder, trainer, space, tuple(results), about, importances, text)


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
    plain, hidden = leaves(without), {*NOT_SEARCHED, *FIXED} - {"DATASET.NUM_SHOTS"}
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
