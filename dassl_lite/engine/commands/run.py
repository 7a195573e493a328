"""One run, from a frozen config to ``results.json``; tools/train.py does one, tools/sweep.py many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tabulate import tabulate
from yacs.config import CfgNode

from dassl_lite.config import to_dict
from dassl_lite.data import published_name
from dassl_lite.engine.build import build_trainer, set_by_user, with_backbone_inputs
from dassl_lite.engine.contract.trackers import Trackers, finishing, outcome_of, tracked_run
from dassl_lite.engine.files import checkpoint
from dassl_lite.engine.files.checkpoint import CheckpointStore
from dassl_lite.engine.files.results import (
    FILE_NAME,
    config_in,
    main_metric,
    read_results,
    reset_peak_memory,
    write_results,
)
from dassl_lite.engine.files.run_folder import NEW_LOG, replacing
from dassl_lite.engine.files.run_lock import only_run_in
from dassl_lite.engine.parallel import distributed
from dassl_lite.utils import devices, get_logger, set_random_seed, setup_logger

logger = get_logger(__name__)


def build(cfg: CfgNode, log: str = "log.txt") -> Any:
    """Seed every random stream and build the trainer; what is logged goes to the run's ``log.txt`` too."""
    distributed.start(cfg.USE_CUDA)
    setup_logger(Path(cfg.OUTPUT_DIR) / log, console=cfg.VERBOSE)
    reset_peak_memory()
    return seeded(cfg)


@contextmanager
def session(cfg: CfgNode, *, overwrite: bool = False, skip_finished: bool = False) -> Iterator[Any]:
    """A built trainer that has its output folder to itself; once the body has trained it, its results are written.

        with session(cfg) as trainer:
            trainer.train()

    Args:
        cfg: of the run.
        overwrite: replace the run in that folder, which goes once this one is built and has something to save.
        skip_finished: give None in place of a trainer if that folder has the results of this run.

    Raises:
        UserError: whatever is wrong with the config, or another run uses that folder.
    """
    first = distributed.rank() == 0
    if first:
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    with only_run_in(cfg.OUTPUT_DIR) if first else nullcontext():
        if skip_finished and distributed.on_first(lambda: is_finished(cfg, cfg.OUTPUT_DIR)):
            yield None
            return
        if not overwrite:
            cfg = _continued(cfg)
        trackers = Trackers(cfg.LOG.TRACKERS if first else ())  # a library that is missing ends it here
        trainer = build(cfg, NEW_LOG if overwrite else "log.txt")
        zero_shot = before_training(trainer)
        metric = getattr(trainer, "main_metric", "accuracy")
        with replacing(cfg.OUTPUT_DIR, overwrite=overwrite) if first else nullcontext():
            distributed.wait()  # until the folder is as the run expects it
            trainer.trackers = trackers
            if first:
                trackers.start(tracked_run(trainer.cfg), cfg.RESUME or cfg.OUTPUT_DIR)
            with finishing(trackers):
                yield trainer
            if first:
                results = {**trainer.run_results(), f"zero_shot_{metric}": zero_shot}
                write_results(results, cfg.OUTPUT_DIR)
                trackers.finish(outcome_of(results, cfg.OUTPUT_DIR))
        show(cfg, trainer.results, zero_shot, getattr(trainer, "method_label", cfg.TRAINER.NAME))
        logger.info(f"\nResults: {Path(cfg.OUTPUT_DIR) / FILE_NAME}")


def seeded(cfg: CfgNode) -> Any:
    """Seed every random stream and build the trainer."""
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    return build_trainer(cfg)


def before_training(trainer: Any) -> float | None:
    """What comes between building a trainer and training it; returns zero-shot CLIP's accuracy, or mAP, in percent.

    Raises:
        UserError: there is nothing to train on.
    """
    tell_idle_keys(trainer)
    measured = hasattr(trainer, "zero_shot") and trainer.cfg.DATASET.FEATURES.VIEWS
    zero_shot: float | None = trainer.zero_shot() if measured else None
    if zero_shot is not None:
        metric = getattr(trainer, "main_metric", "accuracy")
        logger.info(f"Zero-shot CLIP before training: {zero_shot:.2f}%{'' if metric == 'accuracy' else f' {metric}'}")
    trainer.check_training_data()
    return zero_shot


def _continued(cfg: CfgNode) -> CfgNode:
    """``cfg`` as the run that it goes on with needs it, if there is one; see `checkpoint.follow_precision`."""
    if devices.pick(cfg.USE_CUDA).type == "cpu":  # where auto is fp32 anyway
        return cfg
    return checkpoint.follow_precision(cfg, CheckpointStore(cfg.RESUME or cfg.OUTPUT_DIR).config())


def tell_idle_keys(trainer: Any) -> None:
    """Warn of config keys that the user has set and that have no effect in this run.

    A trainer says which ones have none (``idle_keys``); what the package's own recipes set is not told.
    """
    cfg = trainer.cfg
    idle = trainer.idle_keys() if hasattr(trainer, "idle_keys") else {}
    by_reason: dict[str, list[str]] = {}
    for key in sorted(set_by_user(cfg)):
        owner = next((name for name in (key, *_groups(key)) if name in idle), "")
        if owner:
            by_reason.setdefault(idle[owner], []).append(key)
    if by_reason:
        told = "; ".join(f"{', '.join(keys)} ({reason})" for reason, keys in by_reason.items())
        logger.warning(f"no effect in this run: {told}")


def _groups(key: str) -> list[str]:
    """The groups that a dotted key is in, the innermost first."""
    parts = key.split(".")
    return [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]


def is_finished(cfg: CfgNode, folder: str | Path) -> bool:
    """Whether ``folder`` contains this run, finished.

    Raises:
        UserError: it contains a run with other settings.
    """
    results, path = read_results(folder), Path(folder) / FILE_NAME
    if results is None:
        return False
    checkpoint.check_same_run(config_in(results, folder), to_dict(with_backbone_inputs(cfg)), path)
    return True


def train(cfg: CfgNode) -> Path:
    """Train, test and write ``results.json`` into ``cfg.OUTPUT_DIR``, unless it is there; returns its path."""
    with session(cfg, skip_finished=True) as trainer:
        if trainer is not None:
            trainer.train()
    return Path(cfg.OUTPUT_DIR) / FILE_NAME


def show(cfg: CfgNode, results: dict[str, dict[str, Any]], zero_shot: float | None, method: str) -> None:
    """Log the closing table: accuracy, or mAP, in percent before and after training.

    Args:
        results: metrics by split.
        zero_shot: the same metric before training, if known.
        method: as the table names it.
    """
    split = cfg.TEST.SPLIT
    metric = main_metric(results.get(split, {}))
    if not metric:  # nothing was evaluated, or by an evaluator with other metrics
        return
    value, shots = results[split][metric], cfg.DATASET.NUM_SHOTS
    rows = [[method, f"{shots}" if shots > 0 else "all", f"{value:.2f}"]]
    if zero_shot is not None:
        rows.insert(0, ["zero-shot CLIP", "0", f"{zero_shot:.2f}"])
        rows.append(["gain", "", f"{value - zero_shot:+.2f}"])
    headers = [published_name(cfg), "shots per class", f"{split} {metric} %"]
    logger.info("\n" + tabulate(rows, headers=headers, disable_numparse=True, colalign=("left", "right", "right")))
