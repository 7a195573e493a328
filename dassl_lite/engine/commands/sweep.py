"""Many runs: every combination of method, dataset, shots and seed, each in a folder of its own.

Runs share the feature cache and the text features. What is finished is skipped, what failed or was killed is run
again when the same sweep is asked for again.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from yacs.config import CfgNode

from dassl_lite.config import to_dict
from dassl_lite.engine.build import TRAINER_REGISTRY, default_recipe, make_config, with_backbone_inputs
from dassl_lite.engine.commands import run
from dassl_lite.engine.files import checkpoint
from dassl_lite.engine.files.results import read_results
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, get_logger, setup_logger

logger = get_logger(__name__)

DONE, SKIPPED, FAILED = "done", "skipped", "failed"


@dataclass(frozen=True)
class Task:
    """One run of a sweep. ``shots`` and ``seed`` are 0 and 1 for a method that uses neither."""

    trainer: str
    dataset: str
    shots: int
    seed: int

    @property
    def folder(self) -> Path:
        """Below the sweep's folder."""
        return Path(self.dataset) / self.trainer / f"{self.shots}shots-seed{self.seed}"


@dataclass(frozen=True)
class Settings:
    """What all runs of a sweep share.

    Attributes:
        root: DATASET.ROOT, or "".
        backbone: MODEL.BACKBONE.NAME, or "" for the recipes' own.
        options: trailing KEY VALUE pairs.
        plugins: files or modules to import first.
    """

    root: str = ""
    backbone: str = ""
    options: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    allow_new_keys: bool = False

    def config(self, task: Task) -> CfgNode:
        """A task's frozen config, but for its folder."""
        flags: dict[str, Any] = {"DATASET": {"NUM_SHOTS": task.shots or -1}, "SEED": task.seed}
        if self.root:
            flags["DATASET"]["ROOT"] = self.root
        if self.backbone:
            flags["MODEL"] = {"BACKBONE": {"NAME": self.backbone}}
        return make_config(
            trainer=task.trainer,
            dataset_file=task.dataset,
            method_file=default_recipe(task.trainer),
            flags=flags,
            options=self.options,
            allow_new_keys=self.allow_new_keys,
        )


def all_methods() -> list[str]:
    """The methods that come with the package and stand on their own."""
    found = []
    for name in TRAINER_REGISTRY:
        trainer = TRAINER_REGISTRY.get(name)
        if trainer.__module__.startswith("dassl_lite.trainers.") and getattr(trainer, "standalone", True):
            found.append(name)
    return sorted(found)


def tasks(trainers: Sequence[str], datasets: Sequence[str], shots: Sequence[int], seeds: Sequence[int]) -> list[Task]:
    """Every combination, without repeating what does not depend on shots and seed."""

    def combinations() -> Iterator[Task]:
        for dataset, trainer, number, seed in itertools.product(datasets, trainers, shots, seeds):
            if getattr(TRAINER_REGISTRY.get(trainer), "uses_shots", True):
                yield Task(trainer, dataset, number, seed)
            else:
                yield Task(trainer, dataset, 0, 1)

    return list(dict.fromkeys(combinations()))


def is_finished(folder: Path, cfg: CfgNode) -> bool:
    """Whether ``folder`` holds this very run, finished; a UserError if it holds one under other settings."""
    results = read_results(folder)
    if results is None:
        return False
    checkpoint.check_same_run(results["config"], to_dict(with_backbone_inputs(cfg)), folder / "results.json")
    return True


def sweep(todo: Sequence[Task], folder: Path, settings: Settings, jobs: int = 1) -> dict[Task, str]:
    """Run what is not finished; returns the failed tasks with their reasons.

    Args:
        folder: of the sweep.
        settings: what all runs share.
        jobs: runs at a time, each in a process of its own with its share of the cores.
    """
    start = time.perf_counter()
    ended: Counter[str] = Counter()
    failed: dict[Task, str] = {}
    with tqdm(total=len(todo), desc="Sweep", unit="run", file=sys.stderr) as bar:
        for task, outcome, reason in _outcomes(todo, folder, settings, jobs):
            ended[outcome] += 1
            if outcome == FAILED:
                failed[task] = reason
            bar.set_postfix_str(str(task.folder), refresh=False)
            bar.update()
    setup_logger()
    seconds = time.perf_counter() - start
    logger.info(f"{ended[DONE]} runs in {seconds:.0f} s, {ended[SKIPPED]} were finished before, {ended[FAILED]} failed")
    return failed


def _outcomes(todo: Sequence[Task], folder: Path, settings: Settings, jobs: int) -> Iterator[tuple[Task, str, str]]:
    """(task, outcome, reason) as they end."""
    if jobs == 1:
        yield from (_run_one(task, folder, settings) for task in todo)
        return
    context = multiprocessing.get_context("spawn")  # a forked process inherits torch's threads in an unknown state
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, context, _start_worker, (threads, settings.plugins)) as pool:
        futures = [pool.submit(_run_one, task, folder, settings) for task in todo]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise UserError(
                "a process of the sweep was killed (out of memory?); type the same line to go on, with fewer --jobs"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(threads: int, plugins: Sequence[str]) -> None:
    torch.set_num_threads(threads)
    load_plugins(plugins)


def _run_one(task: Task, folder: Path, settings: Settings) -> tuple[Task, str, str]:
    try:
        cfg = _placed(settings.config(task), folder / task.folder)
        if is_finished(folder / task.folder, cfg):
            return task, SKIPPED, ""
        run.train(cfg)
    except UserError as error:
        return task, FAILED, str(error)
    except Exception as error:
        logger.warning(f"{task.folder} failed", exc_info=True)
        return task, FAILED, f"{type(error).__name__}: {error}"
    return task, DONE, ""


def _placed(cfg: CfgNode, folder: Path) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR, cfg.VERBOSE = str(folder), False
    cfg.freeze()
    return cfg
