"""CLAP, ZS-LP and other starts under CLAP's protocol against its authors' numbers; see tests/golden2/README.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_count import plain
from safetensors.torch import save_file
from torch import nn

from dassl_lite.data import DATASET_REGISTRY, DatasetBase, Datum
from dassl_lite.data.feature_cache import Features
from dassl_lite.data.feature_cache.loader import FeatureLoader
from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.models.key_value_cache import KeyValueCache
from dassl_lite.trainers.clip_adapter import FeatureAdapters
from dassl_lite.trainers.taskres import TaskResidual
from dassl_lite.utils import set_random_seed

FOLDER = Path(__file__).parents[1] / "golden2"
CLAP, META = (json.loads((FOLDER / f"{name}.json").read_text()) for name in ("clap", "meta"))
CASES, INPUTS = CLAP["cases"], CLAP["inputs"]
FORWARD, GRADIENT, STEPS = 1e-5, 1e-4, 1e-3


class RawCache(KeyValueCache):
    """Tip-Adapter as CLAP's authors run it: raw features meet normalised keys, which start as raw means."""

    def forward(self, image_features):
        zero_shot = self.scale * F.normalize(image_features, dim=-1) @ F.normalize(self.text_features, dim=-1).t()
        return zero_shot + self._vote(image_features @ F.normalize(self.keys, dim=-1).t(), self.beta)


def other_start(init, trainer):
    """The head of a method that the authors compare with, on the same protocol, and its name for each parameter."""
    text, scale = trainer.text_rows(verbatim=True).means(), trainer.clip.logit_scale.exp()
    if init == "TR":
        return TaskResidual(text, 0.5, scale.log()), {"text_feature_residuals": "prototypes"}
    if init == "ClipA":
        return FeatureAdapters(text, scale, 0.2, 0.0, 4), {f"fc.{i}.weight": f"mlp.{i}.weight" for i in (0, 2)}
    head = RawCache(text, scale.item(), trainable=True)
    head.keys = nn.Parameter(trainer.views.mean(dim=0))
    head.values = F.one_hot(trainer.labels, len(text)).float()
    return head, {"keys": "cache_keys"}


def options_of(case):
    found = ["OPTIM.MAX_EPOCH", "300", "OPTIM.LR", str(case["lr"]), "DATALOADER.TRAIN_X.BATCH_SIZE", str(case["bs"])]
    method = "ZSLP" if case["con"] == "none" else "CLAP"
    if case["init"] == "RANDOM":
        found += [f"TRAINER.{method}.INIT", "random"]
    if case["init"] == "CrossModal":
        found += [f"TRAINER.{method}.TEXT_ROWS", "True"]
    return method, found + (["TRAINER.CLAP.CONSTRAINT", case["con"]] if method == "CLAP" else [])


@pytest.fixture
def build(golden2, tmp_path):
    """``build("vit0.clap")``: the trainer of a case, on features of images that are drawn again, not trained yet."""
    tiny, names = golden2.tiny_clip, INPUTS["classnames"]

    def make(name):
        case, tag = CASES[name], name.split(".")[0]
        kind, seed, scale = META["params"][tag.rstrip("0123456789")]
        assert tag == f"{kind}{seed}"
        weights = tmp_path / f"{tag}.safetensors"
        save_file(tiny.state_dict(kind, seed, scale), weights)
        train = [
            Datum(f"{i}.png", i // INPUTS["shots"], classname=names[i // INPUTS["shots"]])
            for i in range(case["n_train"])
        ]
        test = [Datum(f"{i}.png", i % len(names), classname=names[i % len(names)]) for i in range(INPUTS["n_test"])]

        like = DATASET_REGISTRY.get(f"Golden{case['ds']}")

        class Dataset(DatasetBase):
            template, ensemble_templates = like.template, like.ensemble_templates

            def __init__(self, cfg):
                super().__init__(train_x=train, test=test)

        DATASET_REGISTRY.register(Dataset, name="GoldenClap", force=True)
        method, options = options_of(case)
        flags = {
            "DATASET": {"NAME": "GoldenClap", "FEATURES": {"VIEWS": 0}},
            "MODEL": {"BACKBONE": {"NAME": str(weights)}},
            "OUTPUT_DIR": str(tmp_path / "run"),
        }
        trainer = build_trainer(make_config(trainer=method, method_file="default", flags=flags, options=options))
        base = INPUTS["base"]
        images = [tiny.images(kind, base + view, len(train)) for view in range(case["reps"])]
        trainer.views, trainer.labels = (
            torch.stack([trainer.encode_image(i) for i in images]),
            torch.tensor([d.label for d in train]),
        )
        trainer.test_features = trainer.encode_image(tiny.images(kind, base + 60, len(test)))

        def loader(images, items, features):
            kept = torch.ones(len(items), dtype=torch.bool)
            return FeatureLoader(images, items, lambda: Features(features, kept), trainer.device)

        trainer.train_loader_x = loader(trainer.train_loader_x, train, trainer.views)
        trainer.test_loader = loader(trainer.test_loader, test, trainer.test_features[None])
        trainer.names = {"prototypes": "prototypes"}
        if case["init"] not in ("ZS", "RANDOM", "CrossModal"):
            trainer.head, trainer.names = other_start(case["init"], trainer)
            trainer._models[trainer.model_name] = trainer.model.head = trainer.head
            trainer.optim = trainer._optims[trainer.model_name] = torch.optim.SGD(
                trainer.head.parameters(), case["lr"], momentum=0.9
            )
            trainer.sched = trainer._scheds[trainer.model_name] = trainer.build_schedule()
        return trainer

    return make


class Recorder:
    """Compares each step of a training with the authors' while it runs."""

    def __init__(self, trainer, name, arrays, error):
        self.trainer, self.name, self.arrays, self.error = trainer, name, arrays, error
        self.case, self.step, self.epoch = CASES[name], 0, 0
        self.forward_backward, self.run_epoch = trainer.forward_backward, trainer.run_epoch
        trainer.forward_backward, trainer.run_epoch = self.one_step, self.one_epoch

    def same(self, key, found, tolerance):
        if f"{self.name}.{key}" in self.arrays:
            assert self.error(found, self.arrays[f"{self.name}.{key}"]) < tolerance, key

    def one_step(self, batch):
        trainer, expected = self.trainer, self.case["steps"][self.step]
        features, label = trainer.parse_batch_train(batch)
        assert len(label) == expected["n"]
        logits = trainer.head(features)
        loss = trainer.loss(logits, label)
        self.same(f"step{self.step}.logits", logits, FORWARD if not self.step else STEPS)
        for (name, _), grad in zip(
            trainer.head.named_parameters(), torch.autograd.grad(loss, list(trainer.head.parameters())), strict=True
        ):
            self.same(f"step{self.step}.grad.{trainer.names[name]}", grad, GRADIENT if not self.step else STEPS)
        assert loss.item() == pytest.approx(expected["loss"], rel=STEPS)
        assert F.cross_entropy(logits, label).item() == pytest.approx(expected["ce"], rel=STEPS)
        assert trainer.get_current_lr() == pytest.approx(expected["lr"])
        found = self.forward_backward(batch)
        right = trainer.head(trainer.test_features).argmax(dim=1).numpy() == np.arange(INPUTS["n_test"]) % len(
            INPUTS["classnames"]
        )
        assert 100 * right.mean() == pytest.approx(expected["acc_test"])
        self.step += 1
        return found

    def one_epoch(self):
        count = len(self.trainer.train_loader_x.labels) // (2 if self.case["init"] == "CrossModal" else 1)
        state = np.random.get_state()
        if self.case["init"] == "CrossModal":
            np.random.choice(2 * count, count)
        assert np.array_equal(np.random.rand(count).argsort(), self.arrays[f"{self.name}.perms"][self.epoch])
        np.random.set_state(state)
        self.same(f"epoch{self.epoch}.alpha_before_outer", getattr(self.trainer.head, "strength", None), STEPS)
        self.run_epoch()
        self.epoch += 1


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES, key=lambda name: (not name.endswith(".clap"), name)))
def test_a_run_equals_the_authors(golden2, build, error, name):
    case, arrays, trainer = CASES[name], golden2.npz("clap"), build(name)
    head, recorder = trainer.head, Recorder(trainer, name, arrays, error)
    recorder.same("base_text", trainer.text_rows(verbatim=True).means(), FORWARD)
    recorder.same("features_test", trainer.test_features, FORWARD)
    for own, theirs in trainer.names.items():  # what starts at random
        if f"{name}.init.{theirs}" in arrays:
            head.get_parameter(own).data.copy_(torch.from_numpy(plain(arrays[f"{name}.init.{theirs}"])))
    set_random_seed(0)
    np.random.seed(INPUTS["numpy_seed"])
    fit = trainer.fit

    def fitted():
        fit()
        if case["init"].startswith("TipA"):  # the rows are the means over the views
            trainer.train_loader_x.features, trainer.train_loader_x.labels = trainer.views.mean(dim=0), trainer.labels
        rows = trainer.train_loader_x
        recorder.same("features_train", rows.features, FORWARD)
        recorder.same("labels_train", rows.labels, FORWARD)
        recorder.same("alpha0", getattr(head, "strength", None), FORWARD)
        recorder.same("logits_zs", head(rows.features), FORWARD)

    trainer.fit = fitted
    trainer.train(max_epoch=len(arrays[f"{name}.perms"]))
    assert recorder.step == len(case["steps"])
    assert trainer.get_current_lr() == pytest.approx(case["next_lr"])
    for own, theirs in trainer.names.items():
        assert error(head.get_parameter(own), arrays[f"{name}.final.{theirs}"]) < STEPS
    assert error(trainer.model_inference(trainer.test_features), arrays[f"{name}.test_logits"]) < STEPS
    recorder.same("alpha_final", getattr(head, "strength", None), STEPS)
    recorder.same("rho_final", getattr(head, "step", None), STEPS)
