"""``results.json``: what a run was, what it found and what it cost, in full precision."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from dassl_lite.config import to_dict
from dassl_lite.utils.env import environment
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import read_json, write_json

FILE_NAME = "results.json"


def peak_memory() -> dict[str, float]:
    """Peak resident memory of the process and, with a GPU, of the device, in MiB."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    memory = {"host_mib": kib / 1024}
    if torch.cuda.is_available():
        memory["device_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return memory


def collect(trainer: Any, **more: Any) -> dict[str, Any]:
    """Everything worth keeping of a trainer's run; ``more`` adds to it or overrides."""
    data = trainer.dm.dataset
    splits = {"train": data.train_x, "val": data.val, "test": data.test}
    return {
        "trainer": trainer.cfg.TRAINER.NAME,
        "dataset": trainer.cfg.DATASET.NAME,
        "backbone": trainer.checkpoint_meta().get("backbone", trainer.cfg.MODEL.BACKBONE.NAME),  # a file says its own
        "num_shots": trainer.cfg.DATASET.NUM_SHOTS,
        "seed": trainer.cfg.SEED,
        "num_classes": trainer.num_classes,
        "split_sizes": {name: len(items) if items else 0 for name, items in splits.items()},
        "fewshot_digest": getattr(data, "fewshot_digest", ""),
        "metrics": trainer.results,
        "selected_on_test": trainer.selects_on_test,  # then the metrics are none on unseen images
        "per_class": getattr(trainer.evaluator, "per_class", []),
        "history": trainer.history,
        "seconds": trainer.seconds,
        "peak_memory": peak_memory(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "environment": environment(),
        "config": to_dict(trainer.cfg),
        **more,
    }


def write_results(trainer: Any, folder: str | Path, **more: Any) -> Path:
    """Write ``results.json`` into ``folder``, whole or not at all; returns its path."""
    path = Path(folder) / FILE_NAME
    write_json(collect(trainer, **more), path)
    return path


def read_results(folder: str | Path) -> dict[str, Any] | None:
    """A run's results, or None where it has not finished."""
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except ValueError:
        raise UserError(f"{path} is not valid JSON; delete it and run again") from None
