"""CLIP-Adapter against the reference's numbers; tolerances as tests/golden/README.md suggests."""

from __future__ import annotations

import numpy as np
import pytest
import torch

FORWARD, GRADIENT, STEPS = 1e-5, 1e-4, 1e-3
CONSTANT_SGD = [
    "OPTIM.NAME",
    "sgd",
    "OPTIM.LR",
    "0.002",
    "OPTIM.LR_SCHEDULER",
    "single_step",
    "OPTIM.WARMUP_EPOCH",
    "-1",
]


@pytest.fixture(params=["vit0", "rn1"])
def case(request, golden, golden_trainer):
    """(name, expected, arrays, trainer) with the reference's initial parameters."""
    expected = golden.json("clip_adapter")["cases"][request.param]
    trainer = golden_trainer("CLIP_Adapter", request.param, expected["dataset"], *CONSTANT_SGD)
    random = np.random.RandomState(expected["param_seed"])
    state = {
        name: torch.from_numpy((scale * random.randn(*shape)).astype(np.float32))
        for name, shape, scale in expected["param_order"]
    }
    trainer.head.load_state_dict(state)
    trainer.num_batches = len(expected["steps"]) + 1
    return request.param, expected, golden.npz("clip_adapter"), trainer


def test_clip_adapter_logits_and_features_equal_the_references(case, golden_inputs, error):
    name, expected, arrays, trainer = case
    assert trainer.get_model_names() == expected["names"]
    trainable = [f"adapter.{key}" for key, p in trainer.head.named_parameters() if p.requires_grad]
    assert trainable == expected["trainable"]
    trainer.set_model_mode("eval")
    features = trainer.encode_image(golden_inputs.images(name))
    assert error(trainer.head.text_features, arrays[f"{name}.text_features"]) < FORWARD
    assert error(trainer.head.fc(features), arrays[f"{name}.adapter_out"]) < FORWARD
    assert error(trainer.model_inference(features), arrays[f"{name}.logits"]) < FORWARD


def test_clip_adapter_gradients_and_steps_equal_the_references(case, golden_inputs, error):
    name, expected, arrays, trainer = case
    trainer.set_model_mode("train")
    features, label = trainer.parse_batch_train(golden_inputs.batch(name, 0))
    loss = trainer.loss(trainer.head(features), label)
    assert loss.item() == pytest.approx(expected["loss"], rel=FORWARD)
    loss.backward()
    for key, parameter in trainer.head.named_parameters():
        assert error(parameter.grad, arrays[f"{name}.grad.{key}"]) < GRADIENT
    for step in expected["steps"]:
        trainer.batch_idx = step["step"]
        assert trainer.get_current_lr() == pytest.approx(step["lr"])
        found = trainer.forward_backward(golden_inputs.batch(name, step["step"]))
        assert found["loss"] == pytest.approx(step["loss"], rel=STEPS)
        assert found["acc"] == pytest.approx(step["acc"])
    for key, parameter in trainer.head.named_parameters():
        assert error(parameter, arrays[f"{name}.final.{key}"]) < STEPS
