"""Trainers written for Dassl, through the tool: trained, saved, resumed, evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dassl_lite.config.check import leaves
from dassl_lite.engine.build import make_config
from dassl_lite.utils import load_checkpoint

UNLABELLED = ("DATALOADER.K_TRANSFORMS", "2", "TRAIN.COUNT_ITER", "train_u", "DATALOADER.TRAIN_U.SAME_AS_X", "True")
CLIP = ("MODEL.BACKBONE.NAME", "tiny")
# trainer -> its registered models, its options
PAPERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "PaperPrompt": (("prompt_learner",), CLIP),
    "PaperAdapter": (("adapter",), CLIP),
    "PaperTwoModels": (("F", "C"), ()),
    "PaperUnlabeled": (("model",), UNLABELLED),
    "PaperEpoch": (("model",), ("MODEL.HEAD.NAME", "paper_head", "MODEL.HEAD.HIDDEN_LAYERS", "(8,)")),
    "PaperOwnLoading": (("linear",), ()),
}


def accuracy(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())["metrics"]["test"]["accuracy"]


SLOW_PAPERS = [pytest.param(name, marks=pytest.mark.slow) for name in PAPERS if name != "PaperEpoch"]


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["PaperEpoch", *SLOW_PAPERS])
def test_a_third_partys_trainer_trains_resumes_and_evaluates(
    trainer: str, run_tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, options = PAPERS[trainer]
    assert run_tool(trainer, "whole", *options) == 0, capsys.readouterr().err
    whole = tmp_path / "whole"
    log = (whole / "log.txt").read_text().splitlines()
    assert "Finish training" in log
    assert any(line.startswith("* accuracy: ") for line in log[log.index("Finish training") :])
    if trainer == "PaperPrompt":
        assert "Building custom CLIP" in log  # printed by the trainer
    for model in models:
        names = [*(f"model.pth.tar-{epoch}" for epoch in (1, 2, 3, 4)), "checkpoint"]
        assert sorted(path.name for path in (whole / model).glob("[!.]*")) == sorted(names)

    # Stopped after epoch 2 and gone on with: the same in the end.
    for model in models:
        kept = tmp_path / "parts" / model
        kept.mkdir(parents=True)
        for name in ("model.pth.tar-1", "model.pth.tar-2"):
            (kept / name).write_bytes((whole / model / name).read_bytes())
        (kept / "checkpoint").write_text("model.pth.tar-2\n")
    assert run_tool(trainer, "parts", "--resume", *options) == 0, capsys.readouterr().err
    assert "Found checkpoint at" in (tmp_path / "parts" / "log.txt").read_text()
    for model in models:
        ends = [load_checkpoint(tmp_path / run / model / "model.pth.tar-4") for run in ("whole", "parts")]
        assert ends[0]["state_dict"].keys() == ends[1]["state_dict"].keys()
        assert all(torch.equal(value, ends[1]["state_dict"][key]) for key, value in ends[0]["state_dict"].items())
        assert ends[0]["optimizer"]["param_groups"] == ends[1]["optimizer"]["param_groups"]  # the learning rate too
    assert accuracy(tmp_path / "parts") == accuracy(whole)

    evaluation = ("--eval-only", "--model-dir", str(whole), "--load-epoch", "4")
    assert run_tool(trainer, "evaluated", *evaluation, *options) == 0, capsys.readouterr().err
    line = next(line for line in log[log.index("Finish training") :] if line.startswith("* accuracy"))
    assert line in (tmp_path / "evaluated" / "log.txt").read_text().splitlines()


@pytest.mark.slow
def test_best_val_of_two_models_is_deployed(run_tool: Any, tmp_path: Path) -> None:
    assert run_tool("PaperTwoModels", "run", "TEST.FINAL_MODEL", "best_val") == 0
    for model in ("F", "C"):
        assert load_checkpoint(tmp_path / "run" / model / "model-best.pth.tar")["val_result"] > 30


@pytest.mark.slow
def test_a_plug_ins_evaluator_optimiser_schedule_and_transform_are_used(run_tool: Any, tmp_path: Path) -> None:
    options = {
        "TEST.EVALUATOR": "PaperEvaluator",
        "TEST.COMPUTE_CMAT": "True",
        "OPTIM.NAME": "paper_optim",
        "OPTIM.LR_SCHEDULER": "paper_halving",
        "OPTIM.WARMUP_EPOCH": "-1",
        "INPUT.TRANSFORMS": "('paper_flip', 'normalize')",
        "TRAIN.CHECKPOINT_FREQ": "0",
    }
    assert run_tool("PaperTwoModels", "run", *(part for pair in options.items() for part in pair)) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["metrics"]["test"]["batches"] == 2  # 15 images by 8
    state = load_checkpoint(tmp_path / "run" / "F" / "model.pth.tar-4")
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.02 / 16)
    assert "+ paper flip" in (tmp_path / "run" / "log.txt").read_text()
    assert torch.load(tmp_path / "run" / "cmat.pt").shape == (3, 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("TRAIN.CHECKPOINT_FREQ", "-1"),
        ("DATASET.NUM_SHOTS", "0"),
        ("DATASET.NUM_SHOTS", "-2"),
        ("DATALOADER.TRAIN_U.BATCH_SIZE", "0"),
        ("OPTIM.LR", "0"),
        ("TRAIN.PRINT_FREQ", "-1"),
        ("OPTIM.WARMUP_TYPE", "none"),
    ],
)
def test_values_that_dassl_takes_are_taken(key: str, value: str) -> None:
    cfg = make_config(trainer="TaskRes", options=(key, value, "OPTIM.WARMUP_EPOCH", "-1"))
    assert str(leaves(cfg)[key]) in (value, f"{value}.0")


@pytest.mark.slow
def test_a_checkpoint_frequency_below_1_keeps_the_last_epoch_only(run_tool: Any, tmp_path: Path) -> None:
    assert run_tool("PaperTwoModels", "run", "TRAIN.CHECKPOINT_FREQ", "-1") == 0
    assert [path.name for path in (tmp_path / "run" / "F").glob("model*")] == ["model.pth.tar-4"]


@pytest.mark.slow
@pytest.mark.parametrize("shots", ["0", "-3"])
def test_less_than_one_shot_means_all_images_as_in_dassl(run_tool: Any, root: Path, tmp_path: Path, shots: str) -> None:
    """Of a dataset of ours, too."""
    given = ("DATASET.NAME", "ImageFolder", "DATASET.ROOT", str(root / "colours"), "DATASET.NUM_SHOTS", shots)
    assert run_tool("PaperTwoModels", "run", "--no-train", *given) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert any(line.split() == ["#", "train_x", "18"] for line in log.splitlines())
