"""CoOp against the reference's numbers; tolerances as tests/golden/README.md suggests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dassl_lite.models.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
COOP = json.loads((GOLDEN / "coop.json").read_text())
TOKENIZED = [key.partition(".")[0] for key in np.load(GOLDEN / "coop.npz").files if key.endswith(".tokenized")]
FORWARD, GRADIENT, STEPS = 1e-5, 1e-4, 1e-3


@pytest.fixture
def coop(golden_trainer: Any, golden_inputs: Any) -> Any:
    """``coop(name)``: the case's trainer, with the reference's initial context."""

    def make(name: str) -> Any:
        case = COOP["cases"][name]
        node = {"N_CTX": case["n_ctx_cfg"], "CSC": case["csc"], "CLASS_TOKEN_POSITION": case["position"]}
        node["CTX_INIT"] = case["ctx_init"]
        options = [str(part) for key, value in node.items() for part in (f"TRAINER.COOP.{key}", value)]
        options += ["OPTIM.WARMUP_EPOCH", "-1", "OPTIM.LR_SCHEDULER", "single_step"]  # a constant rate
        trainer = golden_trainer("CoOp", case["model"], "OxfordPets", *options, method_file="_base.yaml")
        assert list(trainer.head.ctx.shape) == case["ctx_shape"]
        if "ctx_seed" in case:
            array = golden_inputs.array(case["ctx_seed"], *case["ctx_shape"], scale=COOP["ctx_scale"])
            trainer.head.ctx.data.copy_(torch.from_numpy(array))
        return trainer

    return make


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("name", list(COOP["cases"]))
def test_coop_prompts_logits_and_gradients_equal_the_references(golden, coop, golden_inputs, error, name):
    case, arrays, trainer = COOP["cases"][name], golden.npz("coop"), coop(name)
    head = trainer.head
    assert sum(p.numel() for p in head.parameters() if p.requires_grad) == case["n_trainable"]
    assert list(head.state_dict()) == ["ctx"]
    assert (head.class_rows == ("ctx",)) == case["csc"]
    if f"{name}.ctx0" in arrays:
        assert error(head.ctx, arrays[f"{name}.ctx0"]) < FORWARD
    assert error(head.class_features(), arrays[f"{name}.text_features"]) < FORWARD
    features = trainer.encode_image(golden_inputs.images(case["model"]))
    assert error(trainer.model_inference(features), arrays[f"{name}.logits"]) < FORWARD
    train_features, label = trainer.parse_batch_train(golden_inputs.batch(case["model"], 0))
    loss = trainer.loss(head(train_features), label)
    assert loss.item() == pytest.approx(case["loss"], rel=FORWARD)
    loss.backward()
    assert error(head.ctx.grad, arrays[f"{name}.grad"]) < GRADIENT


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("name", TOKENIZED)
def test_coop_tokens_behind_the_context_equal_the_references(golden, coop, name):
    case, layout = COOP["cases"][name], coop(name).head.layout
    expected = golden.npz("coop")[f"{name}.tokenized"]
    behind = expected[:, 1 + case["n_ctx"] :]
    assert np.array_equal(layout.behind.numpy(), behind[:, : layout.behind.shape[1]])
    assert not behind[:, layout.behind.shape[1] :].any()  # what was cut off is padding
    assert np.array_equal(layout.start.numpy(), expected[0, :1])
    used = (expected != 0).sum(axis=1)  # start and end included
    encode = Tokenizer().encode
    assert [len(encode(name.replace("_", " "))) for name in COOP["classnames"]] == case["name_lens"]
    assert list(layout.lengths) == (used - 1 - case["n_ctx"]).tolist()


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("name", list(COOP["cases"]))
def test_coop_training_steps_equal_the_references(golden, coop, golden_inputs, error, name):
    case, trainer = COOP["cases"][name], coop(name)
    trainer.num_batches = len(case["steps"]) + 1
    trainer.set_model_mode("train")
    for step in case["steps"]:
        trainer.batch_idx = step["step"]
        assert trainer.get_current_lr() == pytest.approx(step["lr"], rel=1e-9)
        found = trainer.forward_backward(golden_inputs.batch(case["model"], step["step"]))
        assert found["loss"] == pytest.approx(step["loss"], rel=STEPS)
        assert found["acc"] == pytest.approx(step["acc"])
    assert error(trainer.head.ctx, golden.npz("coop")[f"{name}.ctx5"]) < STEPS
