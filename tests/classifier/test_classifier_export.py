"""FewShotClassifier.export and tools/export.py: exported files predict like the classifier."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import family_table
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dassl_lite import FewShotClassifier
from dassl_lite.classifier import classify
from dassl_lite.classifier import export as exporting
from dassl_lite.classifier.export import from_weights
from dassl_lite.data.transforms import build_transform
from dassl_lite.data.transforms.pixels import split
from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.methods.backbone import shared_backbone
from dassl_lite.models.heads import CosineHead, FixedPrototypes, linear_form
from dassl_lite.models.lora import merge_lora
from dassl_lite.tools import export
from dassl_lite.utils import set_random_seed
from dassl_lite.utils.errors import UserError

CLASSES = ["circle", "square", "triangle"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved zero-shot classifier, which needs no training."""
    folder = tmp_path_factory.mktemp("export") / "clf"
    FewShotClassifier(classes=CLASSES).save(folder)
    return folder


def run(*words: object) -> int:
    return run_tool(export.main, list(map(str, words)))


# ---- heads as matrices ----------------------------------------------------------------------------------------------


class Curved(FixedPrototypes):
    def adapt(self, image_features: Tensor) -> Tensor:
        return image_features.relu()


class Boastful(FixedPrototypes):
    """A nonlinear head that claims to be linear."""

    is_linear = True

    def forward(self, image_features: Tensor) -> Tensor:
        return super().forward(image_features).square()


def test_a_linear_head_is_folded_into_one_matrix() -> None:
    prototypes, features = torch.randn(5, 8), torch.randn(20, 8)
    cosine = FixedPrototypes(prototypes, 30.0)
    calibrated = FixedPrototypes(prototypes, 30.0)
    calibrated.calibrate(-1.0, 0.5)
    layer = nn.Linear(8, 5)
    for head, normalises, has_bias in ((cosine, True, False), (calibrated, True, True), (layer, False, True)):
        found = linear_form(head, 8)
        assert found is not None
        assert (found.normalises, found.bias is not None) == (normalises, has_bias)
        torch.testing.assert_close(found(features), head(features), rtol=1e-5, atol=1e-4)
    assert linear_form(cosine, 8).scale == 30.0  # type: ignore[union-attr]


def test_a_nonlinear_head_is_not_folded_even_if_it_claims_to_be_linear() -> None:
    prototypes = torch.randn(5, 8)
    plain = nn.Sequential(nn.Linear(8, 5))
    for head in (Curved(prototypes, 30.0), Boastful(prototypes, 30.0), plain):
        assert linear_form(head, 8) is None
    assert CosineHead(1.0).is_linear


# ---- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest", "cover"])
def test_the_script_preprocesses_images_like_the_transform(mode: str, tmp_path: Path) -> None:
    draw, path = np.random.default_rng(0), tmp_path / "picture.png"
    for size in ((24, 24), (24, 31)):
        for interpolation in ("bicubic", "bilinear"):
            given = {"SIZE": size, "RESIZE_MODE": mode, "INTERPOLATION": interpolation, "FILL_COLOR": (9, 8, 7)}
            given |= {"PIXEL_MEAN": (0.5,) * 3, "PIXEL_STD": (0.5,) * 3}
            parts = split(build_transform(make_config(flags={"INPUT": given}), is_train=False))
            assert parts is not None
            about = {"size": json.dumps(size), "resize": mode, "interpolation": interpolation, "fill": "[9, 8, 7]"}
            for shape in ((40, 61), (61, 40), (24, 24), (5, 90), (30, 29)):
                picture = Image.fromarray(draw.integers(0, 256, (*shape, 3), np.uint8))
                picture.save(path)
                assert np.array_equal(classify.pixels(str(path), about), parts[0](picture).numpy()), (size, shape)


# ---- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_exported_weights_classify_features_like_the_classifier(saved: Path, unseen: Any, tmp_path: Path) -> None:
    assert run("--model-dir", saved, "--output", tmp_path / "out", "--format", "npz", "--images", unseen.folder) == 0
    classifier = FewShotClassifier.load(saved)
    wanted = classifier.predict_proba(unseen.paths)
    found = from_weights(tmp_path / "out" / "classifier.npz", classifier.transform(unseen.paths))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    with np.load(tmp_path / "out" / "classifier.npz") as file:
        assert file["class_names"].tolist() == CLASSES
        assert file["weights"].shape == (3, classifier._trainer.clip.embed_dim)
        np.testing.assert_allclose(np.linalg.norm(file["weights"], axis=1), 1, atol=1e-5)  # text features
        about = json.loads(str(file["metadata"]))
    assert about["method"] == "ZeroshotCLIP"
    assert about["backbone"] == "demo"
    assert about["backbone_digest"] == classifier._trainer.clip.digest


# ---- user errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--output", "out"), "--model-dir is missing"),
        (("--model-dir", "{saved}"), "--output is missing"),
        (("--model-dir", "{saved}", "--output", "out", "--format", "onxx"), "Did you mean 'onnx'?"),
        (("--model-dir", "{saved}", "--output", "full", "--format", "npz"), "'full' exists already"),
        (("--model-dir", "{saved}", "--output", "file", "--format", "npz"), "'file' exists already"),
        (
            ("--model-dir", "{saved}", "--output", "file/out", "--format", "npz"),
            "'file/out' cannot be written: '{here}/file' is not a folder",
        ),
        (("--model-dir", "{saved}", "--output", "a\0b", "--format", "npz"), "'a\\x00b' has a NUL character"),
        (("--model-dir", "{saved}", "--output", "a" * 300, "--format", "npz"), "cannot be written: File name too long"),
        (("--model-dir", "nowhere", "--output", "out", "--format", "npz"), "there is no folder 'nowhere'"),
        (("--model-dir", "full", "--output", "out", "--format", "npz"), "holds neither a classifier nor a run"),
    ],
)
def test_a_user_error_prints_one_line_and_leaves_no_folder(
    saved: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    (tmp_path / "file").touch()
    before = sorted(os.listdir(tmp_path))
    assert run(*(word.format(saved=saved) for word in words)) == 2
    error = capsys.readouterr().err
    assert message.format(here=tmp_path) in error
    assert [line for line in error.splitlines() if "demo knows" not in line] == [error.splitlines()[-1]]
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.slow
def test_a_missing_library_is_named_with_its_extra_before_anything_is_loaded(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert run("--model-dir", saved, "--output", tmp_path / "out") == 2
    assert capsys.readouterr().err == 'Error: ONNX export needs onnxscript: pip install "dassl-lite[onnx]"\n'


@pytest.mark.slow
def test_an_export_with_different_predictions_is_discarded(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, write = FewShotClassifier.load(saved), exporting._write_npz

    def wrong(*args: Any) -> Any:
        ask = write(*args)
        return lambda pictures: ask(pictures)[:, ::-1]

    monkeypatch.setattr(exporting, "_write_npz", wrong)
    with pytest.raises(UserError, match="the export of ZeroshotCLIP is not kept: its probabilities differ by up to"):
        classifier.export(tmp_path / "out", "npz")
    assert os.listdir(tmp_path) == []


# ---- graphs ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_script_predicts_like_the_classifier_without_this_package(saved: Path, unseen: Any, tmp_path: Path) -> None:
    assert run("--model-dir", saved, "--output", tmp_path / "out", "--images", unseen.folder) == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["classify.py", "model.onnx"]
    hiding = "import sys; sys.modules.update(torch=None, dassl_lite=None, torchvision=None); sys.argv = sys.argv[1:]\n"
    code = f"{hiding}import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    broken = {"none.png": b"", "text.png": b"text"}
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    words = [sys.executable, "-c", code, str(tmp_path / "out" / "classify.py")]
    words += [*(str(tmp_path / name) for name in broken), str(tmp_path / "gone.png"), *unseen.paths[::4]]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == words[4:7]
    printed = done.stdout.splitlines()
    wanted = FewShotClassifier.load(saved).predict_proba(unseen.paths[::4])
    order = np.argsort(-wanted, axis=1)
    assert printed == [
        f"{path}  {CLASSES[k]}  {100 * row[k]:.1f} %"
        for path, row, likely in zip(unseen.paths[::4], wanted, order, strict=True)
        for k in likely
    ]


@pytest.fixture(scope="module")
def trained(family_names: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``trained(method)``: the method on a small ViT, trained for one epoch on a few noise images, and test images."""
    folder = tmp_path_factory.mktemp("methods")
    pictures = family_table.draw_pictures(folder / "pictures")
    data = {"NAME": "ImageFolder", "ROOT": str(pictures), "NUM_SHOTS": 2, "FEATURES": {"VIEWS": 1}}
    tested = sorted(map(str, (pictures / "test").rglob("*.png")))

    def train(method: str) -> tuple[exporting.Source, list[str]]:
        flags = {
            "DATASET": data,
            "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 3}},
            "MODEL": {"BACKBONE": {"NAME": family_names["ViT"]}},
            "OPTIM": {"MAX_EPOCH": 1, "LR": 0.1},
            "TEST": {"NO_TEST": True},
            "OUTPUT_DIR": str(folder / method),
        }
        set_random_seed(1)
        with shared_backbone(kept):
            trainer = build_trainer(
                make_config(trainer=method, flags=flags, options=family_table.short_options(method))
            )
        trainer.train()
        trainer.set_model_mode("eval")
        return exporting.Source(trainer, family_table.CLASSES, 0.5, "a photo of a {}."), tested

    kept: dict[Any, Any] = {}
    return train


TRACED = {"APE", "APET", "Auto", "CLIP_Adapter", "CoCoOp", "ProKeR", "ProLIP", "TipAdapter", "TipAdapterF"}
IN_ONNX = ("CLIPLoRA", "MaPLe", "Auto")
ALIKE = {"IVLP", "PromptSRC", "TipAdapterF"}  # traced like VPT, MaPLe and TipAdapter
CHANGED = {
    "CLIPLoRA",
    "IVLP",
    "MMA",
    "MaPLe",
    "ProLIP",
    "PromptSRC",
    "TwoStage",
    "VPT",
}  # methods that change the image encoder


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in family_table.methods() if name != "TransCLIP"])
def test_every_exported_method_keeps_its_predictions(
    trained: Any, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, pictures = trained(method)
    assert source.trainer.changes_images == (method in CHANGED)
    with torch.no_grad():
        shown = exporting._Pictures(source.trainer, pictures, tmp_path)
        wanted, model = shown.probabilities(source), exporting.Exportable(source)
        assert model.form == ("traced" if method in TRACED else "linear")
        merged = merge_lora(source.trainer.clip.model)
        assert bool(merged) == (method == "CLIPLoRA")
        ask: Any = model
        if method in TRACED - CHANGED:  # the encoder's graph equals zero-shot CLIP's
            model._encode = lambda images: images.flatten(1)[:, : source.trainer.input_width].contiguous()
            monkeypatch.setattr(exporting, "encoder_of", lambda trainer: model._encode)
            wanted = shown.probabilities(source)
        if method in (TRACED | CHANGED) - {*ALIKE, *IN_ONNX}:
            with exporting._tracing(source):
                ask = exporting._traced(model, source).module()
        found = shown.answers(lambda pictures: ask(pictures).numpy())
    assert wanted.std(axis=1).min() > 1e-3, "the logits are nearly constant"
    np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", IN_ONNX)
def test_onnx_predicts_like_the_method(trained: Any, method: str, tmp_path: Path) -> None:
    source, pictures = trained(method)
    found = exporting.export(tmp_path / "out", "onnx", lambda: source, lambda: pictures)
    assert found.pictures == len(pictures)
    assert found.difference < 2e-5
    assert found.agreement == 100
