"""Every INPUT.* and OPTIM.* key changes the transform, the optimiser or the schedule somewhere."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from dassl_lite.config import CN, get_cfg_default, set_epochs
from dassl_lite.config.check import leaves
from dassl_lite.data import build_transform, describe
from dassl_lite.data.transforms import AVAI_CHOICES
from dassl_lite.optim import LR_SCHEDULER_REGISTRY, OPTIMIZER_REGISTRY, build_lr_scheduler, build_optimizer

# A second valid value of each key whose kind does not suggest one.
OTHER = {
    "INPUT.SIZE": (16, 24),
    "INPUT.INTERPOLATION": "bicubic",
    "INPUT.PIXEL_MEAN": [0.1, 0.2, 0.3],
    "INPUT.PIXEL_STD": [0.1, 0.2, 0.3],
    "INPUT.TRANSFORMS": ("center_crop",),
    "INPUT.RRCROP_SCALE": (0.5, 1.0),
    "OPTIM.NAME": "sgd",
    "OPTIM.LR_SCHEDULER": "cosine",
    "OPTIM.STEPSIZE": (2,),
    "OPTIM.NEW_LAYERS": ("0",),
    "OPTIM.EPOCHS_BY_SHOTS": ((4, 3),),
    "OPTIM.SCHEDULE_UNIT": "batch",
    "OPTIM.WARMUP_EPOCH": 3,
    "OPTIM.WARMUP_TYPE": "constant",
}
# Declared keys that have no effect of their own, each with the reason. Empty: every key has one.
WITHOUT_EFFECT: dict[str, str] = {}

KEYS = sorted(key for key in leaves(get_cfg_default()) if key.startswith(("INPUT.", "OPTIM.")))


def other_than(key: str, value: Any) -> Any:
    if key in OTHER:
        return OTHER[key]
    if isinstance(value, bool):
        return not value
    assert isinstance(value, int | float), f"give a second value of {key} in OTHER"
    if isinstance(value, int) and value:
        return value + 2  # GB_K stays odd
    return 0.9 * value or 0.05


def changed(cfg: CN, key: str) -> CN:
    cfg = cfg.clone()
    *parents, name = key.split(".")
    node = cfg
    for parent in parents:
        node = node[parent]
    node[name] = other_than(key, node[name])
    return cfg


def inputs() -> Iterator[CN]:
    """A config for each transform, by itself."""
    for choice in AVAI_CHOICES:
        cfg = get_cfg_default()
        cfg.INPUT.TRANSFORMS = (choice,)
        cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (24, 32), "bilinear"
        cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = [0.5] * 3, [0.25] * 3
        yield cfg


def optims() -> Iterator[CN]:
    """A config for each optimiser, each schedule, each kind of warm-up and staged rates."""
    names = OPTIMIZER_REGISTRY.registered_names()
    warmups = [(-1, "linear"), (2, "linear"), (2, "constant")]
    schedules = itertools.product(LR_SCHEDULER_REGISTRY.registered_names(), warmups)
    settings = [{"NAME": name} for name in names]
    settings += [{"LR_SCHEDULER": s, "WARMUP_EPOCH": w, "WARMUP_TYPE": t} for s, (w, t) in schedules]
    settings += [{"STAGED_LR": True, "NEW_LAYERS": ("2",)}]
    for values in settings:
        cfg = get_cfg_default()
        cfg.OPTIM.STEPSIZE = (5,)
        for key, value in values.items():
            cfg.OPTIM[key] = value
        yield cfg


def describe_transform(cfg: CN) -> str:
    return describe(build_transform(cfg))


def describe_training(cfg: CN) -> str:
    """The optimiser's groups, and their learning rates over 12 epochs."""
    cfg = cfg.clone()
    cfg.DATASET.NUM_SHOTS = 4
    set_epochs(cfg)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    optimizer = build_optimizer(model, cfg.OPTIM)
    groups = [
        {key: [tuple(p.shape) for p in value] if key == "params" else value for key, value in group.items()}
        for group in optimizer.param_groups
    ]
    schedule = build_lr_scheduler(optimizer, cfg.OPTIM)
    rates = []
    for _ in range(12):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return f"{type(optimizer).__name__} {groups} {rates}"


@pytest.mark.slow_after(9)
@pytest.mark.parametrize("key", KEYS)
def test_a_key_changes_what_is_built_or_warns(key: str, caplog: pytest.LogCaptureFixture) -> None:
    """In at least one setting; the warning is for a key that this setting ignores."""
    torch.manual_seed(0)
    build, settings = (describe_transform, inputs) if key.startswith("INPUT.") else (describe_training, optims)

    def outcome(cfg: CN) -> tuple[str, list[str]]:
        caplog.clear()
        description = build(cfg)
        return description, [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]

    effective = any(outcome(cfg) != outcome(changed(cfg, key)) for cfg in settings())
    assert effective != (key in WITHOUT_EFFECT)
