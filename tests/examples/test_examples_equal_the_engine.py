"""The plain examples give the engine's losses and logits for the same seed, images and shots, augmentation included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plain_coop
import plain_taskres
import pytest
import torch

from dassl_lite.engine.build import default_recipe, make_config
from dassl_lite.engine.commands import run

EXACT = 1e-5  # relative: the two sum in different orders
BATCH_SIZE = 4  # of 6 images: an epoch is one batch, and the incomplete one is left out
METHODS = {"TaskRes": plain_taskres, "CoOp": plain_coop}


@pytest.fixture
def engine_run(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``engine_run("CoOp", backbone, shots, epochs)``: (loss of every batch, test logits) of a run of the engine."""

    def make(method: str, backbone: str, shots: int, epochs: int) -> tuple[list[float], torch.Tensor]:
        cfg = make_config(
            trainer=method,
            method_file=default_recipe(method),
            flags={
                "DATASET": {"NAME": "ImageFolder", "ROOT": str(images), "NUM_SHOTS": shots, "FEATURES": {"VIEWS": 0}},
                "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": BATCH_SIZE}},
                "MODEL": {"BACKBONE": {"NAME": backbone}},
                "OPTIM": {"MAX_EPOCH": epochs},
                "OUTPUT_DIR": str(tmp_path / "run"),
                "SEED": 3,
            },
        )
        trainer, losses = run.build(cfg), []
        step = trainer.forward_backward

        def recorded(batch: dict[str, Any]) -> dict[str, float]:
            summary = step(batch)
            losses.append(summary["loss"])
            return summary

        monkeypatch.setattr(trainer, "forward_backward", recorded)
        trainer.train()
        with torch.no_grad():
            batches = [trainer.model_inference(trainer.parse_batch_test(batch)[0]) for batch in trainer.test_loader]
        return losses, torch.cat(batches)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vit0", "demo"])
@pytest.mark.parametrize("method", METHODS)
def test_example_gives_the_engines_numbers(method, backbone, images, golden_backbone, engine_run, monkeypatch):
    example = METHODS[method]
    monkeypatch.setattr(example, "BATCH_SIZE", BATCH_SIZE)
    name = backbone if backbone == "demo" else str(golden_backbone(backbone))
    expected_losses, expected = engine_run(method, name, shots=2, epochs=4)
    own = [] if backbone == "demo" else ["--backbone", name]  # the example's default is the demo model
    losses, logits, _ = example.run(["--images", str(images), *own, "--shots", "2", "--epochs", "4", "--seed", "3"])
    assert losses == pytest.approx(expected_losses, rel=EXACT)
    assert (logits - expected).abs().max() < EXACT * expected.abs().max()
