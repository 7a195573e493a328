"""Real features of published CLIP models reach known accuracies through tools/extract.py and tools/train.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.tools import extract, train

RECIPE = ("OPTIM.LR", "0.002", "OPTIM.MAX_EPOCH", "200", "TRAINER.TaskRes.RESIDUAL_SCALE", "0.5")


@pytest.fixture
def accuracy(shared: Path, tmp_path: Path) -> Any:
    """``accuracy("TaskRes", "whurs19_RN50", shots=16)``: the accuracy in percent on the file's test images."""

    def measure(method: str, name: str, *, shots: int, first: int = 0) -> float:
        path = tmp_path / f"{name}-{first}.npz"
        source = shared / "features" / f"{name}.npz"
        if not path.exists():
            flags = ("--first", str(first)) if first else ()
            assert run_tool(extract.main, ["--convert", str(source), "--output", str(path), *flags]) == 0
        output = tmp_path / f"{method}-{name}-{shots}"
        options = ("DATASET.FILE", str(path), "DATASET.NUM_SHOTS", str(shots), *RECIPE)
        flags = ("--trainer", method, "--dataset-config-file", "features", "--output-dir", str(output))
        assert run_tool(train.main, [*flags, *options]) == 0
        return json.loads((output / "results.json").read_text())["metrics"]["test"]["accuracy"]

    return measure


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "zero_shot", "one_shot", "sixteen_shots"),
    [("whurs19_RN50", 70.88, 77.6, 96.96), ("whurs19_ViT-B-32", 80.32, 88.0, 97.92)],
)
def test_aerial_scenes_reach_the_known_accuracies(accuracy, name, zero_shot, one_shot, sixteen_shots):
    assert accuracy("ZeroshotCLIP", name, shots=16) == pytest.approx(zero_shot, abs=0.1)
    assert accuracy("TaskRes", name, shots=16) == pytest.approx(sixteen_shots, abs=1.0)
    assert accuracy("TaskRes", name, shots=1, first=1) == pytest.approx(one_shot, abs=2.0)


@pytest.mark.slow
def test_zero_shot_beats_taskres_on_pets(accuracy):
    zero_shot = accuracy("ZeroshotCLIP", "oxford_pets", shots=16)
    assert zero_shot == pytest.approx(91.98, abs=0.1)
    assert accuracy("TaskRes", "oxford_pets", shots=16) < zero_shot
