"""CLIP-LoRA against the reference's numbers; tolerances as tests/golden/README.md suggests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dassl_lite.models.lora import LowRank, merge_lora
from dassl_lite.utils import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
LORA = json.loads((GOLDEN / "clip_lora.json").read_text())
FORWARD, GRADIENT, STEPS = 1e-5, 1e-4, 1e-3
REFERENCE_FILE = GOLDEN / LORA["saved_file"]["path"][0]


@pytest.fixture
def lora_trainer(golden_trainer) -> Any:
    """A trainer on the golden classes ("a photo of a {}."), its low-rank pairs filled as the golden run filled them."""

    def make(case: dict, dropout: float = 0.0, fill: bool = True, **options: Any) -> Any:
        keys = {
            "ENCODER": case["encoder"],
            "PARAMS": ",".join(case["params"]),
            "RANK": case["r"],
            "ALPHA": case["alpha"],
            "DROPOUT": dropout,
            "STEPS_PER_SHOT": LORA["q"]["steps"],
            **options,
        }
        flat = [text for key, value in keys.items() for text in (f"TRAINER.CLIPLoRA.{key}", str(value))]
        flat += ["DATASET.NUM_SHOTS", "1"]
        trainer = golden_trainer("CLIPLoRA", LORA["model"], "ImageNet", *flat, method_file="_base.yaml")
        if fill:
            fill_pairs(trainer, case["fill_order"])
        return trainer

    return make


def by_reference_name(trainer: Any) -> dict[str, nn.Parameter]:
    return {name: p for name, p in trainer.clip.model.named_parameters() if p.requires_grad}


def fill_pairs(trainer: Any, order: list) -> None:
    stream, named = np.random.RandomState(LORA["q"]["seed"]), by_reference_name(trainer)
    assert sorted(named) == [name for name, _ in order]
    with torch.no_grad():
        for name, shape in order:
            named[name].copy_(torch.from_numpy(0.1 * stream.randn(*shape)))


def evaluate(trainer: Any, images: torch.Tensor) -> torch.Tensor:
    trainer.set_model_mode("eval")
    with torch.no_grad():
        return trainer.model_inference(trainer.encode_image(images))


@pytest.mark.parametrize("name", list(LORA["cases"]))
def test_lora_training_logits_and_gradients_equal_the_references(golden, lora_trainer, golden_inputs, error, name):
    case, arrays = LORA["cases"][name], golden.npz("clip_lora")
    trainer = lora_trainer(case)
    assert sum(p.numel() for p in trainer.head.parameters()) == case["n_trainable"]
    assert {k.rpartition(".")[0] for k in by_reference_name(trainer)} == set(case["adapted"])
    logits: list[torch.Tensor] = []
    trainer.head.register_forward_hook(lambda head, given, out: logits.append(out))
    trainer.set_model_mode("train")
    summary = trainer.forward_backward(golden_inputs.batch(LORA["model"], 0))
    assert summary["loss"] == pytest.approx(case["loss"], rel=FORWARD)
    assert error(logits[0], arrays[f"{name}.train_logits"]) < FORWARD
    named, prefix = by_reference_name(trainer), f"{name}.grad."
    gradients = [key for key in arrays.files if key.startswith(prefix)]
    assert gradients
    for key in gradients:
        assert error(named[key.removeprefix(prefix)].grad, arrays[key]) < GRADIENT, key


@pytest.mark.slow_after(5)
@pytest.mark.parametrize("merged", [False, True], ids=["pairs", "merged"])
@pytest.mark.parametrize("name", list(LORA["cases"]))
def test_lora_features_and_logits_equal_the_references(golden, lora_trainer, golden_inputs, error, name, merged):
    case, arrays = LORA["cases"][name], golden.npz("clip_lora")
    trainer, images = lora_trainer(case, dropout=LORA["q"]["drop"]), golden_inputs.images(LORA["model"])
    if merged:
        assert merge_lora(trainer.clip.model) == case["n_layers"]
    assert error(evaluate(trainer, images), arrays[f"{name}.eval_logits"]) < FORWARD
    with torch.no_grad():
        # The arrays' features are of length 1.
        found = nn.functional.normalize(trainer.encode_image(images), dim=-1)
        assert error(found, arrays[f"{name}.eval_image"]) < FORWARD
        found = nn.functional.normalize(trainer.head.class_features(), dim=-1)
        assert error(found, arrays[f"{name}.eval_text"]) < FORWARD


def test_merged_weight_equals_the_references(golden, lora_trainer, error):
    trainer = lora_trainer(LORA["cases"]["both_qkv"])
    merge_lora(trainer.clip.model)
    weight = trainer.clip.model.visual.transformer.resblocks[0].attn.in_proj_weight
    query = weight[: len(weight) // 3]
    assert error(query, golden.npz("clip_lora")["both_qkv.merged_weight0"]) < 1e-6


def test_before_training_the_model_is_zero_shot_clip(golden, lora_trainer, golden_inputs, error):
    trainer = lora_trainer(LORA["cases"]["both_qkvo"], dropout=0.25, fill=False)
    images = golden_inputs.images(LORA["model"])
    assert error(evaluate(trainer, images), golden.npz("clip_lora")["plain.eval_logits"]) < FORWARD


class _RecordedDropout(nn.Dropout):
    """Dropout whose masks were drawn before: those of the reference, over all 77 tokens and token by token."""

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.masks: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.masks.pop(0)[: x.shape[1]].transpose(0, 1) if self.training else x


def low_rank_pairs(module: nn.Module) -> list[Any]:
    return [child for child in module.modules() if isinstance(child, LowRank)]


def draw_initial_values(blocks: int) -> None:
    """Take from torch's stream what building the reference's layers took: per block four projections, and for each of
    q, k and v another and A."""
    for _ in ("q", "k", "v", "o") * blocks:
        nn.Linear(64, 64)
    for _ in ("q", "k", "v") * blocks:
        nn.Linear(64, 64)
        nn.init.kaiming_uniform_(torch.empty(LORA["q"]["r"], 64))


def draw_masks(trainer: Any, batch: int) -> None:
    """One training step's masks, from torch's stream in the order in which the reference draws them."""
    shapes = {"text": (77, len(trainer.classnames), 64), "vision": (17, batch, 64)}
    for encoder, shape in shapes.items():
        for pair in low_rank_pairs(getattr(trainer.head, encoder)):
            pair.dropout.masks.append(nn.functional.dropout(torch.ones(shape), p=LORA["q"]["drop"]))


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("name", ["run_nodrop_both", "run_nodrop_text", "run_drop_both", "run_drop_text"])
def test_lora_training_run_equals_the_references(golden, lora_trainer, golden_inputs, error, name):
    drops, run, arrays = name.startswith("run_drop"), LORA[name], golden.npz("clip_lora")
    if drops:
        golden.require_its_versions()
        if not torch.backends.mkl.is_available():
            pytest.skip("without MKL torch draws dropout masks in another way than where the numbers were printed")
    case = LORA["cases"][f"{name.rpartition('_')[2]}_qkv"]
    trainer = lora_trainer(case, dropout=LORA["q"]["drop"] if drops else 0.0)
    for pair in low_rank_pairs(trainer.head) if drops else ():
        pair.dropout = _RecordedDropout(pair.dropout.p)
    assert (trainer.steps_to_train(), trainer.max_epoch) == (LORA["q"]["steps"], LORA["q"]["steps"])
    torch.manual_seed(run["torch_manual_seed"])
    draw_initial_values(case["n_layers"])
    trainer.set_model_mode("train")
    for step, expected in enumerate(run["losses"]):
        batch = golden_inputs.batch(LORA["model"], step)
        if drops:
            draw_masks(trainer, len(batch["label"]))
        assert trainer.forward_backward(batch)["loss"] == pytest.approx(expected, rel=STEPS)
    assert trainer.get_current_lr() == pytest.approx(1e-6)
    named = by_reference_name(trainer)
    for key in [key for key in arrays.files if key.startswith(f"{name}.final.")]:
        assert error(named[key.removeprefix(f"{name}.final.")], arrays[key]) < STEPS, key
    logits = evaluate(trainer, golden_inputs.images(LORA["model"]))
    assert error(logits, arrays[f"{name}.eval_logits_final"]) < STEPS


@pytest.mark.parametrize("path", [REFERENCE_FILE, REFERENCE_FILE.parent], ids=["file", "folder"])
def test_the_references_file_loads_and_gives_its_logits(golden, lora_trainer, golden_inputs, error, path):
    trainer, arrays = lora_trainer(LORA["cases"]["both_qkv"], fill=False), golden.npz("clip_lora")
    trainer.load_model(path)
    named, prefix = by_reference_name(trainer), "run_nodrop_both.final."
    for key in [key for key in arrays.files if key.startswith(prefix)]:
        assert error(named[key.removeprefix(prefix)], arrays[key]) < 1e-6, key
    logits = evaluate(trainer, golden_inputs.images(LORA["model"]))
    assert error(logits, arrays["run_nodrop_both.eval_logits_final"]) < FORWARD


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"RANK": 4}, "r = 2, but this run has 4; set TRAINER.CLIPLoRA.RANK to that"),
        ({"ALPHA": 2}, "alpha = 1, but this run has 2.0; set TRAINER.CLIPLoRA.ALPHA"),
        ({"PARAMS": "q,v"}, "params = q,k,v, but this run has q,v; set TRAINER.CLIPLoRA.PARAMS"),
        ({"ENCODER": "text"}, "encoder = both, but this run has text; set TRAINER.CLIPLoRA.ENCODER"),
        ({"POSITION": "half-up"}, "position = all, but this run has half-up; set TRAINER.CLIPLoRA.POSITION"),
    ],
)
def test_the_references_file_is_refused_under_other_settings(lora_trainer, options, message):
    trainer = lora_trainer(LORA["cases"]["both_qkv"], fill=False, **options)
    with pytest.raises(UserError) as caught:
        trainer.load_model(REFERENCE_FILE)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
