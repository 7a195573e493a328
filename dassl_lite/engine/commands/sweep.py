"""Many runs: every combination of method, dataset, shots and seed, each in its own folder.

Runs share the feature cache and the text features; runs in one process also share what they load. Repeating a sweep
skips finished runs and repeats those that failed or were killed. Several sweeps may work on the same folder at the same
time: each run is done by only one of them.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm
from yacs.config import CfgNode

from dassl_lite.config import to_dict
from dassl_lite.data import build_dataset, is_random
from dassl_lite.engine.build import TRAINER_REGISTRY, default_recipe, make_config, uses_shots
from dassl_lite.engine.commands import run
from dassl_lite.engine.commands.arguments import OWN_DATA, ConfigArguments, DatasetChoice, nested
from dassl_lite.engine.commands.on_ray import Cluster, RayWorkers, node_name, ray_workers
from dassl_lite.engine.commands.workers import local_workers
from dassl_lite.engine.files.results import FILE_NAME, read_results
from dassl_lite.engine.files.run_lock import FolderInUseError
from dassl_lite.engine.methods.feature_trainer import FeatureTrainer
from dassl_lite.models.clip import load_clip
from dassl_lite.models.image_tower import takes_prompts
from dassl_lite.utils import UserError, get_logger, set_random_seed, setup_logger, write_json
from dassl_lite.utils.devices import give_back_memory, is_lost
from dassl_lite.utils.errors import printable
from dassl_lite.utils.sharing import sharing

logger = get_logger(__name__)

DONE, SKIPPED, FAILED, BUSY = "done", "skipped", "failed", "busy"
LOST = "lost"  # not done: its process lost its GPU through an error in another run
_POLL_SECONDS = 1.0  # interval for checking runs that another process is doing


@dataclass(frozen=True)
class Task:
    """One run of a sweep. ``shots`` is -1 for all images, and 0 (with seed 1) for a method that uses no shots."""

    trainer: str
    dataset: DatasetChoice
    shots: int
    seed: int

    @property
    def folder(self) -> Path:
        """The run's folder, relative to the sweep's."""
        dataset = Path(self.dataset.label)
        if dataset.is_absolute() or ".." in dataset.parts:  # a yaml outside the package
            dataset = Path(dataset.stem)
        shots = "all" if self.shots < 0 else self.shots
        return dataset / self.trainer / f"{shots}shots-seed{self.seed}"

    def config(self, shared: ConfigArguments, folder: Path) -> CfgNode:
        """The frozen config of the run.

        Args:
            shared: config arguments shared by all runs of the sweep.
            folder: output folder of the run.
        """
        flags = {"DATASET.NUM_SHOTS": self.shots or -1, "SEED": self.seed, **self.dataset.flags}
        cfg = make_config(
            trainer=self.trainer,
            dataset_file=self.dataset.file,
            method_file=shared["method_file"] or default_recipe(self.trainer),
            flags=nested(flags, shared["flags"]),
            options=shared["options"],
            allow_new_keys=shared["allow_new_keys"],
        )
        cfg.defrost()
        cfg.OUTPUT_DIR, cfg.VERBOSE = str(folder), False
        cfg.freeze()
        return cfg


Outcome = tuple[Task, str, str]  # task, one of the outcomes above, reason for a failure


@dataclass(frozen=True)
class Settings:
    """The settings of a sweep.

    Attributes:
        folder: the sweep's folder.
        shared: config arguments of all runs.
        plugins: files or modules that each process imports first.
        jobs: number of parallel runs, each in its own process with its share of the cores.
        cluster: Ray cluster that executes the runs; None: this machine.
    """

    folder: Path
    shared: ConfigArguments
    plugins: tuple[str, ...] = ()
    jobs: int = 1
    cluster: Cluster | None = None


def all_methods() -> list[str]:
    """The package's methods, without those that only prepare a file for another method."""
    methods = []
    for name in TRAINER_REGISTRY:
        trainer = TRAINER_REGISTRY.get(name)
        if trainer.__module__.startswith("dassl_lite.trainers.") and getattr(trainer, "standalone", True):
            methods.append(name)
    return sorted(methods)


def compatible_methods(trainers: Sequence[str], cfg: CfgNode) -> list[str]:
    """The methods that support a config's backbone; logs the others, which need a ViT."""
    needing = [name for name in trainers if getattr(TRAINER_REGISTRY.get(name), "needs_vit", False)]
    backbone = cfg.MODEL.BACKBONE.NAME
    if not needing or cfg.DATASET.FILE or takes_prompts(load_clip(backbone).model):
        return list(trainers)
    logger.info(f"Skipping {', '.join(needing)}: backbone {backbone} has no ViT that they could modify")
    return [name for name in trainers if name not in needing]


def tasks(
    trainers: Sequence[str], datasets: Sequence[DatasetChoice], shots: Sequence[int], seeds: Sequence[int]
) -> list[Task]:
    """Every combination of the arguments; a method that uses no shots gets one run per dataset.

    Raises:
        UserError: two datasets would share a folder.
    """

    def combinations() -> Iterator[Task]:
        for dataset, trainer, number, seed in itertools.product(datasets, trainers, shots, seeds):
            if uses_shots(trainer):
                yield Task(trainer, dataset, number, seed)
            else:
                yield Task(trainer, dataset, 0, 1)

    unique = list(dict.fromkeys(combinations()))
    by_folder: dict[Path, Task] = {}
    for task in unique:
        other = by_folder.setdefault(task.folder, task)
        if other is not task:
            paths = " and ".join(task.dataset.data or task.dataset.file for task in (other, task))
            raise UserError(f"{paths} would share the output folder {task.folder}; sweep them separately")
    return unique


def is_finished(folder: Path, cfg: CfgNode) -> bool:
    """Whether ``folder`` contains this run and it is finished.

    Raises:
        UserError: it contains a run with different settings or on different data.
    """
    results = read_results(folder) if run.is_finished(cfg, folder) else None
    if results is None:
        return False
    path = folder / FILE_NAME
    # The root of the standard datasets may move; the root of the user's own data identifies the data.
    stored = results["config"].get("DATASET")
    before, now = str(stored.get("ROOT", "") if isinstance(stored, dict) else ""), cfg.DATASET.ROOT
    if OWN_DATA.get(cfg.DATASET.NAME) == "ROOT" and Path(before).resolve() != Path(now).resolve():
        raise UserError(f"{path} belongs to a run on {before}, not on {now}; choose another --output-dir")
    return True


def sweep(todo: Sequence[Task], settings: Settings) -> dict[Task, str]:
    """Do all unfinished runs; returns the failed ones with the reason."""
    start = time.perf_counter()
    ended: Counter[str] = Counter()
    failed: dict[Task, str] = {}
    outcomes = contextlib.closing(_outcomes(todo, settings))  # on an interrupt, stops its processes immediately
    with tqdm(total=len(todo), desc="Sweep", unit="run", file=sys.stderr) as bar, outcomes as ending:
        for task, outcome, reason in ending:
            ended[outcome] += 1
            if outcome == FAILED:
                failed[task] = reason
            bar.set_postfix_str(printable(task.folder), refresh=False)
            bar.update()
    setup_logger()
    seconds = time.perf_counter() - start
    runs = f"{ended[DONE]} run{'' if ended[DONE] == 1 else 's'}"
    logger.info(f"{runs} in {seconds:.0f} s, {ended[SKIPPED]} finished before, {ended[FAILED]} failed")
    return failed


def _outcomes(todo: Sequence[Task], settings: Settings) -> Generator[Outcome, None, None]:
    """Yield outcomes as runs end; runs that another process is doing come last, when they are finished or released."""
    reported = False
    with _workers(settings) as run_all:
        while todo:
            busy = []
            for task, outcome, reason in run_all(todo):
                if outcome == BUSY:
                    busy.append(task)
                else:
                    yield task, outcome, reason
            if busy and not reported:
                setup_logger()  # a run has silenced the console
                logger.info(f"Waiting for {len(busy)} run{'' if len(busy) == 1 else 's'} that another process is doing")
                reported = True
            time.sleep(_POLL_SECONDS if busy else 0)
            todo = busy


@contextlib.contextmanager
def _workers(settings: Settings) -> Iterator[Callable[[Sequence[Task]], Iterator[Outcome]]]:
    """A context with a function that does runs, here or in several processes, and yields outcomes as they end."""
    if settings.cluster is not None:
        with ray_workers(settings.cluster, settings.plugins) as each, _marker_in(settings.folder) as mark:
            yield functools.partial(_on_nodes, settings=settings, each=each, mark=mark)
        return
    if settings.jobs == 1:
        yield lambda todo: _in_this_process(todo, settings)
        return
    with _pool(settings) as run_all:
        yield run_all


def _in_this_process(todo: Sequence[Task], settings: Settings) -> Iterator[Outcome]:
    """Do runs in this process and yield their outcomes; after a GPU failure, the rest run in another process."""
    with sharing():
        for number, task in enumerate(todo):
            if _lost_gpu:
                setup_logger()  # a run has silenced the console
                with _pool(settings) as run_all:
                    yield from run_all(todo[number:])
                return
            yield _run_one(task, settings)


@contextlib.contextmanager
def _pool(settings: Settings) -> Iterator[Callable[[Sequence[Task]], Iterator[Outcome]]]:
    """Like `_workers`, with worker processes that are replaced when one of them loses its GPU."""
    with contextlib.ExitStack() as stack:
        each = stack.enter_context(local_workers(settings.jobs, settings.plugins))

        def run_all(todo: Sequence[Task]) -> Iterator[Outcome]:
            nonlocal each
            while todo:
                remaining = []
                for task, outcome, reason in each(functools.partial(_run_one, settings=settings), todo):
                    if outcome == LOST:
                        remaining.append(task)
                    else:
                        yield task, outcome, reason
                todo = remaining
                if remaining:
                    stack.close()
                    each = stack.enter_context(local_workers(settings.jobs, settings.plugins))

        yield run_all


# ---- on a cluster -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _marker_in(folder: Path) -> Iterator[Path]:
    """A context with a marker file in the sweep's folder, by which a node detects whether it can access that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = f".sweep-{node_name()}-"
    for stale in folder.glob(f"{prefix}*-*"):  # left by a driver on this machine that was killed
        number = stale.name.removeprefix(prefix).partition("-")[0]
        if number.isdecimal() and not _is_alive(int(number)):
            stale.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile(prefix=f"{prefix}{os.getpid()}-", dir=folder.resolve()) as file:
        yield Path(file.name)


def _is_alive(process: int) -> bool:
    """Whether a process with this id exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True


def _on_nodes(todo: Sequence[Task], settings: Settings, each: RayWorkers, mark: Path) -> Iterator[Outcome]:
    """Do runs on a cluster's nodes and yield their outcomes; a dataset's features are extracted before its runs."""
    remaining = []
    for task in todo:
        known = _known_outcome(task, settings)
        if known is None:
            remaining.append(task)
        else:
            yield known

    def lost(task: Task, reason: str) -> tuple[Outcome, bytes]:
        return (task, FAILED, reason), b""

    work = functools.partial(_run_on_node, settings=settings, mark=mark)
    before = functools.partial(extract_features, settings=settings), lambda task: task.dataset
    for outcome, packed in each(work, remaining, lost=lost, before=before):
        if packed:
            unpack_run(packed, settings.folder / outcome[0].folder)
        yield outcome


def _known_outcome(task: Task, settings: Settings) -> Outcome | None:
    """The outcome of a run that is already finished, or whose folder holds a different run; else None."""
    folder = settings.folder / task.folder
    if not (folder / FILE_NAME).exists():
        return None
    try:
        return (task, SKIPPED, "") if is_finished(folder, task.config(settings.shared, folder)) else None
    except UserError as error:
        return task, FAILED, str(error)


def _run_on_node(task: Task, settings: Settings, mark: Path) -> tuple[Outcome, bytes]:
    """Do a run; returns its outcome and, if the node cannot access the sweep's folder, the packed run folder."""
    if mark.exists():
        mounted = replace(settings, folder=mark.parent)
        return _with_node_name(_run_one(task, mounted)), b""
    with tempfile.TemporaryDirectory() as place:
        outcome = _run_one(task, replace(settings, folder=Path(place)))
        return _with_node_name(outcome), pack_run(Path(place) / task.folder) if outcome[1] == DONE else b""


def _with_node_name(outcome: Outcome) -> Outcome:
    """An outcome whose failure reason names the node.

    A process that has lost its GPU exits here, and another one repeats the run.
    """
    task, word, reason = outcome
    if word == LOST:
        os._exit(1)
    return task, word, f"on node {node_name()}: {reason}" if word == FAILED else reason


def pack_run(folder: Path) -> bytes:
    """Pack a run's folder into an archive."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(folder, ".")
    return packed.getvalue()


def unpack_run(packed: bytes, folder: Path) -> None:
    """Unpack the folder of a finished run from `pack_run`, atomically."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".run-", dir=folder.parent) as temporary:
        place = Path(temporary) / folder.name
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(place, filter="data")
        results = read_results(place)
        if results is not None:
            results["config"]["OUTPUT_DIR"] = str(folder)
            write_json(results, place / FILE_NAME)
        if folder.exists():
            shutil.rmtree(folder)  # from an earlier attempt
        place.rename(folder)


def extract_features(todo: Sequence[Task], settings: Settings) -> None:
    """Extract into the feature cache what the runs on one dataset need: the images of all their few-shot splits."""
    trainers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for task in todo:
            with contextlib.suppress(UserError):  # the run itself will report it
                cfg = task.config(settings.shared, Path(scratch))
                kind = TRAINER_REGISTRY.get(task.trainer)
                settings_of = [to_dict(cfg.INPUT), to_dict(cfg.DATASET.FEATURES), to_dict(cfg.MODEL.BACKBONE)]
                prec = cfg.TRAINER.get(kind.node_name(), {}).get("PREC", "") if hasattr(kind, "node_name") else ""
                key = repr([*settings_of, prec, getattr(kind, "takes_states", False)])
                if key not in trainers:
                    trainers[key] = run.seeded(cfg)
                _extract(trainers[key], cfg)


def _extract(trainer: Any, cfg: CfgNode) -> None:
    """Extract the features of a run's images, using a trainer with the same feature settings."""
    if not isinstance(trainer, FeatureTrainer) or trainer.features.is_file or trainer.features_kept() != "disk":
        return
    set_random_seed(max(cfg.SEED, 0))
    dataset, dm = build_dataset(cfg), trainer.dm
    views = cfg.DATASET.FEATURES.VIEWS if is_random(dm.tfm_train) else 1
    if not views:
        return
    trainer.features.fetch(dataset.train_x, dm.tfm_train, views)
    for items in (dataset.val, dataset.test):
        if items:
            trainer.features.fetch(items, dm.tfm_test)


_lost_gpu = False  # whether this process has lost its GPU


def _run_one(task: Task, settings: Settings) -> Outcome:
    global _lost_gpu
    if _lost_gpu:  # every further run would fail
        return task, LOST, ""
    folder = settings.folder / task.folder
    try:
        cfg = task.config(settings.shared, folder)
        if is_finished(folder, cfg):
            return task, SKIPPED, ""
        run.train(cfg)
    except FolderInUseError:
        return task, BUSY, ""
    except UserError as error:
        _lost_gpu = is_lost(error)
        return task, FAILED, str(error)
    except Exception as error:
        _lost_gpu = is_lost(error)
        logger.warning(f"{task.folder} failed", exc_info=True)
        return task, FAILED, f"{type(error).__name__}: {error}"
    finally:
        give_back_memory()
    return task, DONE, ""
