"""TaskRes and zero-shot CLIP against the reference's numbers; tolerances as tests/golden/README.md suggests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parents[1] / "golden"
TASKRES = json.loads((GOLDEN / "taskres.json").read_text())
ZERO_SHOT = json.loads((GOLDEN / "zeroshot.json").read_text())
FORWARD, GRADIENT, STEPS = 1e-5, 1e-4, 1e-3


def taskres_options(name: str, case: dict) -> list[str]:
    options = ["TRAINER.TaskRes.RESIDUAL_SCALE", str(case["alpha"])]
    if ".enhanced." in name:
        options += ["TRAINER.TaskRes.ENHANCED_BASE", str(GOLDEN / "enhanced_proj.pth.tar")]
    if ".image." in name:
        options += ["TRAINER.TaskRes.RESIDUAL_ON", "image"]
    return options


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    "name", [n for n in TASKRES["cases"] if "steps" not in TASKRES["cases"][n] or "loss0" in TASKRES["cases"][n]]
)
def test_taskres_base_logits_and_gradients_equal_the_references(golden, golden_trainer, golden_inputs, error, name):
    case, arrays = TASKRES["cases"][name], golden.npz("taskres")
    trainer = golden_trainer("TaskRes", case["model"], case["dataset"], *taskres_options(name, case))
    head, features = trainer.head, trainer.encode_image(golden_inputs.images(case["model"]))
    assert sorted(head.state_dict()) == sorted(case["state_dict_keys"])
    assert sum(p.numel() for p in head.parameters() if p.requires_grad) == case["n_trainable"]
    assert error(head.base_text_features, arrays[f"{name}.base"]) < FORWARD

    def check(suffix: str, loss_key: str) -> None:
        assert error(trainer.model_inference(features), arrays[f"{name}.logits{suffix}"]) < FORWARD
        train_features, label = trainer.parse_batch_train(golden_inputs.batch(case["model"], 0))
        loss = trainer.loss(head(train_features), label)
        assert loss.item() == pytest.approx(case[loss_key], rel=FORWARD)
        trainer.model_zero_grad()
        loss.backward()
        assert error(head.text_feature_residuals.grad, arrays[f"{name}.grad{suffix}"]) < GRADIENT

    check("0", "loss0")
    shape, seed = tuple(case["residual_shape"]), TASKRES["res_seed"]
    residual = golden_inputs.array(seed, *shape, scale=TASKRES["res_scale"])
    head.text_feature_residuals.data.copy_(torch.from_numpy(residual))
    check("_r", "loss_r")


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("name", [n for n in TASKRES["cases"] if "steps" in TASKRES["cases"][n]])
def test_taskres_training_steps_equal_the_references(golden, golden_trainer, golden_inputs, error, name):
    case, arrays = TASKRES["cases"][name], golden.npz("taskres")
    options = [*taskres_options(name, case), "OPTIM.NAME", case["optim"], "OPTIM.MAX_EPOCH", "100"]
    if not name.endswith(".yaml"):
        options += ["OPTIM.WARMUP_EPOCH", "-1", "OPTIM.LR", "0.002", "OPTIM.LR_SCHEDULER", "single_step"]
    trainer = golden_trainer("TaskRes", case["model"], case["dataset"], *options, method_file="_base.yaml")
    trainer.num_batches = 2 if name.endswith(".yaml") else len(case["steps"]) + 1
    trainer.set_model_mode("train")
    for step in case["steps"]:
        trainer.batch_idx = step["step"] % trainer.num_batches
        assert trainer.get_current_lr() == pytest.approx(step["lr"], rel=1e-9)
        found = trainer.forward_backward(golden_inputs.batch(case["model"], step["step"]))
        assert found["loss"] == pytest.approx(step["loss"], rel=STEPS)
        assert found["acc"] == pytest.approx(step["acc"])
    assert error(trainer.head.text_feature_residuals, arrays[f"{name}.residual"]) < STEPS
    trainer.set_model_mode("eval")
    logits = trainer.model_inference(trainer.encode_image(golden_inputs.images(case["model"])))
    assert error(logits, arrays[f"{name}.logits_final"]) < STEPS


@pytest.mark.slow_after(5)
@pytest.mark.parametrize("name", list(ZERO_SHOT["cases"]))
def test_zero_shot_text_features_and_logits_equal_the_references(golden, golden_trainer, golden_inputs, error, name):
    backbone, method, dataset = name.split(".")
    arrays = golden.npz("zeroshot")
    trainer = golden_trainer(method, backbone, dataset)
    assert trainer.templates() == ZERO_SHOT["cases"][name]["templates"]
    assert error(trainer.head.prototypes, arrays[f"{name}.text_features"]) < FORWARD
    logits = trainer.model_inference(trainer.encode_image(golden_inputs.images(backbone)))
    assert error(logits, arrays[f"{name}.logits"]) < FORWARD


@pytest.mark.slow
def test_building_many_datasets_in_one_process_never_grows_the_templates(golden_trainer):
    for dataset in ("ImageNet", "OxfordPets", "EuroSAT", "ImageNet"):
        trainer = golden_trainer("ZeroshotCLIP2", "vit0", dataset)
        assert len(trainer.templates()) == (7 if dataset == "ImageNet" else 8)
        assert len(golden_trainer("TaskRes", "vit0", dataset).templates()) == (8 if dataset == "ImageNet" else 1)
