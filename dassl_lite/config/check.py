"""Range checks on a merged config, before any data or model is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dassl_lite.config.defaults import CN
from dassl_lite.utils.errors import UserError, unknown


def _positive(value: float) -> bool:
    return value > 0


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "DATASET.NUM_SHOTS": (lambda v: v == -1 or v >= 1, "at least 1, or -1 for all images"),
    "DATASET.FEATURES.VIEWS": (lambda v: v >= 0, "0 (no cache) or more"),
    "DATASET.FEATURES.BATCH_SIZE": (_positive, "at least 1"),
    "DATALOADER.NUM_WORKERS": (lambda v: v >= 0, "0 or more"),
    "DATALOADER.K_TRANSFORMS": (_positive, "at least 1"),
    "DATALOADER.TRAIN_X.BATCH_SIZE": (_positive, "at least 1"),
    "DATALOADER.TRAIN_U.BATCH_SIZE": (_positive, "at least 1"),
    "DATALOADER.TEST.BATCH_SIZE": (_positive, "at least 1"),
    "OPTIM.LR": (lambda v: math.isfinite(v) and v > 0, "a number above 0"),
    "OPTIM.WEIGHT_DECAY": (lambda v: math.isfinite(v) and v >= 0, "0 or more"),
    "OPTIM.MAX_EPOCH": (_positive, "at least 1"),
    "OPTIM.ADAM_EPS": (lambda v: math.isfinite(v) and v > 0, "a number above 0"),
    "TRAIN.CHECKPOINT_FREQ": (lambda v: v >= 0, "0 (only the last epoch) or more"),
    "TRAIN.CHECKPOINT_SECONDS": (lambda v: v >= 0, "0 (after every epoch) or more seconds"),
    "TRAIN.PRINT_FREQ": (_positive, "at least 1"),
}

_CHOICES: dict[str, tuple[str, ...]] = {
    "DATASET.SUBSAMPLE_CLASSES": ("all", "base", "new"),
    "DATASET.ON_ERROR": ("stop", "skip"),
    "DATASET.SPLITS_IN": ("auto", "dataset", "cache"),
    "TRAIN.COUNT_ITER": ("train_x", "train_u", "smaller_one"),
    "OPTIM.WARMUP_TYPE": ("linear", "constant"),
    "OPTIM.SCHEDULE_UNIT": ("epoch", "batch"),
    "TEST.FINAL_MODEL": ("last_step", "best_val"),
    "TEST.SPLIT": ("test", "val"),
}


def check_ranges(cfg: CN) -> None:
    """Check the engine's keys against their ranges and choices, and every key, also a method's, for NaN and infinity.

    Raises:
        UserError: for the first wrong value, with its key.
    """
    for key, value in leaves(cfg).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key} is {value}; it must be a finite number")
    for key, (holds, expected) in _RANGES.items():
        value = lookup(cfg, key)
        if not holds(value):
            raise UserError(f"{key} is {value}; it must be {expected}")
    for key, choices in _CHOICES.items():
        value = lookup(cfg, key)
        if value not in choices:
            raise unknown(f"value of {key}", value, choices)
    template = cfg.DATASET.TEMPLATE
    if template and "{}" not in template:
        raise UserError(f"DATASET.TEMPLATE is '{template}'; it needs {{}} in place of the class name")
    if cfg.INPUT.SIZE and (len(cfg.INPUT.SIZE) != 2 or min(cfg.INPUT.SIZE) < 1):
        raise UserError(f"INPUT.SIZE is {cfg.INPUT.SIZE}; it must be (height, width) in pixels")


def leaves(node: CN, prefix: str = "") -> dict[str, Any]:
    """All values of a config by dotted key."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, CN) else {f"{prefix}{key}": value}
    return found


def lookup(cfg: CN, key: str) -> Any:
    """The value under a dotted key."""
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node
