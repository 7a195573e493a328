"""The field's protocols: the runs and evaluations that each consists of.

    few-shot                every dataset x shots
    base-to-new             trained on the base classes, tested on base, on new, and on all of them together
    cross-dataset           trained on one dataset, tested on others with other classes
    domain-generalization   the same run, tested on variants of its own dataset

The runs form a sweep. The results of a run's evaluations are stored in its folder, in ``evaluations.json``. A protocol
is resumed by planning it again: finished parts are not repeated.
"""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm
from yacs.config import CfgNode

from dassl_lite.data import DATASET_REGISTRY, FolderDataset
from dassl_lite.engine.build import (
    TRAINER_REGISTRY,
    configs_root,
    default_recipe,
    make_config,
    names_backbone,
    set_by_user,
)
from dassl_lite.engine.commands import evaluate
from dassl_lite.engine.commands.arguments import ConfigArguments, DatasetChoice, nested
from dassl_lite.engine.commands.evaluate import Target, config_for, stored_config, suite
from dassl_lite.engine.commands.sweep import Settings, Task, tasks
from dassl_lite.engine.commands.tables import Table
from dassl_lite.engine.commands.workers import local_workers, this_process
from dassl_lite.engine.files.results import FILE_NAME, read_results
from dassl_lite.engine.files.run_folder import REPLACED
from dassl_lite.utils import UserError, get_logger, setup_logger, write_json
from dassl_lite.utils.devices import give_back_memory
from dassl_lite.utils.errors import unknown
from dassl_lite.utils.files import digest_of, read_json

logger = get_logger(__name__)

FEW_SHOT, BASE_TO_NEW, CROSS, DG = "few-shot", "base-to-new", "cross-dataset", "domain-generalization"
PROTOCOLS = (FEW_SHOT, BASE_TO_NEW, CROSS, DG)
SHOTS = (1, 2, 4, 8, 16)
SHOTS_OF_SOURCE = 16  # used by every protocol except few-shot
EVALUATIONS = "evaluations.json"
NOTES = "notes.json"  # in a benchmark's folder
NEW, ALL = "new", "all"  # evaluations of a run on base classes: on the dataset's other classes, and on all
LACKS = "lacks classes"
# Protocol -> parts of the names of its recipes; a method without such a recipe uses its default one.
_RECIPES = {BASE_TO_NEW: ("base_to_new",), CROSS: ("cross_dataset",), DG: ("cross_dataset", "generalization")}
SHORTER = 10  # long trainings on the embedded datasets are shortened by this factor
_STEPS = ("STEPS_PER_SHOT", "ITERATIONS")  # keys of methods that train for a number of steps
# Seconds and bytes per run until one has finished: measured on the embedded datasets (docs/results), guessed for the
# standard datasets.
_GUESSES = {True: (2.5, 0.35e6), False: (120.0, 10e6)}


@dataclass(frozen=True)
class Datasets:
    """The datasets of the protocols, by the names of their yaml files.

    Attributes:
        source: training dataset of the runs that are tested on other datasets.
        others: datasets with other classes.
        variants: variants of the source in other domains.
        drawn: whether they are the embedded datasets.
    """

    source: str
    others: tuple[str, ...]
    variants: tuple[str, ...]
    drawn: bool = False

    @classmethod
    def field(cls) -> Datasets:
        """The field's datasets: ImageNet, ten others and four variants."""
        return cls("imagenet", _names(CROSS), _names(DG))

    @classmethod
    def demo(cls) -> Datasets:
        """The datasets embedded in the package."""
        source, *rest = _names("demo")
        variants = tuple(name for name in rest if name.startswith(source))
        return cls(source, tuple(name for name in rest if name not in variants), variants, drawn=True)

    def of(self, protocol: str) -> tuple[str, ...]:
        """A protocol's datasets: those trained on or, for runs on the source, those tested on."""
        return {CROSS: self.others, DG: self.variants}.get(protocol, (self.source, *self.others))


def _names(suite_name: str) -> tuple[str, ...]:
    return tuple(str(target) for target in suite(suite_name))


@dataclass(frozen=True)
class ProtocolTask(Task):
    """A run of a protocol.

    Attributes:
        group: sub-folder of the benchmark's folder for runs of this kind.
        subset: subset of the dataset's classes: "all" or "base".
        recipe: name of the method's yaml; "" for its default.
        short: whether to train for only part of the recipe's length; see `shortened`.
    """

    group: str = FEW_SHOT
    subset: str = ALL
    recipe: str = ""
    short: bool = False

    @property
    def folder(self) -> Path:
        """The run's folder, relative to the benchmark's."""
        return self.group / super().folder

    def config(self, shared: ConfigArguments, folder: Path) -> CfgNode:
        """Like `Task.config`, with the protocol's classes and recipe."""
        flags = {} if self.subset == ALL else {"DATASET.SUBSAMPLE_CLASSES": self.subset}
        arguments: ConfigArguments = {
            **shared,
            "flags": nested(flags, shared["flags"]),
            "method_file": self.recipe or shared["method_file"],
        }
        cfg = super().config(arguments, folder)
        return shortened(cfg) if self.short else cfg


def length_key(cfg: CfgNode) -> str:
    """The dotted key that sets the length of a long training: one through an encoder, or one that counts steps.

    Returns "" for other methods, which take seconds, and if the user has set the key.
    """
    kind: Any = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    node = kind.node_name() if hasattr(kind, "node_name") else ""
    counted = [name for name in _STEPS if cfg.TRAINER.get(node, {}).get(name)]
    key = f"TRAINER.{node}.{counted[0]}" if counted else "OPTIM.MAX_EPOCH"
    return key if (counted or getattr(kind, "through_encoder", False)) and key not in set_by_user(cfg) else ""


def shortened(cfg: CfgNode) -> CfgNode:
    """``cfg`` with a tenth of a long training's epochs (at least 3) or steps.

    Runs on the embedded datasets show that a method works, not how well it performs.
    """
    if not (key := length_key(cfg)):
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    *parents, name = key.split(".")
    node = cfg
    for parent in parents:
        node = node[parent]
    node[name] = max(node[name] // SHORTER, min(node[name], 3))
    cfg.freeze()
    return cfg


@dataclass
class Plan:
    """The runs and evaluations of the protocols.

    Attributes:
        evaluations: run -> what it is tested on besides its own dataset: keys, each a dataset yaml, NEW or ALL.
        missing: dataset -> why it cannot be used on this machine.
        drawn: whether the datasets are the embedded ones.
    """

    evaluations: dict[ProtocolTask, tuple[str, ...]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    drawn: bool = False

    @property
    def runs(self) -> list[ProtocolTask]:
        """All runs; a run that several protocols need is listed once."""
        return list(self.evaluations)

    def add(self, run: ProtocolTask, keys: Sequence[str] = ()) -> None:
        self.evaluations[run] = tuple(dict.fromkeys([*self.evaluations.get(run, ()), *keys]))


def recipe_for(protocol: str, trainer: str, backbone: str) -> str:
    """The name of a method's recipe for a protocol and backbone; "" for the default recipe."""
    for part in _RECIPES.get(protocol, ()):
        for path in sorted((configs_root() / "trainers" / trainer).glob(f"*{part}*.yaml")):
            cfg = make_config(trainer=trainer, method_file=path)
            if not names_backbone(cfg) or cfg.MODEL.BACKBONE.NAME == backbone:
                return path.stem
    return ""


def plan(
    protocols: Sequence[str],
    trainers: Sequence[str],
    shared: ConfigArguments,
    *,
    datasets: Datasets,
    only: Sequence[str] = (),
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = (1, 2, 3),
    short: bool = False,
) -> Plan:
    """Plan the runs and evaluations of protocols.

    Args:
        protocols: elements of `PROTOCOLS`.
        trainers: methods.
        shared: config arguments of all runs.
        datasets: the protocols' datasets.
        only: restrict the protocols to these datasets; the source is always kept.
        shots: numbers of shots for the few-shot protocol.
        seeds: seeds for every method that uses shots.
        short: whether to shorten long trainings; see `shortened`.

    Raises:
        UserError: ``only`` names a dataset that the protocols do not have.
    """
    known = list(dict.fromkeys(name for protocol in protocols for name in datasets.of(protocol)))
    for name in only:
        if name not in known:
            raise unknown("dataset", name, known)
    planned = Plan(drawn=datasets.drawn)
    backbone = make_config(flags=shared["flags"], options=shared["options"], allow_new_keys=True).MODEL.BACKBONE.NAME

    def available(names: Sequence[str]) -> list[str]:
        for name in names:
            if name not in planned.missing and (reason := _missing(name, shared)):
                planned.missing[name] = reason
        return [name for name in names if name not in planned.missing]

    for protocol in protocols:
        names = available([name for name in datasets.of(protocol) if not only or name in only])
        on_source = protocol in (CROSS, DG)
        if on_source and not (names and available([datasets.source])):
            continue
        recipes = {name: recipe_for(protocol, name, backbone) for name in trainers}
        sources = [DatasetChoice(name) for name in ([datasets.source] if on_source else names)]
        keys = names if on_source else [NEW, ALL] if protocol == BASE_TO_NEW else []
        for task in tasks(trainers, sources, shots if protocol == FEW_SHOT else [SHOTS_OF_SOURCE], seeds):
            recipe = recipes[task.trainer]
            group = protocol if not on_source else f"source-{recipe}" if recipe else FEW_SHOT
            subset = "base" if protocol == BASE_TO_NEW else ALL
            run = ProtocolTask(task.trainer, task.dataset, task.shots, task.seed, group, subset, recipe, short)
            planned.add(run, keys)
    return planned


def _missing(name: str, shared: ConfigArguments) -> str:
    """Why a dataset is not available on this machine; "" if its folder exists."""
    cfg = make_config(
        dataset_file=name, flags=shared["flags"], options=shared["options"], allow_new_keys=shared["allow_new_keys"]
    )
    kind = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    return kind.missing(cfg) if isinstance(kind, type) and issubclass(kind, FolderDataset) else ""


# ---- evaluations ------------------------------------------------------------------------------------------------


def evaluated(folder: Path) -> dict[str, dict[str, Any]]:
    """The evaluations in a run's folder by key; empty if they belong to a run that has been replaced."""
    path = folder / EVALUATIONS
    if not path.is_file():
        return {}
    try:
        stored = read_json(path)
    except ValueError:
        stored = None
    if not isinstance(stored, dict) or not isinstance(stored.get("evaluations"), dict):
        raise UserError(f"{path} does not hold evaluations of a run; delete it")
    return stored["evaluations"] if stored.get("run") == digest_of(read_results(folder)) else {}


def missing_evaluations(made: Plan, folder: Path) -> list[tuple[ProtocolTask, str]]:
    """Evaluations that have not been done yet, whether or not their run has finished."""
    missing = []
    for run, keys in made.evaluations.items():
        done = evaluated(folder / run.folder) if keys else {}
        missing += [(run, key) for key in keys if key not in done]
    return missing


def _target(key: str) -> Target:
    return {"DATASET.SUBSAMPLE_CLASSES": key} if key in (NEW, ALL) else key


def evaluate_all(made: Plan, settings: Settings) -> dict[str, str]:
    """Do the remaining evaluations of finished runs; returns the failed ones with the reason.

    An evaluation that a method cannot do because it lacks classes is stored like any other. Runs are evaluated in
    parallel, on this machine.
    """
    todo: dict[ProtocolTask, list[str]] = defaultdict(list)
    for run, key in missing_evaluations(made, settings.folder):
        if read_results(settings.folder / run.folder):
            todo[run].append(key)
    jobs = min(settings.jobs, len(todo))
    workers = local_workers(jobs, settings.plugins) if jobs > 1 else this_process()
    work = functools.partial(_evaluate, settings=replace(settings, cluster=None))
    failed: dict[str, str] = {}
    count = sum(map(len, todo.values()))
    with workers as each, tqdm(total=count, desc="Evaluations", unit="", disable=not count) as bar:
        for run, reasons in each(work, list(todo.items())):
            failed |= {f"{run.folder} on {key}": reason for key, reason in reasons.items()}
            bar.update(len(todo[run]))
    setup_logger()
    return dict(sorted(failed.items()))


def _evaluate(item: tuple[ProtocolTask, list[str]], settings: Settings) -> tuple[ProtocolTask, dict[str, str]]:
    """Do these evaluations of a run; returns the failed ones with the reason."""
    run, keys = item
    folder = settings.folder / run.folder
    flags = {key: value for key, value in settings.shared["flags"].items() if key != "OUTPUT_DIR"}
    failed: dict[str, str] = {}
    for key in keys:
        # Hide the warning about classes that stay zero-shot: here they are intended.
        setup_logger(console=False).handlers[0].setLevel(logging.ERROR)
        try:
            cfg = config_for(
                stored_config(folder),
                _target(key),
                flags,
                settings.shared["options"],
                allow_new_keys=settings.shared["allow_new_keys"],
            )
            row = evaluate.evaluate_row(cfg, folder, name=key)
        except (UserError, RuntimeError) as error:
            failed[key] = str(error)
            continue
        if row.missing and row.status != LACKS:
            failed[key] = row.missing
            continue
        rows = {**evaluated(folder), key: asdict(row)}
        write_json({"run": digest_of(read_results(folder)), "evaluations": rows}, folder / EVALUATIONS)
        give_back_memory()
    return run, failed


# ---- forecast ---------------------------------------------------------------------------------------------------


def forecast(made: Plan, folder: Path, jobs: int) -> list[str]:
    """Lines that say how much work is left, about how long it will take and how much it will write.

    An unfinished run is assumed to cost as much as finished runs of its method or, if there are none, of any method.
    """
    done = {run: results for run in made.runs if (results := read_results(folder / run.folder))}
    costs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for run, results in done.items():
        written = sum(path.stat().st_size for path in (folder / run.folder).rglob("*") if path.is_file())
        costs[run.trainer].append((sum(results.get("seconds", {}).values()), float(written)))
    every = [cost for group in costs.values() for cost in group] or [_GUESSES[made.drawn]]
    ahead = [costs.get(run.trainer, every) for run in made.runs if run not in done]
    total, disk = (sum(fmean(cost[i] for cost in group) for group in ahead) for i in (0, 1))
    evaluations = missing_evaluations(made, folder)
    spent = [row["seconds"] for run in done for row in evaluated(folder / run.folder).values()]
    seconds_each = fmean(spent) if spent else fmean(cost[0] for cost in every) / 2
    total = (total + seconds_each * len(evaluations)) / jobs
    planned = sum(map(len, made.evaluations.values()))
    basis = f"from {len(done)} finished here" if done else "a guess, as no run has finished here yet"
    return [
        f"{len(made.runs)} runs, {len(done)} of them finished; "
        f"{planned} evaluations, {planned - len(evaluations)} done",
        f"left: about {_duration(total)} with {jobs} at a time and {disk / 1e6:,.0f} MB of run folders ({basis}); "
        "plus the time to encode images whose features are not cached yet",
    ]


def _duration(seconds: float) -> str:
    return f"{seconds / 60:,.0f} minutes" if seconds < 2 * 3600 else f"{seconds / 3600:,.1f} hours"


def note_on_length(made: Plan, shared: ConfigArguments) -> str:
    """A line that names the methods whose training is shortened; "" if there are none."""
    runs = {run.trainer: run for run in made.runs if run.short}
    cut = [name for name, run in runs.items() if length_key(replace(run, short=False).config(shared, Path()))]
    part = f"1/{SHORTER} of their recipe's epochs or steps (--full-length: all)"
    return f"trained for {part}: {', '.join(sorted(cut))}" if cut else ""


def plan_table(made: Plan) -> Table:
    """A table with a row per method and kind of run."""
    rows: dict[tuple[str, str, str], list[int]] = {}
    for run, keys in made.evaluations.items():
        recipe = run.recipe or ("default" if default_recipe(run.trainer) else "")
        row = rows.setdefault((run.group, run.trainer, recipe), [0, 0])
        row[0] += 1
        row[1] += len(keys)
    return Table(
        "", ["runs of", "method", "recipe", "runs", "evaluations"], [[*key, *map(str, n)] for key, n in rows.items()]
    )


def runs_of_shots(folder: Path) -> Path:
    """The folder with the runs for tables over shots: in a benchmark's folder, that of the few-shot protocol."""
    return folder / FEW_SHOT if any((folder / name).is_dir() for name in (FEW_SHOT, BASE_TO_NEW)) else folder


def write_notes(notes: Sequence[str], folder: Path) -> None:
    """Store notes for readers of the tables in the benchmark's folder, for `notes_in`."""
    if merged := list(dict.fromkeys([*notes_in(folder), *notes])):
        write_json(merged, folder / NOTES)


def notes_in(folder: Path) -> list[str]:
    """The notes that `write_notes` has stored in a folder."""
    try:
        notes = read_json(folder / NOTES) if (folder / NOTES).is_file() else []
    except ValueError:
        notes = None
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise UserError(f"{folder / NOTES} does not hold notes on a benchmark; delete it")
    return notes


def has_runs(folder: Path) -> bool:
    """Whether a run below ``folder`` has finished."""
    return any(path.parent.name != REPLACED for path in folder.rglob(FILE_NAME))
