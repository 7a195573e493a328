"""ProLIP against the numbers that its authors' code printed; see tests/golden2/README.md."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_count import plain
from safetensors.torch import save_file

from dassl_lite.data.feature_files import FeatureFile, FeaturePart, write_feature_file
from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.models.clip import load_clip
from dassl_lite.utils import UserError, set_random_seed

FOLDER = Path(__file__).parents[1] / "golden2"
PROLIP, META = (json.loads((FOLDER / f"{name}.json").read_text()) for name in ("prolip", "meta"))
CASES, INPUTS = PROLIP["cases"], PROLIP["inputs"]
FORWARD, GRADIENT, STEPS = 1e-5, 1e-4, 1e-3
VIEWS = max(case["cfg"]["aug_views"] for case in CASES.values())


@pytest.fixture(scope="module")
def files(golden2, tmp_path_factory):
    """``files("vit0")``: a feature file with states, of the images of a model that are drawn again, and its CLIP."""
    folder, made = tmp_path_factory.mktemp("prolip"), {}

    def make(tag):
        if tag in made:
            return made[tag]
        kind, seed, scale = META["params"][tag.rstrip("0123456789")]
        tiny, path = golden2.tiny_clip, folder / f"{tag}.npz"
        save_file(tiny.state_dict(kind, seed, scale), folder / f"{tag}.safetensors")
        clip = load_clip(str(folder / f"{tag}.safetensors"))
        names, base, shots = INPUTS["classnames"], INPUTS["images_seed_base"], INPUTS["shots"]

        def part(labels, *seeds):
            images = [tiny.images(kind, base + one, len(labels)) for one in seeds]
            with torch.no_grad():
                both = [clip.encode_image_states(one) for one in images]
            features, states = (np.stack([pair[i].numpy() for pair in both]) for i in (0, 1))
            return FeaturePart(features, labels, states=states)

        count = len(names)
        with torch.no_grad():
            text = [
                clip.encode_text(clip.tokenize([one.format(name.replace("_", " ")) for name in names]))
                for one in INPUTS["templates"]
            ]
        weight, bias = clip.image_projection
        file = FeatureFile(
            parts={
                "train": part(np.repeat(np.arange(count), shots), *range(VIEWS)),
                "val": part(np.arange(INPUTS["n_val"]) % count, 50),
                "test": part(np.arange(INPUTS["n_test"]) % count, 60),
            },
            classnames=tuple(names),
            text_weights=torch.stack(text).numpy(),
            templates=tuple(INPUTS["templates"]),
            ensemble_templates=tuple(INPUTS["templates"]),
            projection=weight.detach().contiguous().numpy(),
            projection_bias=None if bias is None else bias.detach().numpy(),
        )
        write_feature_file(file, path)
        made[tag] = path, clip, file
        return made[tag]

    return make


def build(path, output, *options, method_file="default"):
    flags = {"DATASET": {"NAME": "Features", "FILE": str(path)}, "OUTPUT_DIR": str(output)}
    set_random_seed(0)
    options = ("DATASET.NUM_SHOTS", "-1", *options)
    return build_trainer(make_config(trainer="ProLIP", method_file=method_file, flags=flags, options=options))


def options_of(case):
    cfg = case["cfg"]
    by = "shots" if cfg["lambda_funct_1_N"] else "squared_shots" if cfg["lambda_funct_1_N2"] else "value"
    own = {"LAMBDA_BY": by, "LAMBDA": float(cfg["lambda_v"]), "SEARCH": cfg["search_lr"]}
    found = {f"TRAINER.ProLIP.{name}": value for name, value in own.items()}
    found |= {"OPTIM.LR": cfg["lr_v"], "OPTIM.MAX_EPOCH": cfg["train_epoch"]}
    return [str(part) for option in found.items() for part in option]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_prolip_equals_its_authors(golden2, files, error, tmp_path, name):
    tag, case, arrays = name.split(".")[0], CASES[name], golden2.npz("prolip")
    path, _, file = files(tag)
    trainer = build(path, tmp_path, *options_of(case))
    head, resnet, step, seen = trainer.head, tag.startswith("rn"), trainer.forward_backward, []
    assert error(head.text_features.t(), arrays[f"{tag}.text_weights"]) < FORWARD
    for part, content in file.parts.items():
        for view, states in enumerate(content.states):
            key = f"{tag}.pre.{part}{view if part == 'train' else ''}"
            if key in arrays:
                assert error(states, arrays[key]) < FORWARD

    def same(key, found, tolerance):
        if f"{name}.{key}" in arrays:
            assert error(found.t() if resnet and found.dim() == 2 else found, arrays[f"{name}.{key}"]) < tolerance, key

    def recorded(batch):
        number = len(seen)
        expected = case["steps"][number]
        features, label = trainer.parse_batch_train(batch)
        assert torch.equal(features, trainer.train_loader_x.views[expected["view"]])
        logits = trainer.head(features)
        if number == 0 and f"{name}.train_logits0" in arrays:
            assert error(logits, arrays[f"{name}.train_logits0"]) < FORWARD
        assert F.cross_entropy(logits, label).item() == pytest.approx(expected["ce"], rel=STEPS)
        loss, distance = trainer.loss(logits, label), head.distance()
        assert distance.item() == pytest.approx(expected["mse"], rel=STEPS, abs=1e-9)
        assert loss.item() == pytest.approx(expected["loss"], rel=STEPS)
        (gradient,) = torch.autograd.grad(loss, head.weight)
        same(f"grad{number}", gradient, GRADIENT if number == 0 else STEPS)
        same(f"W{number - 1}", head.weight, STEPS)  # after the step before
        found = step(batch)
        assert trainer.get_current_lr() == pytest.approx(expected["lr_after"], abs=1e-12)
        seen.append(head.weight.detach().clone())
        same(f"W{number}", head.weight, STEPS)
        return found

    before_train = trainer.before_train

    def after_search():
        before_train()
        assert head.penalty.item() == pytest.approx(case["used"]["lam"])
        assert trainer.get_current_lr() == pytest.approx(case["used"]["lr"])
        trainer.forward_backward = recorded

    trainer.before_train = after_search
    trainer.train()
    assert len(seen) == len(case["steps"])
    if case["search"]:
        search = json.loads((tmp_path / "prolip" / "search.json").read_text())
        assert (search["lr"], search["lambda"]) == (case["used"]["lr"], case["used"]["lam"])
        assert np.array(search["grid"]) == pytest.approx(np.array(case["search"]))
    same("W_final", head.weight, STEPS)
    with torch.no_grad():
        logits = trainer.model_inference(torch.from_numpy(plain(arrays[f"{tag}.pre.test"])))
    assert error(logits, arrays[f"{name}.test_logits"]) < STEPS
    assert trainer.results["test"]["accuracy"] == pytest.approx(case["test_acc"])


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["vit0", "rn1"])
def test_projected_states_are_the_models_own_features(files, golden2, tag):
    _, clip, _ = files(tag)
    images = golden2.tiny_clip.images(tag.rstrip("01"), 3, 5)
    with torch.no_grad():
        own = clip.model.encode_image(images)
        features, states = clip.encode_image_states(images)
        hooked = clip.visual.register_forward_pre_hook(lambda *_: None)  # takes the model's own forward
        other = clip.encode_image_states(images)
        hooked.remove()
        for found in (features, clip.image_projection(states), other[0], clip.image_projection(other[1])):
            torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-5 * own.abs().max().item())
        torch.testing.assert_close(clip.model.encode_image(images), own, rtol=0, atol=0)


@pytest.mark.slow
def test_a_run_with_a_search_is_resumed_bit_identical_and_does_not_search_again(files, tmp_path, monkeypatch):
    options = ("TRAINER.ProLIP.SEARCH", "True", "OPTIM.MAX_EPOCH", "3", "TRAIN.CHECKPOINT_FREQ", "1")
    path = files("vit0")[0]
    whole = build(path, tmp_path, *options)
    whole.train()
    (tmp_path / "prolip" / "model.pth.tar-3").unlink()
    again = build(path, tmp_path, *options)
    monkeypatch.setattr(type(again), "search", lambda *_: pytest.fail("searched again"))
    again.train()
    assert again.start_epoch == 2
    for name, value in whole.head.state_dict().items():
        assert torch.equal(again.head.state_dict()[name], value), name


@pytest.mark.slow
def test_the_projection_serves_other_classes(files, tmp_path):
    path, _, file = files("vit0")
    trained = build(path, tmp_path / "run", "OPTIM.MAX_EPOCH", "3", "OPTIM.LR", "0.001")
    trained.train()
    other = dataclasses.replace(file, classnames=tuple(f"new {name}" for name in file.classnames))
    write_feature_file(other, tmp_path / "other.npz")
    found = build(tmp_path / "other.npz", tmp_path / "other")
    found.load_model(tmp_path / "run")
    assert torch.equal(found.head.weight, trained.head.weight)
    assert found.test() == trained.results["test"]["accuracy"]
    assert found.zero_shot() == trained.zero_shot()


def test_a_transductive_step_compares_projected_states(files, tmp_path):
    trainer = build(files("vit0")[0], tmp_path, "TEST.TRANSDUCTIVE", "True", "OPTIM.MAX_EPOCH", "1")
    trainer.train()
    states = next(iter(trainer.test_loader))["feature"]
    assert trainer.embed(states).shape[1] == trainer.clip.embed_dim


def test_a_feature_file_without_states_is_refused_in_one_line(files, tmp_path):
    file = files("vit0")[2]
    parts = {name: FeaturePart(part.views, part.labels) for name, part in file.parts.items()}
    write_feature_file(dataclasses.replace(file, parts=parts, projection=None), tmp_path / "plain.npz")
    with pytest.raises(UserError, match="ProLIP needs the states before .* tools/extract.py --states writes them"):
        build(tmp_path / "plain.npz", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projection": None}, "the array projection is missing"),
        ({"projection": np.zeros((64, 32), np.float32)}, "train_states and projection do not give the features"),
        ({"projection": np.zeros((60, 32), np.float32)}, "train_states has width 64, but projection has shape"),
        ({"projection_bias": np.zeros(7, np.float32)}, "projection_bias has shape"),
    ],
)
def test_states_that_do_not_fit_are_refused_by_their_name(files, tmp_path, change, message):
    write_feature_file(dataclasses.replace(files("vit0")[2], **change), tmp_path / "bad.npz")
    with pytest.raises(UserError, match=message):
        build(tmp_path / "bad.npz", tmp_path)


def test_an_encoder_without_a_projection_is_refused_in_one_line(files):
    clip = files("vit0")[1]
    own = clip.visual.proj
    try:
        clip.visual.proj = None
        with pytest.raises(UserError, match="does not end in a projection"):
            _ = clip.image_projection
    finally:
        clip.visual.proj = own
