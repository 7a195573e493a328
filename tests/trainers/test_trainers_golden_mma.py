"""MMA against the numbers that its authors' code printed; see tests/golden2/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dassl_lite.data import DATASET_REGISTRY, DatasetBase, Datum
from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.engine.plugins import load_plugins

FOLDER = Path(__file__).parents[1] / "golden2"
PRINTED = json.loads((FOLDER / "mma.json").read_text())
META = json.loads((FOLDER / "meta_prompts.json").read_text())["params"]
FORWARD, GRADIENT, STEPS = 1e-5, 1e-4, 1e-3
LATER = 3  # steps after the first evaluation, of the cases of stale_cache
load_plugins()


def own_name(theirs: str) -> str:
    """adapter_learner.visual_adapter.2.down.0.weight -> vision.2.down.weight"""
    _, adapter, *path, leaf = theirs.split(".")
    part = {"text_adapter": "text", "visual_adapter": "vision", "shared_adapter": "shared"}[adapter]
    return ".".join([part, *(path[:1] if part == "shared" else path[:2]), leaf])


@pytest.fixture(scope="module")
def build(golden2: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``build("a2-3_d8_s0.5")``: the trainer of a case, with its weights."""
    folder, tiny, names = tmp_path_factory.mktemp("mma"), golden2.tiny_clip, META["classnames"]
    items = [Datum(f"{label}.png", label, classname=name) for label, name in enumerate(names)]

    class Dataset(DatasetBase):
        template = "a photo of a {}."

        def __init__(self, cfg: Any) -> None:
            super().__init__(train_x=items, test=items)

    DATASET_REGISTRY.register(Dataset, name="GoldenMMA", force=True)

    def make(name: str) -> Any:
        case = PRINTED["cases"][name]
        model = META["models"][case["model"]]
        weights = folder / f"{case['model']}.safetensors"
        if not weights.exists():
            save_file(tiny.state_dict(model["kind"], model["seed"], model["scale"], **model["override"]), weights)
        node = {"START": case["start"], "END": case["end"], "DIM": case["dim"], "SCALE": case["scale"]}
        optim = {"NAME": "sgd", "LR": PRINTED["lr"], "LR_SCHEDULER": "single_step", "WEIGHT_DECAY": 5e-4}
        values = {**{f"TRAINER.MMA.{key}": value for key, value in node.items()}}
        values |= {f"OPTIM.{key}": value for key, value in optim.items()}
        flags = {
            "DATASET": {"NAME": "GoldenMMA", "FEATURES": {"VIEWS": 0}},
            "MODEL": {"BACKBONE": {"NAME": str(weights)}},
            "OUTPUT_DIR": str(folder / "run"),
        }
        options = [str(part) for option in values.items() for part in option]
        trainer = build_trainer(make_config(trainer="MMA", flags=flags, options=options))
        parameters, rng = dict(trainer.head.adapters.named_parameters()), np.random.RandomState(case["param_seed"])
        assert set(parameters) == set(map(own_name, case["trainable"]))
        assert sum(p.numel() for p in trainer.head.parameters()) == case["n_trainable"]
        for theirs, shape, scale in case["param_order"]:
            parameters[own_name(theirs)].data.copy_(torch.from_numpy((scale * rng.randn(*shape)).astype(np.float32)))
        return trainer

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTED["cases"])
def test_a_run_equals_the_authors_and_its_text_features_are_never_stale(golden2, build, error, name):
    case, arrays, trainer, tiny = PRINTED["cases"][name], golden2.npz("mma"), build(name), golden2.tiny_clip
    images = tiny.images("vit", META["eval_seed"], META["n_eval"])
    parameters = dict(trainer.head.adapters.named_parameters())

    @torch.no_grad()
    def evaluate() -> torch.Tensor:
        trainer.set_model_mode("eval")
        with trainer.head.evaluating():
            return trainer.model_inference(trainer.encode_image(images))

    def step(number: int) -> float:
        labels = np.random.RandomState(META["label_seed"] + number).randint(0, len(META["classnames"]), META["bs"])
        batch = tiny.images("vit", META["batch_seed"] + number, META["bs"])
        trainer.set_model_mode("train")
        return trainer.forward_backward({"img": batch, "label": torch.from_numpy(labels)})["loss"]

    for theirs in case["trainable"]:
        assert error(parameters[own_name(theirs)], arrays[f"{name}.init.{theirs}"]) == 0
    tokens = trainer.clip.tokenize([f"a photo of a {n.replace('_', ' ')}." for n in META["classnames"]])
    np.testing.assert_array_equal(tokens.numpy(), arrays[f"{name}.tokenized"])
    with torch.no_grad():
        assert error(trainer.clip.encode_text(tokens), arrays[f"{name}.text_features"]) < FORWARD
        assert error(trainer.clip.model.encode_text(tokens), arrays[f"{name}.text_features"]) < FORWARD
        assert error(trainer.encode_image(images), arrays[f"{name}.image_features"]) < FORWARD
    assert error(evaluate(), arrays[f"{name}.logits"]) < FORWARD
    for number, expected in enumerate(case["steps"]):
        assert step(number) == pytest.approx(expected["loss"], rel=GRADIENT if not number else STEPS)
        for theirs in case["trainable"] if not number else ():
            assert error(parameters[own_name(theirs)].grad, arrays[f"{name}.grad.{theirs}"]) < GRADIENT, theirs
    for theirs in case["trainable"]:
        assert error(parameters[own_name(theirs)], arrays[f"{name}.final.{theirs}"]) < STEPS, theirs
    assert error(evaluate(), arrays[f"{name}.final_logits"]) < STEPS
    fresh = f"quirk.stale_cache.{name}.logits_fresh"
    for number in range(len(case["steps"]), len(case["steps"]) + LATER) if fresh in arrays else ():
        step(number)
    assert error(evaluate(), arrays[fresh] if fresh in arrays else arrays[f"{name}.final_logits"]) < STEPS
