"""TwoStage (2SFS) against the numbers that its authors' code printed; see tests/golden2/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_count import plain
from safetensors.torch import save_file

from dassl_lite.data import DATASET_REGISTRY, DatasetBase, Datum
from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.engine.plugins import load_plugins

FOLDER = Path(__file__).parents[1] / "golden2"
PRINTED, META = (json.loads((FOLDER / f"{name}.json").read_text()) for name in ("twostage", "meta"))
CASES, INPUTS = PRINTED["cases"], PRINTED["inputs"]
NAMES, SIZE = INPUTS["classnames"], 6
FORWARD, GRADIENT, STEPS = 1e-5, 1e-4, 1e-3
load_plugins()


def dataset_of(names: list[str], count: int) -> Any:
    items = [Datum(f"{i}.png", i % len(names), classname=names[i % len(names)]) for i in range(count)]

    class Dataset(DatasetBase):
        template = INPUTS["template"]

        def __init__(self, cfg: Any) -> None:
            super().__init__(train_x=items, test=items)

    return Dataset


@pytest.fixture(scope="module")
def build(golden2: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``build("vit0.ln")``: the trainer of a case; ``new``: on its other classes."""
    folder, tiny = tmp_path_factory.mktemp("two_stage"), golden2.tiny_clip
    count = len(golden2.npz("twostage")["train_order"])
    DATASET_REGISTRY.register(dataset_of(NAMES, count), name="GoldenTwoStage", force=True)
    DATASET_REGISTRY.register(dataset_of(INPUTS["new_classnames"], count), name="GoldenTwoStageNew", force=True)

    def make(name: str, new: str = "") -> Any:
        args, tag = CASES[name]["args"], name.partition(".")[0]
        kind, seed, scale = META["params"][tag.rstrip("0123456789")]
        assert tag == f"{kind}{seed}"
        weights = folder / f"{tag}.safetensors"
        save_file(tiny.state_dict(kind, seed, scale), weights)
        node = {
            "ENCODER": args["ln_modality"],
            "PEFT": args["peft"],
            "TEXT_START": args["ln_text_start"],
            "VISION_START": args["ln_vision_start"],
            "STAGE1_SHARE": args["n_iters_frac"],
            "STEPS_PER_SHOT": args["n_iters"],
        }
        values = {f"TRAINER.TwoStage.{key}": value for key, value in node.items()}
        values |= {"OPTIM.LR": args["lr"], "OPTIM.WEIGHT_DECAY": args["wd"], "DATASET.NUM_SHOTS": args["shots"]}
        flags = {
            "DATASET": {"NAME": f"GoldenTwoStage{new}", "FEATURES": {"VIEWS": 0}},
            "DATALOADER": {"TRAIN_X": {"BATCH_SIZE": SIZE}},
            "MODEL": {"BACKBONE": {"NAME": str(weights)}},
            "OUTPUT_DIR": str(folder / f"{name}{new}"),
        }
        options = [str(part) for option in values.items() for part in option]
        return build_trainer(make_config(trainer="TwoStage", method_file="_base", flags=flags, options=options))

    return make


class Batches:
    """The authors' batches, every epoch in the same order."""

    def __init__(self, tiny: Any, order: Any) -> None:
        order = torch.from_numpy(plain(order))
        self.images = tiny.images("vit", INPUTS["base"], len(order))[order]
        self.labels = torch.arange(len(NAMES)).repeat_interleave(INPUTS["shots"])[order]

    def __len__(self) -> int:
        return -(-len(self.labels) // SIZE)

    def __iter__(self) -> Any:
        for images, labels in zip(self.images.split(SIZE), self.labels.split(SIZE), strict=True):
            yield {"img": images, "label": labels}


@torch.no_grad()
def evaluate(trainer: Any, images: torch.Tensor) -> torch.Tensor:
    trainer.set_model_mode("eval")
    return trainer.model_inference(trainer.encode_image(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_both_stages_equal_the_authors(golden2, build, error, name):
    case, arrays, tiny, trainer = CASES[name], golden2.npz("twostage"), golden2.tiny_clip, build(name)
    trainer.train_loader_x = Batches(tiny, arrays["train_order"])
    trainer._images = (trainer.train_loader_x, *trainer._images[1:])
    trainer.max_epoch = sum(trainer.stage_epochs())
    trainer.sched = trainer._scheds["two_stage"] = trainer.build_schedule()
    head, model, expected = trainer.head, trainer.clip.model, iter(case["steps"])
    if "trainable_stage1" in case:
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == set(case["trainable_stage1"])
    start = {name: parameter.clone() for name, parameter in model.named_parameters()}
    own, logits, seen = trainer.forward_backward, [], []
    head.register_forward_hook(lambda module, given, out: logits.append(out))

    def same(key: str, found: Any, tolerance: float) -> None:
        if f"{name}.{key}" in arrays:
            assert error(found, arrays[f"{name}.{key}"]) < tolerance, key

    def step(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        printed, stage = next(expected), 2 if head.classifies else 1
        assert (printed["stage"], printed["n"]) == (stage, len(batch["label"]))
        assert trainer.get_current_lr() == pytest.approx(printed["lr"])
        first = f"stage{stage}" not in seen
        seen.append(f"stage{stage}")
        if first and stage == 2:
            after = dict(model.named_parameters())
            changed = {name for name in start if not torch.equal(start[name], after[name])}
            assert changed == set(case["changed_in_stage1"])
            for parameter in case["changed_in_stage1"]:
                same(f"stage1.final.{parameter}", after[parameter], STEPS)
            same("stage2.classifier0", head.classifier, STEPS)
        logits.clear()
        found = own(batch)
        assert found["loss"] == pytest.approx(printed["loss"], rel=STEPS)
        if first:
            before = FORWARD if stage == 1 or not case["changed_in_stage1"] else STEPS
            same(f"stage{stage}.logits0", logits[0], before)
            for parameter in case.get("trainable_stage1", ()) if stage == 1 else ():
                same(f"stage1.grad0.{parameter}", model.get_parameter(parameter).grad, GRADIENT)
            if stage == 2:
                same("stage2.grad0", head.classifier.grad, GRADIENT if before == FORWARD else STEPS)
        return found

    trainer.forward_backward = step
    trainer.after_train = lambda: None
    trainer.train()
    assert next(expected, None) is None
    same("stage2.classifier_final", head.classifier, STEPS)
    images = tiny.images("vit", INPUTS["base"] + 60, INPUTS["n_test"])
    found = evaluate(trainer, images)
    same("test_logits", found, STEPS)
    right = found.argmax(dim=1).numpy() == np.arange(len(images)) % len(NAMES)
    result = case["result"]
    assert 100 * right.mean() == pytest.approx(result.get("acc_test", result.get("acc_test_base")))
    if f"{name}.new_logits" not in arrays:
        return
    other = build(name, "New")
    other.load_model(trainer.output_dir)
    same("new_classifier", other.head.classifier, STEPS)
    images = tiny.images("vit", INPUTS["base"] + 61, len(arrays[f"{name}.new_logits"]))
    found = evaluate(other, images)
    same("new_logits", found, STEPS)
    right = found.argmax(dim=1).numpy() == np.arange(len(images)) % len(INPUTS["new_classnames"])
    assert 100 * right.mean() == pytest.approx(result["acc_test_new"])
