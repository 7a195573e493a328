"""Where Dassl's users were taken down, ours stands: resumed learning rates, DataParallel, torch 2.7 and later."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dassl_lite.utils import load_checkpoint

HERE = Path(__file__).parent
EPOCHS, BATCHES, RATE, FIRST = 4, 4, 0.02, 1e-5  # 18 images by 4, the last two dropped
EVALUATION = ("--eval-only", "--load-epoch", str(EPOCHS), "--model-dir")


def lines_of(run: Path, start: str) -> list[str]:
    return [line for line in (run / "log.txt").read_text().splitlines() if line.startswith(start)]


def rates_in(run: Path) -> list[float]:
    """The rate that follows each batch, as logged."""
    return [float(re.findall(r" lr (\S+)", line)[0]) for line in lines_of(run, "epoch [")]


def rates_due(warm_up: str, warm: int, unit: str) -> list[float]:
    """The same by formula: warm-up, then half a cosine over the number of epochs, counted anew from 0."""
    steps = BATCHES if unit == "batch" else 1  # in an epoch
    rates = []
    for batch in range(1, EPOCHS * BATCHES + 1):
        done = batch if unit == "batch" else batch // BATCHES
        after = (1 + math.cos(math.pi * (done - warm * steps) / (EPOCHS * steps))) / 2 * RATE
        rising = FIRST if warm_up == "constant" or done == 0 else RATE * done / (warm * steps)
        rates.append(rising if done < warm * steps else after)
    return rates


def copy_up_to(epoch: int, source: Path, target: Path) -> None:
    """``target`` as a run that was killed after ``epoch``, with its pointer file."""
    for model in source.glob("*/checkpoint"):
        folder = target / model.parent.name
        folder.mkdir(parents=True)
        for done in range(1, epoch + 1):
            shutil.copy(model.parent / f"model.pth.tar-{done}", folder)
        (folder / "checkpoint").write_text(f"model.pth.tar-{epoch}\n")


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [1, *(pytest.param(epoch, marks=pytest.mark.slow) for epoch in (2, 3))])
@pytest.mark.parametrize(
    ("trainer", "warm_up", "warm", "unit"),
    [
        ("PaperTwoModels", "constant", 1, "epoch"),
        ("PaperTwoModels", "linear", 2, "epoch"),
        ("TaskRes", "constant", 2, "epoch"),
        ("TaskRes", "constant", 2, "batch"),
        ("TaskRes", "linear", 1, "batch"),
    ],
)
def test_the_learning_rate_of_a_resumed_run_keeps_changing(
    run_tool: Any, golden_backbone: Any, tmp_path: Path, trainer: str, warm_up: str, warm: int, unit: str, stopped: int
) -> None:
    """The reference's continues at a frozen rate; its warm-ups do not even build on torch 2.7 or later."""
    options = {"OPTIM.WARMUP_TYPE": warm_up, "OPTIM.WARMUP_EPOCH": warm, "OPTIM.SCHEDULE_UNIT": unit}
    options |= {"OPTIM.WARMUP_CONS_LR": FIRST, "OPTIM.WARMUP_MIN_LR": FIRST}
    if trainer == "TaskRes":
        options |= {"MODEL.BACKBONE.NAME": golden_backbone("vit0"), "INPUT.SIZE": "(32, 32)"}
    given = ["--config-file", str(tmp_path / "recipe.yaml")]  # and not the one that our own methods have
    given += [str(part) for pair in options.items() for part in pair]
    assert run_tool(trainer, "whole", *given) == 0
    copy_up_to(stopped, tmp_path / "whole", tmp_path / "parts")
    assert run_tool(trainer, "parts", "--resume", *given) == 0
    due = rates_due(warm_up, warm, unit)
    assert rates_in(tmp_path / "whole") == pytest.approx(due, rel=1e-4)  # four digits are logged
    assert rates_in(tmp_path / "parts") == pytest.approx(due[stopped * BATCHES :], rel=1e-4)


# ---- DataParallel ----


def parallel(run_tool: Any, output: str, wrap: str, *flags: str) -> None:
    plugin = ("--plugin", str(HERE / "third_party_parallel.py"))
    assert run_tool("PaperParallel", output, *plugin, *flags, "TRAINER.PAPERPARALLEL.WRAP", wrap) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "loaded"), [("before", "''"), ("''", "before"), ("after", "''"), ("''", "after")])
def test_checkpoints_of_wrapped_and_plain_networks_are_interchangeable(
    run_tool: Any, tmp_path: Path, saved: str, loaded: str
) -> None:
    parallel(run_tool, "whole", saved)
    whole = tmp_path / "whole"
    assert next(iter(load_checkpoint(whole / "net" / "model.pth.tar-4")["state_dict"])) == "prompt_learner.weight"
    parallel(run_tool, "evaluated", loaded, *EVALUATION, str(whole))
    assert lines_of(tmp_path / "evaluated", "* accuracy") == lines_of(whole, "* accuracy")


@pytest.mark.slow
@pytest.mark.parametrize("wrap", ["before", "after"])
def test_a_wrapped_run_resumes_like_a_plain_one(run_tool: Any, tmp_path: Path, wrap: str) -> None:
    parallel(run_tool, "plain", "''")
    parallel(run_tool, "whole", wrap)
    copy_up_to(2, tmp_path / "whole", tmp_path / "parts")
    parallel(run_tool, "parts", wrap, "--resume")
    plain, *others = (
        load_checkpoint(tmp_path / run / "net" / "model.pth.tar-4") for run in ("plain", "whole", "parts")
    )
    for other in others:
        assert all(torch.equal(value, other["state_dict"][key]) for key, value in plain["state_dict"].items())


@pytest.mark.slow
def test_a_file_with_dataparallels_prefixes_loads(run_tool: Any, tmp_path: Path) -> None:
    assert run_tool("PaperTwoModels", "run") == 0
    for model in ("F", "C"):
        path = tmp_path / "run" / model / "model.pth.tar-4"
        state = torch.load(path, weights_only=True)
        state["state_dict"] = {f"module.{key}": value for key, value in state["state_dict"].items()}
        torch.save(state, path)
    assert run_tool("PaperTwoModels", "evaluated", *EVALUATION, str(tmp_path / "run")) == 0
    assert lines_of(tmp_path / "evaluated", "* accuracy") == lines_of(tmp_path / "run", "* accuracy")


# ---- torch 2.6 and 2.7 ----


@pytest.mark.slow
def test_torchs_safe_default_loads_our_files(run_tool: Any, tmp_path: Path) -> None:
    """Dassl's files hold pickled schedules, which ``torch.load`` refuses from 2.6 on; a trainer may call it itself."""
    assert run_tool("PaperTwoModels", "run", "OPTIM.WARMUP_TYPE", "linear") == 0
    for model in ("F", "C"):
        state = torch.load(tmp_path / "run" / model / "model.pth.tar-4", weights_only=True)
        assert {"state_dict", "epoch", "optimizer", "scheduler", "val_result"} <= set(state)


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "last"), [("single_step", RATE / 10), ("multi_step", RATE / 10)])
def test_dassls_schedules_run_on_this_torch(run_tool: Any, tmp_path: Path, schedule: str, last: float) -> None:
    """With a warm-up before it, through a trainer; cosine is above."""
    options = ("OPTIM.LR_SCHEDULER", schedule, "OPTIM.WARMUP_TYPE", "constant", "OPTIM.STEPSIZE", "(3,)")
    assert run_tool("PaperTwoModels", "run", *options) == 0
    rates = rates_in(tmp_path / "run")[BATCHES - 1 :: BATCHES]
    assert rates == pytest.approx([RATE, RATE, RATE, last])
