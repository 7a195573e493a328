"""Every INPUT.* and OPTIM.* key changes the transform, the optimiser or the schedule somewhere; a user who sets a key
that changes nothing in a run is warned."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from dassl_lite.config import CN, get_cfg_default, set_epochs
from dassl_lite.config.check import leaves
from dassl_lite.data import build_transform, describe
from dassl_lite.data.transforms import AVAI_CHOICES
from dassl_lite.data.transforms import build as transforms
from dassl_lite.data.transforms.build import RESIZE_MODES
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.optim import (
    LR_SCHEDULER_REGISTRY,
    OPTIMIZER_REGISTRY,
    build_lr_scheduler,
    build_optimizer,
    lr_scheduler,
    optimizer,
)
from dassl_lite.tools import train

# A second valid value for each key whose type does not imply one.
OTHER = {
    "INPUT.SIZE": (16, 24),
    "INPUT.INTERPOLATION": "bicubic",
    "INPUT.RESIZE_MODE": "squash",
    "INPUT.FILL_COLOR": (1, 2, 3),
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
# Declared keys without an effect, each with the reason. Empty, as every key has an effect.
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
    """A config for each transform alone, and for each way of resizing."""
    for choice, mode in [*((choice, "") for choice in AVAI_CHOICES), *(("normalize", mode) for mode in RESIZE_MODES)]:
        cfg = get_cfg_default()
        cfg.INPUT.TRANSFORMS, cfg.INPUT.RESIZE_MODE = (choice,), mode
        cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (24, 32), "bilinear"
        cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = [0.5] * 3, [0.25] * 3
        yield cfg


def optims() -> Iterator[CN]:
    """A config for each optimiser, schedule and kind of warm-up, and for staged learning rates."""
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
    return "\n".join(describe(build_transform(cfg, is_train)) for is_train in (True, False))


def describe_training(cfg: CN) -> str:
    """The parameter groups of the optimiser and their learning rates over 12 epochs."""
    cfg = cfg.clone()
    cfg.DATASET.NUM_SHOTS = 4
    set_epochs(cfg)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    optim = build_optimizer(model, cfg.OPTIM)
    groups = [
        {key: [tuple(p.shape) for p in value] if key == "params" else value for key, value in group.items()}
        for group in optim.param_groups
    ]
    schedule = build_lr_scheduler(optim, cfg.OPTIM)
    rates = []
    for _ in range(12):
        rates.append([group["lr"] for group in optim.param_groups])
        optim.step()
        schedule.step()
    return f"{type(optim).__name__} {groups} {rates}"


@pytest.mark.slow_after(9)
@pytest.mark.parametrize("key", KEYS)
def test_a_key_changes_what_is_built_or_warns(key: str, caplog: pytest.LogCaptureFixture) -> None:
    """In at least one setting; a setting that ignores the key must warn."""
    torch.manual_seed(0)
    build, settings = (describe_transform, inputs) if key.startswith("INPUT.") else (describe_training, optims)

    def outcome(cfg: CN) -> tuple[str, list[str]]:
        caplog.clear()
        description = build(cfg)
        return description, [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]

    effective = any(outcome(cfg) != outcome(changed(cfg, key)) for cfg in settings())
    assert effective != (key in WITHOUT_EFFECT)


@pytest.mark.slow
@pytest.mark.parametrize("node", ["INPUT", "OPTIM"])
def test_a_key_reported_as_ineffective_has_no_effect(node: str) -> None:
    torch.manual_seed(0)
    build, settings = (describe_transform, inputs) if node == "INPUT" else (describe_training, optims)
    count = 0
    for cfg in settings():
        in_optim = optimizer.idle_keys(cfg.OPTIM) | lr_scheduler.idle_keys(cfg.OPTIM)
        for key in transforms.idle_keys(cfg) if node == "INPUT" else in_optim:
            count += 1
            assert build(cfg) == build(changed(cfg, f"{node}.{key}")), key
    assert count > 50


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for part, name in itertools.product(("train", "val", "test"), ("crane", "yo-yo")):
        (root / part / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (number, 9, 99)).save(root / part / name / f"{number}.png")
    return root


@pytest.fixture
def warned(
    images: Path, tmp_path: Path, golden_backbone: Any, capsys: pytest.CaptureFixture
) -> Callable[..., list[str]]:
    """``warned("CoOp", "OPTIM.LR", "1")``: the lines of that run about keys without effect."""

    def run(method: str, *options: str) -> list[str]:
        flags = ("--trainer", method, "--data", str(images), "--backbone", str(golden_backbone("vit0")), "--shots", "1")
        flags = (*flags, "--output-dir", str(tmp_path / "run"))
        cheap = ("DATALOADER.NUM_WORKERS", "0", "DATASET.FEATURES.VIEWS", "1", "VERBOSE", "False")
        assert run_tool(train.main, [*flags, *options, *cheap]) == 0
        text = capsys.readouterr()
        return [line for line in (text.out + text.err).splitlines() if "no effect" in line and "Trainable" not in line]

    return run


ONE = "OPTIM.MAX_EPOCH 1 "


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("ZeroshotCLIP", "OPTIM.LR 0.5 OPTIM.NAME sgd", "OPTIM.LR, OPTIM.NAME (ZeroshotCLIP trains without epochs)"),
        (
            "CLIPLoRA",
            "TRAINER.CLIPLoRA.STEPS_PER_SHOT 1 OPTIM.MAX_EPOCH 7",
            "OPTIM.MAX_EPOCH (TRAINER.CLIPLoRA.STEPS_PER_SHOT 1 sets the length of the training)",
        ),
        ("CLIP_Adapter", f"{ONE} TRAINER.CLIP_Adapter.TEXT_RATIO 0.5", "CLIP_Adapter.TEXT_RATIO (SIDE is image)"),
        ("TaskRes", f"{ONE} TRAINER.TaskRes.N_CTX 4", "TRAINER.TaskRes.N_CTX (no effect, in the reference neither)"),
        ("TaskRes", f"{ONE} OPTIM.RMSPROP_ALPHA 0.5", "OPTIM.RMSPROP_ALPHA (adam has none)"),
        ("TaskRes", f"{ONE} INPUT.CUTOUT_N 3", "INPUT.CUTOUT_N (cutout is not among INPUT.TRANSFORMS)"),
        ("TaskRes", f"{ONE} MODEL.HEAD.NAME mlp", "MODEL.HEAD.NAME has no effect on a method on top of CLIP"),
        ("TipAdapter", "TRAINER.TipAdapter.ALPHA 2.0", "TipAdapter.ALPHA (it is selected on the validation set"),
        (
            "TipAdapter",
            "TRAINER.TipAdapter.SEARCH False TRAINER.TipAdapter.BETA_STEPS 3",
            "BETA_STEPS (SEARCH is",
        ),
        ("APET", f"{ONE} TRAINER.APET.GAMMA 0.2", "TRAINER.APET.GAMMA (APE-T has no gamma)"),
        ("LinearProbe", f"{ONE} TRAINER.LinearProbe.C 2.0", "TRAINER.LinearProbe.C (FIT is gradient)"),
        ("CoOp", f"{ONE} TRAINER.COOP.CTX_INIT a_photo TRAINER.COOP.N_CTX 3", "COOP.N_CTX (CTX_INIT gives the number"),
    ],
)
def test_a_user_key_without_effect_is_reported_once(
    warned: Callable[..., list[str]], method: str, options: str, expected: str
) -> None:
    lines = warned(method, *options.split())
    assert len(lines) == 1
    assert expected in lines[0]


def test_keys_in_a_user_yaml_are_checked_like_the_command_line(
    warned: Callable[..., list[str]], tmp_path: Path
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("OPTIM: {LR: 0.5}\n")
    assert "OPTIM.LR (ZeroshotCLIP trains" in warned("ZeroshotCLIP", "--config-file", str(mine))[0]


@pytest.mark.slow
def test_a_yaml_key_that_no_clip_method_reads_is_reported(warned: Callable[..., list[str]], tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("MODEL: {HEAD: {NAME: mlp}}\nTRAIN: {COUNT_ITER: train_x}\n")  # the second equals the default
    lines = warned("ZeroshotCLIP", "--config-file", str(mine))
    assert len(lines) == 1
    assert "MODEL.HEAD.NAME has no effect on a method on top of CLIP" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ZeroshotCLIP", "TipAdapter", "CLIPLoRA", "TaskRes", "LinearProbe", "CoOp"])
def test_keys_in_shipped_recipes_are_not_reported(warned: Callable[..., list[str]], method: str) -> None:
    options = () if method in ("ZeroshotCLIP", "TipAdapter") else ("OPTIM.MAX_EPOCH", "1")
    options = ("TRAINER.CLIPLoRA.STEPS_PER_SHOT", "1") if method == "CLIPLoRA" else options
    assert warned(method, *options) == []
