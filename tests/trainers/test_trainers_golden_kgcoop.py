"""KgCoOp, ProGrad and TCP against the numbers that their authors' code printed; see tests/golden2/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dassl_lite.data import DATASET_REGISTRY, DatasetBase, Datum
from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.engine.plugins import load_plugins

FOLDER = Path(__file__).parents[1] / "golden2"
META = json.loads((FOLDER / "meta_prompts.json").read_text())["params"]
METHODS = {"kgcoop": "KgCoOp", "prograd": "ProGrad", "tcp": "TCP"}
CASES = {
    (file, name): case
    for file in METHODS
    for name, case in json.loads((FOLDER / f"{file}.json").read_text())["cases"].items()
    if not name.startswith("quirk")
}
FORWARD, GRADIENT, STEPS = 1e-5, 1e-4, 1e-3
load_plugins()


def options_of(file: str, name: str, case: dict[str, Any]) -> list[str]:
    """The case's keys, and its optimiser: SGD or Adam at a constant rate."""
    method, words = METHODS[file], "_init" in name
    node: dict[str, Any] = {"N_CTX": case.get("n", 4)} | ({"CSC": case["csc"]} if "csc" in case else {})
    node["CTX_INIT"] = words if file == "prograd" else "a photo of a" if words else ""
    node |= {key.upper(): case[value] for key, value in {"w": "w", "lambda": "lam", "t": "T"}.items() if value in case}
    rate = json.loads((FOLDER / f"{file}.json").read_text())["lr"]
    optim = {"NAME": case.get("opt", "sgd"), "LR": rate, "LR_SCHEDULER": "single_step", "WARMUP_EPOCH": -1}
    values = {**{f"TRAINER.{method}.{key}": value for key, value in node.items()}}
    values |= {f"OPTIM.{key}": value for key, value in optim.items()} | {"OPTIM.WEIGHT_DECAY": 5e-4}
    return [str(part) for option in values.items() for part in option]


@pytest.fixture(scope="module")
def build(golden2: Any, error: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``build("kgcoop", "vit20_OxfordPets_w8_init")``: the trainer of a case, at its start."""
    folder, tiny, names = tmp_path_factory.mktemp("prompts"), golden2.tiny_clip, META["classnames"]
    items = [Datum(f"{label}.png", label, classname=name) for label, name in enumerate(names)]

    def make(file: str, name: str) -> Any:
        case, arrays = CASES[file, name], golden2.npz(file)
        model = META["models"][case["model"]]
        weights = folder / f"{case['model']}.safetensors"
        if not weights.exists():
            save_file(tiny.state_dict(model["kind"], model["seed"], model["scale"], **model["override"]), weights)
        like = DATASET_REGISTRY.get(case["ds"])

        class Dataset(DatasetBase):
            template, method_templates = like.template, like.method_templates

            def __init__(self, cfg: Any) -> None:
                super().__init__(train_x=items, test=items)

        DATASET_REGISTRY.register(Dataset, name="GoldenPrompts", force=True)
        flags = {
            "DATASET": {"NAME": "GoldenPrompts", "FEATURES": {"VIEWS": 0}},
            "MODEL": {"BACKBONE": {"NAME": str(weights)}},
            "OUTPUT_DIR": str(folder / "run"),
        }
        trainer = build_trainer(make_config(trainer=METHODS[file], flags=flags, options=options_of(file, name, case)))
        assert sum(p.numel() for p in trainer.head.parameters() if p.requires_grad) == case["n_trainable"]
        assert [f"prompt_learner.{key}" for key in trainer.head.state_dict()] == case["trainable"]
        parameters, rng = dict(trainer.head.named_parameters()), np.random.RandomState(case.get("param_seed") or 0)
        for key, shape, scale in case.get("param_order", ()):
            drawn = torch.from_numpy((scale * rng.randn(*shape)).astype(np.float32))
            parameters[key.removeprefix("prompt_learner.")].data.copy_(drawn)
        if "perturb_seed" in case:
            shape = trainer.head.ctx.shape
            trainer.head.ctx.data += torch.from_numpy(
                tiny.array(case["perturb_seed"], *shape, scale=case["perturb_scale"])
            )
        for key, parameter in parameters.items():
            assert error(parameter, arrays[f"{name}.init.prompt_learner.{key}"]) < 1e-6
        return trainer

    return make


def batch(tiny: Any, kind: str, step: int) -> dict[str, torch.Tensor]:
    classes, size = len(META["classnames"]), META["bs"]
    labels = np.random.RandomState(META["label_seed"] + step).randint(0, classes, size=size)
    return {"img": tiny.images(kind, META["batch_seed"] + step, size), "label": torch.from_numpy(labels)}


def losses(case: dict[str, Any]) -> list[dict[str, float]]:
    """What is logged of each step, by our names."""
    names = {"loss": "loss", "xe_loss": "loss", "kl_loss": "distance", "acc": "acc"}
    return [{ours: step[theirs] for theirs, ours in names.items() if theirs in step} for step in case["steps"]]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "name"), list(CASES))
def test_a_method_equals_its_authors(golden2, build, error, file, name):
    case, arrays, trainer = CASES[file, name], golden2.npz(file), build(file, name)
    tiny, kind = golden2.tiny_clip, META["models"][case["model"]]["kind"]

    def differ(key: str, found: torch.Tensor) -> float:
        return error(found, arrays[f"{name}.{key}"])

    head, layout = trainer.head, trainer.head.layout
    expected = arrays[f"{name}.tokenized"]
    behind = layout.behind.shape[1]
    assert np.array_equal(layout.behind.numpy(), expected[:, 1 + layout.n_ctx :][:, :behind])
    assert not np.asarray(expected)[:, 1 + layout.n_ctx + behind :].any()
    trainer.set_model_mode("eval")
    features = trainer.encode_image(tiny.images(kind, META["eval_seed"], META["n_eval"]))
    assert differ("image_features", features) < FORWARD
    assert differ("teacher_text", trainer.teacher) < FORWARD
    assert differ("text_features", head.class_features()) < FORWARD
    assert differ("logits", trainer.model_inference(features)) < FORWARD
    trainer.set_model_mode("train")
    trainer.num_batches = len(case["steps"]) + 1
    gradients: list[tuple[str, torch.Tensor]] = []
    for key, parameter in head.named_parameters():
        parameter.register_hook(lambda gradient, key=key: gradients.append((key, gradient.clone())))
    if file == "tcp":
        assert differ("class_prompts", head.class_prompts()) < FORWARD
    if file == "prograd":
        images, _ = trainer.parse_batch_train(batch(tiny, kind, 0))
        zero_shot = head.scale * F.normalize(images, dim=-1) @ trainer.teacher.t()
        assert differ("teacher_logits", zero_shot) < FORWARD
    taken = {}
    trainer.optim.register_step_pre_hook(
        lambda *_: taken.update({key: p.grad.clone() for key, p in head.named_parameters()})
    )
    for step, logged in enumerate(losses(case)):
        trainer.batch_idx = step
        found = trainer.forward_backward(batch(tiny, kind, step))
        assert found == pytest.approx(logged, rel=GRADIENT if not step else STEPS)
        if step:
            continue
        for key, gradient in taken.items():
            assert differ(f"grad.prompt_learner.{key}", gradient) < GRADIENT, key
        if file == "prograd":
            guide, own = gradients
            assert differ("grad_kl", guide[1]) < STEPS
            assert differ("grad_xe", own[1]) < GRADIENT
    tolerance = STEPS
    for key, parameter in head.named_parameters():
        assert differ(f"final.prompt_learner.{key}", parameter) < tolerance, key
    trainer.set_model_mode("eval")
    assert differ("final_logits", trainer.model_inference(features)) < tolerance
