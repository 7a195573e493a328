"""tools/extract.py: training on its file equals training on the images; user errors print one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dassl_lite.data.feature_files import read_feature_file
from dassl_lite.datasets.gadgets import Gadgets
from dassl_lite.engine import build_trainer
from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.methods import feature_source
from dassl_lite.models.clip import load_clip
from dassl_lite.tools import extract, train

FEW = ("DATALOADER.NUM_WORKERS", "0")
TRAINED = ("DATASET.NUM_SHOTS", "4", "OPTIM.MAX_EPOCH", "6", "DATASET.FEATURES.VIEWS", "2", *FEW)


def run_extract(*argv: str) -> int:
    return run_tool(extract.main, list(argv))


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, 12 pictures each, the colour with much noise; one name with an underscore."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, colour in {"red_thing": (160, 90, 90), "green thing": (90, 160, 90), "blue": (90, 90, 160)}.items():
        (root / name).mkdir()
        for number in range(12):
            pixels = rng.normal(colour, 90, (24, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


DATASET = ("--dataset-config-file", "gadgets")
LOGISTIC = ("TRAINER.LinearProbe.FIT", "logistic_regression")
BOTH = ("TRAINER.CLIP_Adapter.SIDE", "both")


@pytest.fixture(scope="module")
def gadgets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gadgets") / "gadgets.npz"
    assert run_extract(*DATASET, "--views", "2", "--output", str(path), *FEW) == 0
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((method, ()) for method in ("ZeroshotCLIP", "ZeroshotCLIP2", "TaskRes", "TipAdapter", "TipAdapterF")),
        *(("CLIP_Adapter", BOTH), ("LinearProbe", ()), ("LinearProbe", LOGISTIC)),
    ],
)
def test_a_run_on_the_file_equals_one_on_the_images(tmp_path, gadgets, method, options):
    few = (*TRAINED, "TRAINER.TipAdapter.BETA_STEPS", "20", "TRAINER.LinearProbe.C_STEPS", "2", *options)
    ways = {
        "images": (*DATASET, "--output-dir", str(tmp_path / "images"), *few),
        "features": (
            *("--dataset-config-file", "features", "--output-dir", str(tmp_path / "features")),
            *("DATASET.FILE", str(gadgets), *few),
        ),
    }
    for flags in ways.values():
        assert run_tool(train.main, ["--trainer", method, *flags]) == 0
    found = {way: results(tmp_path / way) for way in ways}
    assert found["features"]["split_sizes"] == found["images"]["split_sizes"]
    assert found["features"]["backbone"] == found["images"]["backbone"] == "demo"
    assert found["features"]["zero_shot_accuracy"] == found["images"]["zero_shot_accuracy"]
    # Logistic regression stops at a tolerance, so that rounding may move one image; the others train the same steps.
    tolerance = 1.5 * 100 / found["images"]["split_sizes"]["test"] if options == LOGISTIC else 1e-3
    for name, value in found["images"]["metrics"]["test"].items():
        assert found["features"]["metrics"]["test"][name] == pytest.approx(value, abs=tolerance), name


@pytest.mark.slow
def test_the_file_says_what_it_is(tmp_path, images):
    path = tmp_path / "mine.npz"
    assert run_extract("--data", str(images), "--output", str(path), "--views", "2", "--half", *FEW) == 0
    file = read_feature_file(path)
    assert file.backbone == "demo"
    assert len(file.backbone_digest) == 64
    assert file.precision == "fp32"
    assert sorted(file.classnames) == ["blue", "green thing", "red_thing"]
    assert file.templates[0] == "a photo of a {}."
    assert len(file.templates) == 8
    assert file.logit_scale > 1
    train_part, test_part = file.parts["train"], file.parts["test"]
    assert train_part.views.shape[0] == 2
    assert train_part.views.dtype == test_part.views.dtype == file.text_weights.dtype == np.float16
    assert train_part.plain is not None
    assert not np.array_equal(train_part.plain, train_part.views[0])
    (made,) = map(json.loads, file.provenance)
    assert (made["dataset"], made["views"], made["half"]) == ("ImageFolder", 2, True)
    assert str(images) not in "".join(file.provenance)  # no path of this machine travels along


@pytest.mark.slow
def test_a_model_trained_with_a_sigmoid_hands_its_bias_on(tmp_path, images, monkeypatch):
    load = load_clip

    def load_biased(name: str, **options: Any) -> Any:
        clip = load(name, **options)
        clip.model.logit_bias = torch.nn.Parameter(torch.tensor(-12.5))
        return clip

    for name, loader, bias in (("plain", load, None), ("biased", load_biased, -12.5)):
        monkeypatch.setattr(feature_source, "load_clip", loader)
        path = tmp_path / f"{name}.npz"
        assert run_extract("--data", str(images), "--output", str(path), "--views", "0", *FEW) == 0
        assert read_feature_file(path).logit_bias == bias
        flags = {"DATASET": {"NAME": "Features", "FILE": str(path)}, "OUTPUT_DIR": str(tmp_path / name)}
        found = build_trainer(make_config(trainer="ZeroshotCLIP", flags=flags)).clip.logit_bias
        assert found is None if bias is None else found.item() == bias


@pytest.mark.slow
def test_zero_views_store_features_without_augmentation(tmp_path, images):
    assert run_extract("--data", str(images), "--output", str(tmp_path / "a.npz"), "--views", "0", *FEW) == 0
    assert run_extract("--data", str(images), "--output", str(tmp_path / "b.npz"), "--views", "1", *FEW) == 0
    plain, augmented = (read_feature_file(tmp_path / f"{name}.npz").parts["train"] for name in "ab")
    assert plain.plain is None
    assert np.array_equal(plain.views[0], augmented.plain)


@pytest.mark.slow
def test_validation_images_that_are_test_images_are_left_out(tmp_path, monkeypatch):
    load = Gadgets.load
    monkeypatch.setattr(Gadgets, "load", lambda self: load(self)._replace(val=load(self).test))  # as ImageNet is
    path = tmp_path / "x.npz"
    assert run_extract("--views", "0", "--output", str(path), "DATASET.NAME", "Gadgets", *FEW) == 0
    assert set(read_feature_file(path).parts) == {"train", "test"}


def extracted(*argv: str) -> int:
    return run_extract(*argv)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "precisions"),
    [("vit0", {"fp32": 1e-5, "amp": 5e-3, "fp16": 5e-3, "bf16": 5e-2}), ("rn0", {"fp32": 1e-5})],
)
def test_a_gpu_extracts_the_cpus_features_in_every_precision(
    on_cuda: Any, tmp_path: Path, images: Path, golden_backbone: Any, backbone: str, precisions: dict[str, float]
) -> None:
    flags = ["--data", str(images), "--backbone", str(golden_backbone(backbone)), "--views", "2", "--shots", "2", *FEW]
    assert run_extract("--output", str(tmp_path / "cpu.npz"), *flags) == 0
    wanted = read_feature_file(tmp_path / "cpu.npz")
    for precision, bound in {**precisions, "auto": 5e-3}.items():
        path = tmp_path / f"{precision}.npz"
        assert on_cuda(extracted, "--output", str(path), "--precision", precision, *flags) == 0
        found = read_feature_file(path)
        assert found.precision == {"auto": "fp16"}.get(precision, precision)
        pairs = [(found.parts[part].views, wanted.parts[part].views) for part in wanted.parts]
        for values, expected in [*pairs, (found.text_weights, wanted.text_weights)]:
            error = np.linalg.norm(values.astype(np.float32) - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
            assert error.max() < bound, precision


def test_user_errors_print_one_line(tmp_path, capsys):
    there = tmp_path / "there.npz"
    there.write_text("mine")
    for argv, message in (
        (("--output", "x.txt"), "--output 'x.txt' must name an .npz file"),
        (("--output", str(there)), "already exists"),
        (("--output", str(tmp_path / "x.npz"), "--views", "-1"), "--views is -1"),
        (("--output", str(tmp_path / "x.npz"), "--first", "1"), "--first goes with --convert"),
        (("--output", str(tmp_path / "x.npz"), "--convert", str(there)), "is not an .npz"),
        (("--output", str(tmp_path / "x.npz"), "--precision", "fp8"), "unknown precision 'fp8'"),
    ):
        assert run_extract(*argv) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert there.read_text() == "mine"
    assert not (tmp_path / "x.npz").exists()
