"""Folders that Dassl and its forks have saved, through the tools: read without running anything in them."""

from __future__ import annotations

import json
import os
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from recipe import PLUGINS

from dassl_lite.engine.commands.cli import run_tool as to_exit_code
from dassl_lite.tools import eval as eval_tool
from dassl_lite.tools import train as train_tool

FAST = ("DATALOADER.NUM_WORKERS", "0", "DATASET.FEATURES.VIEWS", "0")


def tool(main: Callable[..., Any], *arguments: Any) -> int:
    return to_exit_code(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def imagenet_a(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet-A in the field's layout, an image per class."""
    root, rng = tmp_path_factory.mktemp("imagenet_a"), np.random.default_rng(0)
    table = pkgutil.get_data("timm.data", "_info/imagenet_a_synsets.txt")
    assert table is not None
    for wnid in table.decode().split():
        folder = root / "imagenet-adversarial" / "imagenet-a" / wnid
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / "0.png")
    return root


@pytest.mark.slow
def test_eval_evaluates_a_folder_saved_by_dassl(
    golden: Any, golden_backbone: Any, imagenet_a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("--model-dir", golden.path("checkpoint_taskres"), "--root", imagenet_a)
    target = ("--dataset-config-file", "imagenet_a", "--output", tmp_path / "table.json")
    assert tool(eval_tool.main, *run, *target, *FAST) == 2
    assert "does not store its config" in capsys.readouterr().err
    method = ("--trainer", "TaskRes", "--backbone", golden_backbone("vit0"))
    assert tool(eval_tool.main, *run, *method, *FAST) == 2
    assert "--trainer also needs a dataset: --dataset-config-file" in capsys.readouterr().err
    rows = {}
    for epoch in ((), ("--load-epoch", "3")):
        assert tool(eval_tool.main, *run, *method, *epoch, *target, *FAST) == 0, capsys.readouterr().err
        (rows[epoch],) = json.loads((tmp_path / "table.json").read_text())["rows"]
        assert (rows[epoch]["matched"], rows[epoch]["images"]) == (200, 200)
    shown = capsys.readouterr().out
    assert "model-best.pth.tar" in shown
    assert "model.pth.tar-3" in shown

    # And through the other tool: the same.
    flags = ("--eval-only", "--dataset-config-file", "imagenet_a", "--output-dir", tmp_path / "evaluated")
    assert tool(train_tool.main, *run, *method, *flags, *FAST) == 0, capsys.readouterr().err
    assert f"* accuracy: {rows[()]['accuracy']:.1f}%" in (tmp_path / "evaluated" / "log.txt").read_text()


@pytest.mark.slow
def test_the_authors_lora_file_is_evaluated(
    golden: Any, golden_backbone: Any, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = root / "colours"
    flags = ("--model-dir", golden.path("clip_lora_ckpt") / "vitb16/dtd/1shots/seed1", "--trainer", "CLIPLoRA")
    flags += ("--backbone", golden_backbone("vit0"))
    options = ("DATASET.NUM_SHOTS", "1", *FAST)
    given = ("--eval-only", "--data", images, "--output-dir", tmp_path / "evaluated")
    assert tool(train_tool.main, *flags, *given, *options) == 0, capsys.readouterr().err
    log = (tmp_path / "evaluated" / "log.txt").read_text()
    assert "lora_weights.pt" in log
    table = tmp_path / "table.json"
    named = ("DATASET.NAME", "ImageFolder", *options)
    assert tool(eval_tool.main, *flags, "--root", images, "--output", table, *named) == 0, capsys.readouterr().err
    (row,) = json.loads(table.read_text())["rows"]
    assert f"* accuracy: {row['accuracy']:.1f}%" in log


@pytest.mark.slow
def test_evaluating_a_third_partys_run_leaves_only_its_results(
    run_tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is saved here says how it was trained; of a plug-in's trainer only the plug-in has to be named."""
    assert run_tool("PaperTwoModels", "run", "TEST.COMPUTE_CMAT", "True") == 0
    assert (tmp_path / "run" / "cmat.pt").is_file()
    monkeypatch.chdir(tmp_path)
    plugins = [part for plugin in PLUGINS for part in ("--plugin", plugin)]
    before = set(tmp_path.rglob("*"))
    assert tool(eval_tool.main, "--dassl-compat", *plugins, "--model-dir", "run") == 0, capsys.readouterr().err
    assert set(tmp_path.rglob("*")) == before
    assert tool(eval_tool.main, "--dassl-compat", *plugins, "--model-dir", "run", "--output-dir", "there") == 0
    assert {path.name for path in (tmp_path / "there").iterdir()} == {"cmat.pt", "evaluation.json", "log.txt"}
    (row,) = json.loads((tmp_path / "there" / "evaluation.json").read_text())["rows"]
    assert f"* accuracy: {row['accuracy']:.1f}%" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eval", "train"])
@pytest.mark.parametrize("there", [True, False])
def test_the_newest_file_of_a_third_partys_trainer_is_found_and_a_missing_one_reported(
    run_tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, there: bool
) -> None:
    """PaperOwnLoading keeps no best epoch, and looks for its file itself."""
    folder = tmp_path / "run" / "linear"
    assert run_tool("PaperOwnLoading", "run") == 0
    for path in folder.glob("model.pth.tar-*"):
        path.rename(folder / ("model.pth.tar-9" if there else "elsewhere"))
    capsys.readouterr()
    flags = ("--model-dir", str(tmp_path / "run"))
    if name == "train":
        code = run_tool("PaperOwnLoading", "evaluated", "--eval-only", *flags)
    else:
        plugins = [part for plugin in PLUGINS for part in ("--plugin", plugin)]
        code = tool(eval_tool.main, "--dassl-compat", *plugins, *flags)
    assert code == (0 if there else 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error")]
    assert len(lines) == (0 if there else 1)
    assert all(re.search(r'Model not found at ".*model\.pth\.tar-4"$', line) for line in lines)


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["state_dict", "weight", "scheduler"])
@pytest.mark.parametrize("name", ["eval", "train"])
def test_a_hostile_checkpoint_is_refused_and_never_runs(
    golden: Any, golden_backbone: Any, root: Path, tmp_path: Path, capsys: Any, where: str, name: str
) -> None:
    mark, folder = tmp_path / "it_ran", tmp_path / "run" / "prompt_learner"
    folder.mkdir(parents=True)
    bomb: Any = _Bomb(mark)
    state = {
        "state_dict": bomb if where == "state_dict" else {"x": bomb if where == "weight" else torch.zeros(2)},
        "epoch": 3,
        "optimizer": None,
        "scheduler": bomb if where == "scheduler" else None,
    }
    torch.save(state, folder / "model-best.pth.tar")
    flags = ("--model-dir", tmp_path / "run", "--trainer", "TaskRes", "--backbone", golden_backbone("vit0"))
    if name == "eval":
        named = ("DATASET.NAME", "ImageFolder", *FAST)
        code = tool(eval_tool.main, *flags, "--root", root / "colours", *named)
    else:
        given = ("--data", root / "colours", "--output-dir", tmp_path / "out")
        code = tool(train_tool.main, "--eval-only", *flags, *given, *FAST)
    told = [line for line in capsys.readouterr().err.splitlines() if "Error" in line]
    assert code == 2
    assert len(told) == 1
    assert "model-best.pth.tar is refused: it would call posix.mkdir" in told[0]
    assert not mark.exists()
