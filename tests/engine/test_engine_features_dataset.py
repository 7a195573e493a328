"""Training on a file of features: every method without an encoder works as on images, the others say what they lack."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import ToyTrainer

from dassl_lite.data.feature_files import FeatureFile, FeaturePart, write_feature_file
from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.engine.commands.evaluate import config_for, evaluate, stored_config
from dassl_lite.models import clip
from dassl_lite.utils import UserError, set_random_seed

NAMES, IDS = ("cat", "dog", "red fox", "owl"), ("", "", "n03", "n04")
WIDTH, PER_CLASS = 8, 6
FEATURE_METHODS = (
    "ZeroshotCLIP",
    "TaskRes",
    "CLIP_Adapter",
    "TipAdapter",
    "TipAdapterF",
    "LinearProbe",
    "GDA",
    "ProKeR",
    "ZSLP",
    "CLAP",
    "LPPlusPlus",
    "APE",
    "APET",
    "CrossModalProbe",
    "TransCLIP",
    "Auto",
)


def feature_file(
    *,
    order: tuple[int, ...] = (0, 1, 2, 3),
    views: int = 1,
    width: int = WIDTH,
    backbone: str = "RN50",
    parts: tuple[str, ...] = ("train", "val", "test"),
    plain: bool = False,
) -> FeatureFile:
    """Classes around directions of their own; ``order`` tells which class has which label."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(len(NAMES), width))
    text = centres + rng.normal(size=centres.shape)
    labels = np.repeat(np.arange(len(order)), PER_CLASS)

    def part(count: int) -> FeaturePart:
        values = centres[np.array(order)][labels] + 0.6 * rng.normal(size=(count, len(labels), width))
        without = values[0] + 5.0 if plain and count > 1 else None
        return FeaturePart(values.astype(np.float32), labels, without)

    return FeatureFile(
        parts={name: part(views if name == "train" else 1) for name in parts},
        classnames=tuple(NAMES[i] for i in order),
        classids=tuple(IDS[i] for i in order),
        text_weights=text[np.array(order)][None].astype(np.float32),
        backbone=backbone,
    )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``run("TaskRes", file, *options)``: a trainer on that file, which must not load any CLIP."""
    monkeypatch.setattr(clip, "assemble", lambda *_: pytest.fail("a CLIP was loaded"))
    runs = itertools.count()

    def make(method: str, file: FeatureFile, *options: str, seed: int = 1) -> Any:
        number = next(runs)
        path = tmp_path / f"features{number}.npz"
        write_feature_file(file, path)
        flags = {
            "DATASET": {"NAME": "Features", "FILE": str(path)},
            "DATALOADER": {"TRAIN_X": {"BATCH_SIZE": 8}},
            "OPTIM": {"MAX_EPOCH": 5, "LR": 0.01},
            "OUTPUT_DIR": str(tmp_path / f"run{number}"),
            "SEED": seed,
        }
        set_random_seed(seed)
        options = ("TRAINER.CrossModalProbe.ITERATIONS", "200", *options)
        options = ("TRAINER.Auto.METHODS", "['ZeroshotCLIP', 'GDA', 'TipAdapter']", *options)
        return build_trainer(make_config(trainer=method, flags=flags, options=options))

    return make


@pytest.mark.slow
@pytest.mark.parametrize("method", FEATURE_METHODS)
@pytest.mark.parametrize("views", [1, 3])
def test_a_method_trains_saves_and_loads_without_any_clip(run, method, views):
    trainer = run(method, feature_file(views=views))
    trainer.train()
    accuracy = trainer.results["test"]["accuracy"]
    assert accuracy > 60  # chance is 25
    if trainer.has_state():
        again = run(method, feature_file(views=views))
        again.load_model(trainer.output_dir)
        assert again.test() == accuracy


@pytest.mark.parametrize(
    ("method", "lacking"),
    [
        ("CoOp", "text encoder"),
        ("CoCoOp", "text encoder"),
        ("KgCoOp", "text encoder"),
        ("ProGrad", "text encoder"),
        ("TCP", "text encoder"),
        ("IVLP", "text encoder"),
        ("VPT", "encoder"),
        ("MaPLe", "encoder"),
        ("PromptSRC", "encoder"),
        ("CLIPLoRA", "encoder"),
        ("TwoStage", "encoder"),
        ("MMA", "encoder"),
        ("ZeroshotCLIP2", "text encoder"),
        ("TaskResEnhance", "text encoder"),
    ],
)
def test_a_method_that_needs_an_encoder_says_so_in_one_line(run, method, lacking):
    with pytest.raises(UserError, match=f"{method} needs the .*{lacking}.*holds features only") as caught:
        run(method, feature_file())
    assert "\n" not in str(caught.value)


def test_a_trainer_on_images_says_that_there_are_none(run):
    with pytest.raises(UserError, match="ToyTrainer needs images, but dataset Features holds features only"):
        run(ToyTrainer.__name__, feature_file())


def test_epoch_e_reads_view_e_mod_v(run):
    file = feature_file(views=3)
    trainer = run("TaskRes", file)
    seen = []
    original = trainer.forward_backward

    def forward_backward(batch: dict) -> Any:
        rows = batch["index"].numpy()
        seen.append([np.array_equal(batch["feature"], view[rows]) for view in file.parts["train"].views].index(True))
        return original(batch)

    trainer.forward_backward = forward_backward
    trainer.train()
    assert seen == [view for view in (0, 1, 2, 0, 1) for _ in range(3)]


@pytest.mark.slow
def test_shots_are_drawn_by_the_fields_rule_and_kept(run, tmp_path):
    file = feature_file()
    trainer = run("TaskRes", file, "DATASET.NUM_SHOTS", "5")
    data = trainer.dm.dataset
    assert [item.label for item in data.train_x] == [label for label in range(4) for _ in range(5)]
    assert len(data.val) == 16  # four at most
    kept = json.loads(next(data.sidecar.folders[1].glob("split_fewshot/*.json")).read_text())
    assert {row[0].split("/")[0] for row in kept["train"]} == {"train"}
    first = [item.impath.rpartition("/")[2] for item in data.train_x]
    same, other = (run("TaskRes", file, "DATASET.NUM_SHOTS", "5", seed=seed).dm.dataset.train_x for seed in (1, 2))
    assert [item.impath.rpartition("/")[2] for item in same] == first
    assert [item.impath.rpartition("/")[2] for item in other] != first
    rows = [int(row) for row in first]
    assert np.array_equal(trainer.train_loader_x.views[0].numpy(), file.parts["train"].views[0][rows])


def test_a_given_draw_is_used(run, tmp_path):
    rows = [[f"train/{label * PER_CLASS}", label, NAMES[label]] for label in range(4)]
    draw = {"dataset": "Features", "num_shots": 1, "train": rows, "val": []}
    (tmp_path / "draw.json").write_text(json.dumps(draw))
    options = ("DATASET.NUM_SHOTS", "1", "DATASET.FEWSHOT_FILE", str(tmp_path / "draw.json"))
    trainer = run("TaskRes", feature_file(), *options)
    taken = trainer.train_loader_x.views[0].numpy()
    assert np.array_equal(taken, feature_file().parts["train"].views[0][[0, 6, 12, 18]])
    draw["train"][0][0] = "train/99"
    (tmp_path / "draw.json").write_text(json.dumps(draw))
    with pytest.raises(UserError, match="lists 'train/99'"):
        run("TaskRes", feature_file(), *options)


@pytest.mark.slow
def test_new_classes_keep_their_own_text_weights(run):
    file = feature_file()
    base, new = (run("ZeroshotCLIP", file, "DATASET.SUBSAMPLE_CLASSES", which) for which in ("base", "new"))
    assert new.dm.dataset.classnames == ["red fox", "owl"]
    expected = torch.nn.functional.normalize(torch.from_numpy(file.text_weights[0]), dim=-1)
    assert torch.allclose(base.head.prototypes, expected[:2])
    assert torch.allclose(new.head.prototypes, expected[2:])
    new.train()
    assert new.results["test"]["accuracy"] > 60


@pytest.mark.slow
def test_a_checkpoint_moves_to_a_file_with_the_classes_in_another_order(run):
    source = run("TaskRes", feature_file(), "OPTIM.MAX_EPOCH", "30")
    source.train()
    target = run("TaskRes", feature_file(order=(2, 0, 3)))
    target.load_model(source.output_dir)
    residuals = source.head.text_feature_residuals
    assert torch.equal(target.head.text_feature_residuals, residuals[[2, 0, 3]])
    assert target.test() > 80


@pytest.mark.slow
def test_a_stored_run_is_evaluated_on_its_own_file_and_on_another(run, tmp_path):
    trainer = run("TaskRes", feature_file())
    trainer.train()
    stored = stored_config(trainer.output_dir)
    own = evaluate(config_for(stored, None, {}, ()), trainer.output_dir)
    assert own.results["test"] == trainer.results["test"]
    write_feature_file(feature_file(order=(1, 3)), tmp_path / "other.npz")
    options = ("DATASET.FILE", str(tmp_path / "other.npz"))
    other = evaluate(config_for(stored, "features", {}, options), trainer.output_dir)
    assert other.num_classes == 2
    with pytest.raises(UserError, match=r"needs DATASET\.FILE"):  # the run's own file does not follow
        evaluate(config_for(stored, "features", {}, ()), trainer.output_dir)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["TaskRes", "CLIP_Adapter", "TipAdapterF", "LinearProbe"])
def test_a_checkpoint_of_another_width_or_backbone_is_refused_in_one_line(run, method):
    source = run(method, feature_file())
    source.train()
    with pytest.raises(UserError, match=r"model\.pth\.tar-5.*(5|8)") as caught:
        run(method, feature_file(width=5)).load_model(source.output_dir)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"saved with backbone 'RN50', but this run has backbone 'ViT-B/32'"):
        run(method, feature_file(backbone="ViT-B/32")).load_model(source.output_dir)
    run(method, feature_file(backbone="")).load_model(source.output_dir)  # a file that does not say is taken


@pytest.mark.slow
def test_logistic_regression_takes_the_images_without_augmentation(run):
    options = ("TRAINER.LinearProbe.FIT", "logistic_regression")
    with pytest.raises(UserError, match="train_plain_features"):
        run("LinearProbe", feature_file(views=2), *options).train()
    file = feature_file(views=2, plain=True)
    train = file.parts["train"]
    alone = dataclasses.replace(file, parts={**file.parts, "train": FeaturePart(train.plain[None], train.labels)})
    heads = []
    for source in (file, alone):
        trainer = run("LinearProbe", source, *options)
        trainer.train()
        heads.append(trainer.head.state_dict())
    assert heads[0].keys() == heads[1].keys()
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


@pytest.mark.slow
def test_a_file_without_training_features_is_for_testing_only(run):
    source = run("TaskRes", feature_file())
    source.train()
    target = run("TaskRes", feature_file(parts=("test",)), "DATASET.NUM_SHOTS", "16")
    assert len(target.dm.dataset.train_x) == len(target.dm.dataset.test)
    target.load_model(source.output_dir)
    assert target.test() > 60


def test_a_class_without_a_training_row_is_named(run):
    file = feature_file()
    part = file.parts["train"]
    kept = part.labels != 1
    lacking = FeaturePart(part.views[:, kept], part.labels[kept])
    broken = FeatureFile({**file.parts, "train": lacking}, NAMES, file.text_weights)
    with pytest.raises(UserError, match="no training image has label 1"):
        run("TaskRes", broken)


def test_results_name_the_backbone_of_the_file(run):
    trainer = run("ZeroshotCLIP", feature_file())
    trainer.train()
    assert trainer.run_results()["backbone"] == "RN50"


def without_text(file: FeatureFile) -> FeatureFile:
    return dataclasses.replace(file, text_weights=np.zeros((0, len(NAMES), WIDTH), np.float32), templates=())


@pytest.mark.slow
def test_a_method_without_text_features_trains_on_a_file_without_them(run):
    trainer = run("LinearProbe", without_text(feature_file()))
    assert trainer.zero_shot() is None
    trainer.train()
    assert trainer.results["test"]["accuracy"] > 50


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", [name for name in FEATURE_METHODS if name != "LinearProbe"])
def test_a_method_that_needs_text_features_says_that_the_file_has_none(run, method):
    with pytest.raises(UserError, match=f"{method} needs text features, but .* holds none"):
        run(method, without_text(feature_file()))


@pytest.mark.slow
def test_a_file_of_a_known_dataset_has_its_template_its_name_and_its_recipe(tmp_path):
    path = tmp_path / "pets.npz"
    for stated, name, template in (
        ("oxford_pets", "OxfordPets", "a photo of a {}, a type of pet."),
        ("Lab", "Lab", "{}"),
    ):
        write_feature_file(dataclasses.replace(feature_file(), dataset=stated), path)
        flags = {"DATASET": {"NAME": "Features", "FILE": str(path)}, "OUTPUT_DIR": str(tmp_path / name)}
        trainer = build_trainer(make_config(trainer="ZeroshotCLIP", flags=flags))
        assert (trainer.template, trainer.run_results()["dataset"]) == (template, name)
    write_feature_file(dataclasses.replace(feature_file(), dataset="ImageNet"), path)
    for options, rate in (((), 2e-4), (("OPTIM.LR", "0.5"), 0.5)):
        cfg = make_config(trainer="TaskRes", method_file="default", flags=flags, options=options)
        assert cfg.OPTIM.LR == rate
    assert make_config(trainer="CoOp", method_file="default", flags=flags).OPTIM.MAX_EPOCH == 50
    assert make_config(trainer="CoOp", method_file="default").OPTIM.MAX_EPOCH == 200


@pytest.mark.parametrize("value", ["7", "[ImageNet]", "{ImageNet: 3}"])
def test_settings_for_a_dataset_must_be_keys(tmp_path, value):
    (tmp_path / "bad.yaml").write_text(f"_FOR_: {value}\n")
    with pytest.raises(UserError, match=r"bad\.yaml: _FOR_ must give config keys for names of datasets"):
        make_config(trainer="TaskRes", method_file=tmp_path / "bad.yaml")
