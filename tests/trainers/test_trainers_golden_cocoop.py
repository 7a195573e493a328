"""CoCoOp against the reference's numbers; tolerances as tests/golden/README.md suggests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dassl_lite.engine.files.checkpoint import is_recomputed

COCOOP = json.loads((Path(__file__).parents[1] / "golden" / "cocoop.json").read_text())
FORWARD, GRADIENT, STEPS = 1e-5, 1e-4, 1e-3


@pytest.fixture
def cocoop(golden_trainer: Any) -> Any:
    """``cocoop(name)``: the case's trainer, with the reference's initial parameters."""

    def make(name: str) -> Any:
        case = COCOOP["cases"][name]
        options = ["TRAINER.COCOOP.N_CTX", str(case["n_ctx"]), "TRAINER.COCOOP.CTX_INIT", case["ctx_init"]]
        options += ["OPTIM.WARMUP_EPOCH", "-1", "OPTIM.LR_SCHEDULER", "single_step"]  # a constant rate
        trainer = golden_trainer("CoCoOp", case["model"], "OxfordPets", *options, method_file="_base.yaml")
        rng, parameters = np.random.RandomState(case["param_seed"]), dict(trainer.head.named_parameters())
        for key, shape, scale in case["param_order"]:
            parameters[key].data.copy_(torch.from_numpy((scale * rng.randn(*shape)).astype(np.float32)))
        return trainer

    return make


@pytest.mark.parametrize("name", list(COCOOP["cases"]))
def test_cocoop_shifts_logits_and_gradients_equal_the_references(golden, cocoop, golden_inputs, error, name):
    case, arrays, trainer = COCOOP["cases"][name], golden.npz("cocoop"), cocoop(name)
    head = trainer.head
    assert list(head.state_dict()) == [key for key in case["state_dict_keys"] if not is_recomputed(key)]
    assert sum(p.numel() for p in head.parameters() if p.requires_grad) == case["n_trainable"]
    if f"{name}.ctx0" in arrays:
        assert error(head.ctx, arrays[f"{name}.ctx0"]) < FORWARD
    trainer.set_model_mode("eval")
    features = trainer.encode_image(golden_inputs.images(case["model"]))
    assert error(head.meta_net(F.normalize(features, dim=-1)), arrays[f"{name}.meta_bias"]) < FORWARD
    assert error(trainer.model_inference(features), arrays[f"{name}.logits"]) < FORWARD
    trainer.set_model_mode("train")
    batch = golden_inputs.batch(case["model"], 0, case["train_bs"])
    train_features, label = trainer.parse_batch_train(batch)
    loss = trainer.loss(head(train_features), label)
    assert loss.item() == pytest.approx(case["loss"], rel=FORWARD)
    loss.backward()
    for key, parameter in head.named_parameters():
        expected = arrays[f"{name}.grad.{key}"]
        if expected.any():
            assert error(parameter.grad, expected) < GRADIENT, key
        else:  # the case's rectifier lets nothing through
            assert np.array_equal(parameter.grad.numpy(), expected), key


@pytest.mark.parametrize("name", list(COCOOP["cases"]))
def test_cocoop_training_steps_equal_the_references(golden, cocoop, golden_inputs, error, name):
    case, arrays, trainer = COCOOP["cases"][name], golden.npz("cocoop"), cocoop(name)
    trainer.num_batches = len(case["steps"]) + 1
    trainer.set_model_mode("train")
    for step in case["steps"]:
        trainer.batch_idx = step["step"]
        assert trainer.get_current_lr() == pytest.approx(step["lr"], rel=1e-9)
        found = trainer.forward_backward(golden_inputs.batch(case["model"], step["step"], 1))
        assert found["loss"] == pytest.approx(step["loss"], rel=STEPS)
    for key, parameter in trainer.head.named_parameters():
        assert error(parameter, arrays[f"{name}.final.{key}"]) < STEPS, key


def test_cocoop_gives_an_image_the_same_logits_alone_and_in_a_batch(cocoop, golden_inputs, error):
    trainer = cocoop("vit0_n4")
    features = trainer.encode_image(golden_inputs.images("vit0"))
    together = trainer.model_inference(features)
    alone = torch.cat([trainer.model_inference(row[None]) for row in features])
    assert error(alone, together.detach().numpy()) < FORWARD
