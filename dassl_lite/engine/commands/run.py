"""One run, from a frozen config to ``results.json``; tools/train.py performs one, tools/sweep.py many."""

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
    """Seed every random stream and build the trainer; log messages also go to the run's ``log.txt``."""
    distributed.start(cfg.USE_CUDA)
    setup_logger(Path(cfg.OUTPUT_DIR) / log, console=cfg.VERBOSE)
    reset_peak_memory()
    return seeded(cfg)


@contextmanager
def session(cfg: CfgNode, *, overwrite: bool = False, skip_finished: bool = False) -> Iterator[Any]:
    """A context with a built trainer and exclusive use of its output folder; on exit, the results are written.

        with session(cfg) as trainer:
            trainer.train()

    Args:
        cfg: the run's config.
        overwrite: replace the run in the folder, once this one is built and has saved something.
        skip_finished: yield None instead of a trainer if the folder already holds this run's results.

    Raises:
        UserError: the config is invalid, or another run uses the folder.
    """
    first = distributed.rank() == 0
    if first:
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    with only_run_in(cfg.OUTPUT_DIR) if first else nullcontext():
        if skip_finished and distributed.on_first(lambda: is_finished(cfg, cfg.OUTPUT_DIR)):
            yield None
            return
        if not overwrite:
            cfg = _resumable(cfg)
        trackers = Trackers(cfg.LOG.TRACKERS if first else ())  # fails here if a library is missing
        trainer = build(cfg, NEW_LOG if overwrite else "log.txt")
        zero_shot = before_training(trainer)
        metric = getattr(trainer, "main_metric", "accuracy")
        with replacing(cfg.OUTPUT_DIR, overwrite=overwrite) if first else nullcontext():
            distributed.wait()  # until rank 0 has prepared the folder
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
    """Check and report before training; returns zero-shot CLIP's accuracy, or mAP, in percent, if it is measured.

    Raises:
        UserError: there is nothing to train on.
    """
    report_idle_keys(trainer)
    is_measured = hasattr(trainer, "zero_shot") and trainer.cfg.DATASET.FEATURES.VIEWS
    zero_shot: float | None = trainer.zero_shot() if is_measured else None
    if zero_shot is not None:
        metric = getattr(trainer, "main_metric", "accuracy")
        logger.info(f"Zero-shot CLIP before training: {zero_shot:.2f}%{'' if metric == 'accuracy' else f' {metric}'}")
    trainer.check_training_data()
    return zero_shot


def _resumable(cfg: CfgNode) -> CfgNode:
    """``cfg`` adapted to the run that it resumes, if there is one; see `checkpoint.follow_precision`."""
    if devices.pick(cfg.USE_CUDA).type == "cpu":  # where auto is fp32 anyway
        return cfg
    return checkpoint.follow_precision(cfg, CheckpointStore(cfg.RESUME or cfg.OUTPUT_DIR).config())


def report_idle_keys(trainer: Any) -> None:
    """Warn about config keys that the user has set but that have no effect in this run.

    The trainer lists keys without effect (``idle_keys``). Keys set by the package's own recipes are not reported.
    """
    cfg = trainer.cfg
    idle = trainer.idle_keys() if hasattr(trainer, "idle_keys") else {}
    by_reason: dict[str, list[str]] = {}
    for key in sorted(set_by_user(cfg)):
        owner = next((name for name in (key, *_groups(key)) if name in idle), "")
        if owner:
            by_reason.setdefault(idle[owner], []).append(key)
    if by_reason:
        listed = "; ".join(f"{', '.join(keys)} ({reason})" for reason, keys in by_reason.items())
        logger.warning(f"no effect in this run: {listed}")


def _groups(key: str) -> list[str]:
    """The groups that contain a dotted key, innermost first."""
    parts = key.split(".")
    return [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]


def is_finished(cfg: CfgNode, folder: str | Path) -> bool:
    """Whether ``folder`` contains this run and it is finished.

    Raises:
        UserError: it contains a run with different settings.
    """
    results, path = read_results(folder), Path(folder) / FILE_NAME
    if results is None:
        return False
    checkpoint.check_same_run(config_in(results, folder), to_dict(with_backbone_inputs(cfg)), path)
    return True


def train(cfg: CfgNode) -> Path:
    """Train, test and write ``results.json`` into ``cfg.OUTPUT_DIR``, unless it exists already; returns its path."""
    with session(cfg, skip_finished=True) as trainer:
        if trainer is not None:
            trainer.train()
    return Path(cfg.OUTPUT_DIR) / FILE_NAME


def show(cfg: CfgNode, results: dict[str, dict[str, Any]], zero_shot: float | None, method: str) -> None:
    """Log the closing table: accuracy, or mAP, in percent before and after training.

    Args:
        results: metrics by split.
        zero_shot: the same metric before training, if known.
        method: the method's label in the table.
    """
    split = cfg.TEST.SPLIT
    metric = main_metric(results.get(split, {}))
    if not metric:  # nothing was evaluated, or the evaluator has other metrics
        return
    value, shots = results[split][metric], cfg.DATASET.NUM_SHOTS
    rows = [[method, f"{shots}" if shots > 0 else "all", f"{value:.2f}"]]
    if zero_shot is not None:
        rows.insert(0, ["zero-shot CLIP", "0", f"{zero_shot:.2f}"])
        rows.append(["gain", "", f"{value - zero_shot:+.2f}"])
    headers = [published_name(cfg), "shots per class", f"{split} {metric} %"]
    logger.info("\n" + tabulate(rows, headers=headers, disable_numparse=True, colalign=("left", "right", "right")))
