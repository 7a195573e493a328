"""A checkpoint is refused by a run whose backbone is another one, or has the same name and other weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from toy import make_images

from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.utils import UserError


@pytest.fixture
def build(tmp_path: Path) -> Any:
    """``build(weights, "bf16")``: a TaskRes trainer whose backbone is that file."""
    data = make_images(tmp_path / "data", {"train": 1, "test": 1})

    def make(weights: Path, precision: str = "fp32") -> Any:
        flags = {
            "DATASET": {"ROOT": str(data), "NAME": "ImageFolder", "FEATURES": {"VIEWS": 0}},
            "MODEL": {"BACKBONE": {"NAME": str(weights)}},
            "TRAINER": {"TaskRes": {"PREC": precision}},
            "OUTPUT_DIR": str(tmp_path / "run"),
        }
        return build_trainer(make_config(trainer="TaskRes", flags=flags))

    return make


@pytest.fixture
def saved(build: Any, golden_backbone: Any, tmp_path: Path) -> tuple[Path, Path]:
    """(weights, folder of a run that was saved with them)."""
    weights = tmp_path / "weights.safetensors"
    shutil.copy(golden_backbone("vit0"), weights)
    build(weights).save_model(0, tmp_path / "run")
    return weights, tmp_path / "run"


@pytest.mark.slow
def test_a_backbone_of_the_same_name_with_other_weights_is_refused(saved, build, golden_backbone):
    weights, run = saved
    shutil.copy(golden_backbone("vit1"), weights)
    with pytest.raises(
        UserError, match=r"with backbone '.*/weights.safetensors', but .* '.*/weights.safetensors' with other"
    ):
        build(weights).load_model(run)


def test_a_backbone_of_another_name_is_refused(saved, build, golden_backbone):
    with pytest.raises(UserError, match=r"weights.safetensors', but this run has backbone '.*vit1.safetensors'$"):
        build(golden_backbone("vit1")).load_model(saved[1])


@pytest.mark.slow
def test_the_same_weights_in_another_precision_are_accepted(saved, build):
    weights, run = saved
    trainer = build(weights, "bf16")
    assert trainer.class_match is None
    trainer.load_model(run)
    assert trainer.class_match.matched == trainer.num_classes
