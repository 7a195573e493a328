"""Many runs: every combination of method, dataset, shots and seed, each in a folder of its own.

Runs share the feature cache and the text features. What is finished is skipped, what failed or was killed is run
again when the same sweep is asked for again.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from yacs.config import CfgNode

from dassl_lite.config import to_dict
from dassl_lite.engine import checkpoint, run
from dassl_lite.engine.build import TRAINER_REGISTRY, with_backbone_inputs
from dassl_lite.engine.results import read_results
from dassl_lite.utils import UserError, get_logger, setup_logger

logger = get_logger(__name__)


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


def sweep(todo: Sequence[Task], folder: Path, config: Callable[[Task], CfgNode]) -> dict[Task, str]:
    """Run what is not finished; returns the failed tasks with their reasons.

    Args:
        folder: of the sweep.
        config: gives a task's frozen config; its OUTPUT_DIR is set here.
    """
    failed: dict[Task, str] = {}
    skipped = 0
    start = time.perf_counter()
    bar = tqdm(todo, desc="Sweep", unit="run", file=sys.stderr)
    for task in bar:
        bar.set_postfix_str(str(task.folder), refresh=True)
        try:
            cfg = _placed(config(task), folder / task.folder)
            if is_finished(folder / task.folder, cfg):
                skipped += 1
            else:
                run.train(cfg)
        except UserError as error:
            failed[task] = str(error)
        except Exception as error:
            failed[task] = f"{type(error).__name__}: {error}"
            logger.warning(f"{task.folder} failed", exc_info=True)
    setup_logger()
    done = len(todo) - skipped - len(failed)
    logger.info(
        f"{done} runs in {time.perf_counter() - start:.0f} s, {skipped} were finished before, {len(failed)} failed"
    )
    return failed


def _placed(cfg: CfgNode, folder: Path) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR, cfg.VERBOSE = str(folder), False
    cfg.freeze()
    return cfg
