"""Tip-Adapter and Tip-Adapter-F against the reference's numbers; tolerances as tests/golden/README.md suggests."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dassl_lite.data import DATASET_REGISTRY, DatasetBase, Datum
from dassl_lite.data.feature_cache import Features
from dassl_lite.data.feature_cache.loader import FeatureLoader

CASES = ["vit0", "rn1"]
FORWARD, GRADIENT, STEPS = 1e-5, 1e-4, 1e-3


@pytest.fixture(scope="module")
def q(golden):
    """The reference's settings."""
    return golden.json("tip_adapter")["q"]


@pytest.fixture(scope="module", autouse=True)
def _dataset(golden, q):
    names, arrays = golden.json("tip_adapter")["classnames"], golden.npz("tip_adapter")

    class GoldenTip(DatasetBase):
        ensemble_templates = tuple(q["dataset_templates"])

        def __init__(self, cfg):
            def items(split):
                labels = arrays[f"vit0.{split}_labels"].tolist()
                return [Datum(f"{split}{i}.png", label, classname=names[label]) for i, label in enumerate(labels)]

            super().__init__(train_x=items("train"), val=items("val"), test=items("test"))

    DATASET_REGISTRY.register(GoldenTip, name="GoldenTip", force=True)


class Batches:
    """Batches of images that are drawn from seeds; ``augmented``: others in each epoch."""

    def __init__(self, golden, kind, labels, size, first_seed, augmented):
        self.golden, self.kind, self.first_seed, self.augmented = golden, kind, first_seed, augmented
        self.parts, self.epoch = torch.as_tensor(labels).split(size), 0

    def __len__(self):
        return len(self.parts)

    def __iter__(self):
        tiny = self.golden.tiny_clip
        rule = self.golden.json("tip_adapter")
        prototypes = tiny.images(self.kind, rule["q"]["seed"], len(rule["classnames"]))
        for i, label in enumerate(self.parts):
            noise = tiny.array(self.first_seed + 100 * self.epoch + i, len(label), *prototypes.shape[1:])
            yield {"img": prototypes[label] + 0.8 * torch.from_numpy(noise), "label": label}
        self.epoch += self.augmented


@pytest.fixture
def build(golden, golden_trainer, q):
    """``build("TipAdapter", "vit0")``: a trainer on the reference's batches."""

    def make(method, name, *options):
        keys = {"ALPHA": q["init_alpha"], "BETA": q["init_beta"], "AUGMENT_EPOCH": q["aug"]}
        keys |= {"BETA_MAX": q["scale"][0], "ALPHA_MAX": q["scale"][1]}
        keys |= {"BETA_STEPS": q["step"][0], "ALPHA_STEPS": q["step"][1]}
        given = [word for key, value in keys.items() for word in (f"TRAINER.TipAdapter.{key}", str(value))]
        given += ["OPTIM.MAX_EPOCH", str(q["epochs"]), *options]
        trainer = golden_trainer(method, name, "Tip", *given, method_file="default.yaml")
        arrays, kind = golden.npz("tip_adapter"), name.rstrip("0123456789")

        def batches(split, size, seed, augmented=False):
            return Batches(golden, kind, arrays[f"{name}.{split}_labels"], size, q["seed"] + seed, augmented)

        def cache(loader, items, transform, views):
            epochs = batches("train", 8, 1000, augmented=True)

            def fetch():
                once = [torch.cat([trainer.encode_image(b["img"]) for b in epochs]) for _ in range(views)]
                return Features(torch.stack(once), torch.ones(len(items), dtype=torch.bool))

            return FeatureLoader(loader, items, fetch, trainer.device)

        trainer.features.loader = cache
        trainer.val_loader, trainer.test_loader = batches("val", 16, 3000), batches("test", 16, 4000)
        trainer.train_loader_x = batches("trainF", 8, 5000, augmented=True)
        return trainer

    return make


def features_of(trainer, loader):
    return torch.cat([trainer.encode_image(batch["img"]) for batch in loader])


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("name", CASES)
def test_tip_adapter_equals_the_reference(golden, build, error, q, name):
    arrays, expected = golden.npz("tip_adapter"), golden.json("tip_adapter")["cases"][name]
    trainer = build("TipAdapter", name)
    trainer.fit()
    head = trainer.head
    assert error(head.text_features.t(), arrays[f"{name}.clip_weights"]) < FORWARD
    assert error(head.keys.t(), arrays[f"{name}.cache_keys"]) < FORWARD
    assert np.array_equal(head.values.numpy(), arrays[f"{name}.cache_values"])

    val, test = (features_of(trainer, loader) for loader in (trainer.val_loader, trainer.test_loader))
    assert error(torch.nn.functional.normalize(val), arrays[f"{name}.val_features"]) < FORWARD
    assert error(torch.nn.functional.normalize(test), arrays[f"{name}.test_features"]) < FORWARD
    assert error(trainer.model_inference(test), arrays[f"{name}.tip_test_logits_best"]) < FORWARD

    found = json.loads((Path(trainer.output_dir) / "tip_adapter" / "search-1.json").read_text())
    assert found["betas"] == pytest.approx(expected["beta_list"])
    assert found["alphas"] == pytest.approx(expected["alpha_list"])
    assert [found["beta"], found["alpha"]] == pytest.approx(expected["search_best_beta_alpha"])
    assert error(torch.tensor(found["grid"]), arrays[f"{name}.search_grid"]) < FORWARD

    for j, run in enumerate(expected["runs"]):
        head.set_alpha_beta(run["alpha"], run["beta"])
        assert error(trainer.model_inference(val), arrays[f"{name}.run{j}.tip_val_logits"]) < FORWARD
    head.set_alpha_beta(0.0, 1.0)
    assert error(trainer.model_inference(val), arrays[f"{name}.zs_val_logits"]) < FORWARD
    assert error(trainer.model_inference(test), arrays[f"{name}.zs_test_logits"]) < FORWARD


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_tip_adapter_reports_the_references_test_accuracy(golden, build, name):
    trainer = build("TipAdapter", name)
    trainer.train()
    expected = golden.json("tip_adapter")["cases"][name]["runs"][0]["tip_test_acc"]
    assert trainer.results["test"]["accuracy"] == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_tip_adapter_f_trains_as_the_reference(golden, build, error, q, name):
    arrays, expected = golden.npz("tip_adapter"), golden.json("tip_adapter")["cases"][name]["F"]
    trainer = build("TipAdapterF", name)
    trainer.sched = trainer._scheds["tip_adapter_f"] = trainer.build_schedule()  # for the loader put in
    settings = {**trainer.optim.param_groups[0], "lr": 0.0}
    for key in ("lr", "betas", "eps", "weight_decay", "amsgrad", "initial_lr"):
        assert settings[key] == pytest.approx(
            tuple(expected["hyper"][key]) if key == "betas" else expected["hyper"][key]
        )
    losses, rates, weights, step = [], [], [], trainer.forward_backward

    def recorded(batch):
        if not losses:
            features, label = trainer.parse_batch_train(batch)
            assert error(trainer.head(features), arrays[f"{name}.F.logits_step0"]) < FORWARD
            trainer.loss(trainer.head(features), label).backward()
            assert error(trainer.head.keys.grad, arrays[f"{name}.F.grad_step0"]) < GRADIENT
        rates.append(trainer.get_current_lr())
        summary = step(batch)
        losses.append(summary["loss"])
        weights.append(trainer.head.keys.detach().clone())
        return summary

    trainer.forward_backward = recorded
    trainer.train()
    assert rates == pytest.approx(expected["lrs"], rel=1e-6)
    assert losses == pytest.approx(expected["losses"], rel=STEPS)
    assert trainer.get_current_lr() == pytest.approx(0.0, abs=1e-12)
    errors = [error(keys, arrays[f"{name}.F.weight_final"]) for keys in weights]
    assert min(errors) == errors[-1] < STEPS
    # The reference searches and tests with the epoch that is best on the test set, which we never do.
    (epoch,) = (int(found[1]) for line in expected["log"] if (found := re.search(r"at epoch: (\d+)", line)))
    trainer.head.keys.data = weights[(epoch + 1) * len(weights) // q["epochs"] - 1]
    trainer.search()
    assert [trainer.head.beta.item(), trainer.head.alpha.item()] == pytest.approx(expected["best_beta_alpha"])
    logits = trainer.model_inference(features_of(trainer, trainer.test_loader))
    assert error(logits, arrays[f"{name}.F.tip_test_logits_best"]) < STEPS
    assert (logits.argmax(-1) == torch.from_numpy(arrays[f"{name}.test_labels"])).float().mean().item() * 100 == (
        pytest.approx(expected["final_test_acc"], rel=1e-5)
    )
