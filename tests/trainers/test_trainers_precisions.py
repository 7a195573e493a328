"""Every method of the package in every precision, on a CPU: finite, in float32 where it learns, and close to fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tints import draw_tints

from dassl_lite.engine import TRAINER_REGISTRY
from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import set_random_seed

load_plugins()
HOME = "dassl_lite.trainers."  # other tests register methods of their own
METHODS = [name for name in TRAINER_REGISTRY if TRAINER_REGISTRY.get(name).__module__.startswith(HOME)]

RATES = dict.fromkeys(("IVLP", "MaPLe", "PromptSRC"), 1e-4)  # prompts of both encoders magnify a rounding error


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of each of three classes in each part."""
    counts = dict.fromkeys(("train", "val", "test"), 4)
    return draw_tints(tmp_path_factory.mktemp("precisions"), counts, side=16)


@pytest.fixture
def trained(images: Path, tmp_path: Path, golden_backbone: Any) -> Callable[[str, str], Any]:
    """``trained("CoOp", "bf16")``: a trainer after a few small steps."""

    def train(method: str, precision: str) -> Any:
        node = TRAINER_REGISTRY.get(method).node_name()
        flags = {
            "DATASET": {"ROOT": str(images), "NAME": "ImageFolder", "FEATURES": {"VIEWS": 2}},
            "MODEL": {"BACKBONE": {"NAME": str(golden_backbone("vit0"))}},
            "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 4}},
            "OPTIM": {"NAME": "sgd", "LR": RATES.get(method, 0.001), "MAX_EPOCH": 2, "LR_SCHEDULER": "cosine"},
            "OUTPUT_DIR": str(tmp_path / precision),
        }
        options = ["TRAINER.TipAdapter.SEARCH", "False", "TRAINER.COOP.N_CTX", "4", "TRAINER.COCOOP.N_CTX", "4"]
        options += ["TRAINER.KgCoOp.N_CTX", "4", "TRAINER.TCP.N_CTX", "4", "TRAINER.ProGrad.N_CTX", "6"]
        options += ["TRAINER.CLIPLoRA.DROPOUT", "0.0", "TRAINER.CLIPLoRA.STEPS_PER_SHOT", "0"]
        options += ["TRAINER.TwoStage.STEPS_PER_SHOT", "0"]
        options += ["TRAINER.CrossModalProbe.ITERATIONS", "20", "TRAINER.CrossModalProbe.EVAL_EVERY", "10"]
        options += ["TRAINER.Auto.METHODS", "['ZeroshotCLIP', 'GDA', 'TipAdapter']", "TRAINER.Auto.FOLDS", "2"]
        options += [f"TRAINER.{node}.PREC", precision]
        set_random_seed(1)
        trainer = build_trainer(make_config(trainer=method, flags=flags, options=options))
        trainer.train()
        return trainer

    return train


def logits(trainer: Any) -> torch.Tensor:
    trainer.set_model_mode("eval")
    with torch.no_grad():
        return torch.cat([trainer.model_inference(trainer.parse_batch_test(b)[0]) for b in trainer.test_loader])


FAST = ("TaskRes", "CoOp")  # a head on the features; through the text encoder


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", [m if m in FAST else pytest.param(m, marks=pytest.mark.slow) for m in METHODS])
def test_a_method_gives_about_the_same_in_every_precision(trained, method, caplog):
    exact = logits(trained(method, "fp32"))
    for precision in ("amp", "bf16"):
        trainer = trained(method, precision)
        found = logits(trainer)
        assert found.dtype == torch.float32
        assert torch.isfinite(found).all()
        assert 0 < (found - exact).abs().max() < 0.1 * exact.abs().max(), precision  # 0: the key had no effect
        assert all(weights.dtype == torch.float32 for weights in trainer.head.parameters())
    assert "needs a GPU" not in caplog.text
    assert torch.equal(logits(trained(method, "fp16")), exact)  # a CPU takes fp32 in its place, and says so
    assert "PREC fp16 needs a GPU; running in fp32 on this CPU" in caplog.text


def test_the_methods_of_the_package_are_all_here():
    assert {"CoOp", "CoCoOp", "CLIP_Adapter", "TipAdapter", "TipAdapterF", "LinearProbe", "CLIPLoRA"} <= set(METHODS)
    assert {"CLAP", "ZSLP", "GDA", "ProKeR", "LPPlusPlus", "APE", "APET", "CrossModalProbe"} <= set(METHODS)
    assert {"KgCoOp", "ProGrad", "TCP"} <= set(METHODS)
    assert {"TwoStage", "MMA"} <= set(METHODS)
    assert "Auto" in METHODS
    assert {"ZeroshotCLIP", "ZeroshotCLIP2", "TaskRes", "TaskResEnhance"} <= set(METHODS)
