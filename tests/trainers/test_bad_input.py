"""What a user gets wrong with a method, through the tools: one line that names the value and the remedy, exit code 2,
and nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.tools import eval as eval_tool
from dassl_lite.tools import extract, train

CLASSES = ("crane", "golden retriever", "yo-yo")
FEW = ("OPTIM.MAX_EPOCH", "2", "DATALOADER.NUM_WORKERS", "0", "DATALOADER.TRAIN_X.BATCH_SIZE", "4")
FEW = (*FEW, "DATASET.FEATURES.VIEWS", "1", "TRAINER.CLIPLoRA.STEPS_PER_SHOT", "0", "TRAINER.COOP.N_CTX", "4")
FEW = (*FEW, "TRAINER.CrossModalProbe.ITERATIONS", "5", "TRAINER.TwoStage.STEPS_PER_SHOT", "0")
NEW = ("CLAP", "ZSLP", "GDA", "ProKeR", "LPPlusPlus", "APE", "APET", "CrossModalProbe", "TransCLIP", "ProLIP", "Auto")
FEW = (*FEW, "TRAINER.Auto.METHODS", "['ZeroshotCLIP', 'GDA']")
FILED = tuple(name for name in NEW if name != "ProLIP")  # which the file of features here suffices
COOP, COCOOP, LORA = ("CoOp", "TRAINER.COOP."), ("CoCoOp", "TRAINER.COCOOP."), ("CLIPLoRA", "TRAINER.CLIPLoRA.")


def draw(root: Path, classes: tuple[str, ...]) -> Path:
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("bad") / "images", CLASSES)


@pytest.fixture
def run(images: Path, tmp_path: Path, golden_backbone: Any) -> Callable[..., int]:
    """``run("CoOp", "OPTIM.LR", "1")``: the exit code of tools/train.py on tiny images, files in tmp_path / "run".

    ``loads``: evaluate that run instead of training one.
    """

    def start(
        method: str, *options: str, data: Path = images, output: str = "run", backbone: str = "vit0", loads: str = ""
    ) -> int:
        flags = ["--trainer", method, "--output-dir", str(tmp_path / output), "--data", str(data)]
        flags += ["--backbone", str(golden_backbone(backbone))]
        flags += ["--eval-only", "--model-dir", str(tmp_path / loads)] if loads else []
        return run_tool(train.main, [*flags, *FEW, *options])

    return start


@pytest.fixture
def said(capsys: pytest.CaptureFixture) -> Callable[[int], str]:
    """``said(code)``: the one line of a mistake, after checking that it is one and that the code is 2."""

    def line(code: int) -> str:
        shown = capsys.readouterr()
        assert code == 2
        (error,) = [line for line in shown.err.splitlines() if "Error: " in line]
        assert "Traceback" not in shown.out + shown.err
        assert shown.err.rstrip().endswith(error)
        return error

    return line


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("method", "key", "value", "message"),
    [
        (*COOP, "CLASS_TOKEN_POSITION=ende", "CLASS_TOKEN_POSITION 'ende'. Did you mean 'end'? Choices: end, front"),
        (*COOP, "N_CTX=73", "N_CTX 73 does not fit: with the class name 'yo-yo' a prompt has 79 tokens where 77 fit"),
        (*COOP, f"CTX_INIT={'very ' * 73}", "does not fit: with the class name 'yo-yo'"),
        (*COCOOP, f"CTX_INIT={'very ' * 200}", "use a context of at most 71 tokens"),
        (*LORA, "POSITION=top3", "LoRA position 'top3' is out of range: the text encoder has 2 blocks; use 'all'"),
        (*LORA, "POSITION=middle", "unknown LoRA position 'middle'. Did you mean 'mid'?"),
        (*LORA, "BLOCKS=(0, 2)", "block 2 is out of range: the text encoder has blocks 0 to 1; set TRAINER.CLIPLoRA"),
        (*LORA, "PARAMS=('q', 'w')", "unknown value in TRAINER.CLIPLoRA.PARAMS 'w'. Choices: k, o, q, v."),
        ("TipAdapter", "DATASET.", "NUM_SHOTS=0", "NUM_SHOTS is 0; it must be at least 1, or -1 for all images"),
        ("TaskRes", "INPUT.", "SIZE=(16, 24)", "takes images of (32, 32) pixels, not (16, 24); leave INPUT.SIZE"),
        ("TaskRes", "INPUT.", "NO_TRANSFORM=True", "INPUT.NO_TRANSFORM True leaves images as they are"),
        ("TaskRes", "INPUT.", "TRANSFORMS=('random_crop',)", "cannot be transformed: Required crop size (32, 32)"),
        (
            "CLIPLoRA",
            "DATALOADER.",
            "K_TRANSFORMS=2",
            "uses one version of each image; set DATALOADER.K_TRANSFORMS to 1",
        ),
        ("CLAP", "TRAINER.CLAP.", "CONSTRAINT=l2-adaptive", "Did you mean 'l2-adaptative'?"),
        (
            "GDA",
            "TRAINER.GDA.",
            "ALPHA_BY=test",
            "TRAINER.GDA.ALPHA_BY 'test'. Choices: leave_one_out, none, val",
        ),
        ("ProKeR", "TRAINER.ProKeR.", "LAMBDA=0.0", "LAMBDA is 0.0; it must be above 0"),
        ("ProLIP", "TRAINER.ProLIP.", "LAMBDA=-1.0", "LAMBDA is -1.0; it must be at least 0"),
        ("TransCLIP", "TRAINER.TransCLIP.", "GAMMA=-1.0", "GAMMA is -1.0; it must be at least 0"),
        ("LPPlusPlus", "TRAINER.LPPlusPlus.", "EPOCHS=0", "EPOCHS is 0; it must be at least 1"),
        ("APE", "TRAINER.APE.", "CHANNELS=-1", "CHANNELS is -1; it must be at least 0"),
        ("Auto", "TRAINER.Auto.", "METHODS=['CoOp']", "value in TRAINER.Auto.METHODS"),
        ("CrossModalProbe", "TRAINER.CrossModalProbe.", "WISE_FT=2.0", "WISE_FT is 2.0; it must be at least 0"),
        ("TipAdapterF", "TRAINER.TipAdapter.", "AUGMENT_EPOCH=0", "AUGMENT_EPOCH is 0; it must be at least 1"),
    ],
)
def test_an_impossible_value_is_one_line(run, said, tmp_path, method, key, value, message):
    name, _, given = value.partition("=")
    assert message in said(run(method, key + name, given))
    assert not list((tmp_path / "run").rglob("model.pth.tar*"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ZeroshotCLIP", "CoOp", "CLIPLoRA", "TwoStage", "MMA"])
def test_a_class_name_that_no_prompt_can_hold_is_named(run, said, tmp_path, method):
    data = draw(tmp_path / "long", ("crane", "a " * 80 + "b"))
    line = said(run(method, data=data))
    assert "a a a a a" in line
    assert "shorten" in line


@pytest.fixture
def coop(run) -> Callable[..., None]:
    def make(*options: str, **places: Any) -> None:
        assert run("CoOp", *options, **places) == 0

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trained", "loaded", "message"),
    [
        ("CSC=True", "CSC=False", "a context for each class, but this run has one context for all classes; set"),
        ("CSC=False", "CSC=True", "one context for all classes, but this run has a context for each class; set"),
        ("N_CTX=4", "N_CTX=6", "a context of 4 vectors, but this run has one of 6; set TRAINER.COOP.N_CTX to 4"),
        ("N_CTX=4", "CTX_INIT=a photo", "a context of 4 vectors, but this run has one of 2; set TRAINER.COOP.N_CTX"),
    ],
)
def test_a_context_of_another_kind_is_reported_by_its_key(run, said, coop, tmp_path, capsys, trained, loaded, message):
    coop("TRAINER.COOP." + trained.partition("=")[0], trained.partition("=")[2])
    capsys.readouterr()
    before = files(tmp_path / "run")
    key, _, value = loaded.partition("=")
    assert message in said(run("CoOp", f"TRAINER.COOP.{key}", value, loads="run", output="eval"))
    assert files(tmp_path / "run") == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "width"),
    [
        ("CoOp", 56),
        ("TCP", 56),
        ("TaskRes", 24),
        ("CLIP_Adapter", 24),
        ("LinearProbe", 24),
        ("TipAdapterF", 24),
        ("TwoStage", 24),
        ("MMA", 56),
        *((name, 24) for name in NEW if name != "Auto"),  # whose checkpoints must name its methods
    ],
)
def test_a_checkpoint_of_another_width_is_refused(run, said, tmp_path, capsys, method, width):
    assert run(method) == 0
    capsys.readouterr()
    assert "was saved with backbone" in said(run(method, loads="run", output="eval", backbone="rn1"))
    path = max((tmp_path / "run").glob("*/model.pth.tar-*"))
    state = torch.load(path, weights_only=True)
    weights = {
        key: value for key, value in state["state_dict"].items() if key not in ("values", "coefficients", "targets")
    }
    narrower = {key: value[..., :-8] if value.dim() > 1 else value for key, value in weights.items()}
    narrower = {**state["state_dict"], **narrower}
    torch.save({"state_dict": narrower, "epoch": 2}, path)  # as another program writes it
    line = said(run(method, loads="run", output="eval"))
    assert str(path) in line
    assert str(width) in line.replace(str(path), "")
    assert "backbone" in line


@pytest.mark.slow
def test_a_context_per_class_is_not_evaluated_on_classes_that_were_never_trained(
    run, said, coop, tmp_path, capsys, golden_backbone
):
    coop("TRAINER.COOP.CSC", "True")
    other = draw(tmp_path / "other", ("crane", "aardvark"))
    capsys.readouterr()
    arguments = ["--model-dir", str(tmp_path / "run"), "DATASET.ROOT", str(other)]
    assert "it lacks aardvark" in said(run_tool(eval_tool.main, arguments))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "options"), [("CoOp", ("TRAINER.COOP.CSC", "True")), ("LinearProbe", ())])
def test_of_several_datasets_those_with_known_classes_are_evaluated(run, said, tmp_path, capsys, method, options):
    assert run(method, *options) == 0
    for name, classes in {"known": ("yo-yo", "crane"), "other": ("crane", "aardvark")}.items():
        place = draw(tmp_path / name, classes)
        (tmp_path / f"{name}.yaml").write_text(f"DATASET: {{NAME: ImageFolder, ROOT: '{place}'}}")
    arguments = ["--model-dir", str(tmp_path / "run"), "--output", str(tmp_path / "table.json")]
    arguments += ["--dataset-config-file", str(tmp_path / "other.yaml"), str(tmp_path / "known.yaml")]
    capsys.readouterr()
    assert run_tool(eval_tool.main, arguments) == 0
    assert "lacks classes" in capsys.readouterr().out
    other, known = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert "it lacks aardvark" in other["missing"]
    assert (known["images"], known["matched"], known["missing"]) == (6, 2, "")
    assert "it lacks aardvark" in said(run_tool(eval_tool.main, [*arguments, "--strict-classes"]))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["CoOp", "CoCoOp", "CLIP_Adapter", pytest.param("ProGrad", marks=pytest.mark.slow)])
def test_a_non_finite_value_stops_the_run_at_its_step_and_keeps_what_was_saved(run, said, tmp_path, method):
    options = ("OPTIM.LR", "1e38", "TRAIN.CHECKPOINT_FREQ", "1", "OPTIM.MAX_EPOCH", "4", "OPTIM.WARMUP_EPOCH", "1")
    options = (*options, "DATALOADER.TRAIN_X.BATCH_SIZE", "9", "TRAINER.CLIP_Adapter.RATIO", "0.5")
    line = said(run(method, *options))
    assert "the loss is infinite or NaN at epoch 3, batch 1" in line or "is infinite or NaN after epoch 2" in line
    assert "lower OPTIM.LR (now " in line
    saved = list((tmp_path / "run").glob("*/model.pth.tar-*"))
    assert saved
    for path in saved:
        state = torch.load(path, weights_only=True)
        assert state["epoch"] <= 2
        assert all(torch.isfinite(weights).all() for weights in state["state_dict"].values())
    assert not (tmp_path / "run" / "results.json").exists()


# ---- features in the place of images --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arrays(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("features") / "x.npz"
    arguments = ["--data", str(images), "--output", str(path), "--views", "2", "DATALOADER.NUM_WORKERS", "0"]
    assert run_tool(extract.main, arguments) == 0
    return dict(np.load(path, allow_pickle=False))


@pytest.fixture
def on_features(arrays, tmp_path) -> Callable[..., int]:
    """``on_features("TaskRes", text_weights=None)``: tools/train.py on a file of features without that array."""

    def start(method: str, *flags: str, **changes: Any) -> int:
        path = tmp_path / "features.npz"
        np.savez(path, **{name: values for name, values in {**arrays, **changes}.items() if values is not None})
        out = ("--output-dir", str(tmp_path / "run"), "--dataset-config-file", "features")
        return run_tool(train.main, ["--trainer", method, *out, *flags, "DATASET.FILE", str(path), *FEW])

    return start


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", ["CoOp", "CoCoOp", "CLIPLoRA", "TaskResEnhance"])
def test_a_method_that_needs_an_encoder_says_so(on_features, said, method):
    line = said(on_features(method))
    assert f"{method} needs the" in line
    assert "holds features only; use it on a dataset of images" in line


@pytest.mark.slow
def test_a_malformed_feature_file_is_reported_by_array(on_features, said, arrays):
    broken = arrays["train_features"].copy()
    broken[1, 2, 0] = np.nan
    for changes, message in (
        ({"text_weights": None}, "lacks the array text_weights"),
        ({"train_features": broken}, "the array train_features contains NaN or infinity, first in row 1, 2"),
        ({"text_weights": arrays["text_weights"][..., 1:]}, "has width 128, but text_weights has 127: they come"),
        ({"test_labels": arrays["test_labels"] + 1}, "contains the label 3, but the 3 classnames allow 0 to 2"),
    ):
        line = said(on_features("TaskRes", **changes))
        assert message in line
        assert "features.npz" in line


@pytest.mark.slow
def test_a_run_is_not_evaluated_on_features_of_another_width(on_features, said, arrays, tmp_path, capsys):
    assert on_features("TaskRes") == 0
    capsys.readouterr()
    narrow = {name: values[..., 1:] for name, values in arrays.items() if name.endswith(("_features", "_weights"))}
    evaluate = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    line = said(on_features("TaskRes", *evaluate, **narrow, backbone=np.array(""), backbone_digest=np.array("")))
    assert "model.pth.tar-2" in line
    assert "128" in line
    assert "127" in line


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", ["TipAdapter", "TipAdapterF", "TaskRes", "LinearProbe", *FILED])
def test_a_dataset_with_test_images_only_is_not_trained_on(on_features, said, tmp_path, method):
    line = said(on_features(method, train_features=None, train_plain_features=None, train_labels=None))
    assert "Features has no training images" in line
    assert "tools/eval.py" in line
    assert not list((tmp_path / "run").rglob("model*"))
