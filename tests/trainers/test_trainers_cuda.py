"""Every method of the package on a GPU, by the stand-in: in every precision, on features and on images, from training
to a resumed and an evaluated run.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from tints import draw_tints

from dassl_lite.engine import TRAINER_REGISTRY
from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.engine.commands import run
from dassl_lite.engine.files.results import read_results
from dassl_lite.engine.methods import backbone as run_backbone
from dassl_lite.engine.methods.backbone import overflows
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.models.clip import load_clip
from dassl_lite.utils import set_random_seed
from dassl_lite.utils.errors import NotFiniteError, UserError

load_plugins()
HOME = "dassl_lite.trainers."  # other tests register methods of their own
METHODS = [name for name in TRAINER_REGISTRY if TRAINER_REGISTRY.get(name).__module__.startswith(HOME)]
PRECISIONS = {"fp32": 1e-4, "amp": 0.05, "fp16": 0.05, "bf16": 0.3}  # and how far logits may be from the CPU's fp32
OPTIONS = {
    "TRAINER.TipAdapter.ALPHA_STEPS": 3,
    "TRAINER.TipAdapter.BETA_STEPS": 3,
    "TRAINER.COOP.N_CTX": 4,
    "TRAINER.COCOOP.N_CTX": 4,
    "TRAINER.KgCoOp.N_CTX": 4,
    "TRAINER.ProGrad.N_CTX": 6,
    "TRAINER.TCP.N_CTX": 4,
    "TRAINER.CLIPLoRA.DROPOUT": 0.0,  # masks are drawn on the device
    "TRAINER.CLIPLoRA.STEPS_PER_SHOT": 0,
    "TRAINER.TwoStage.STEPS_PER_SHOT": 0,
    "TRAINER.CrossModalProbe.ITERATIONS": 6,
    "TRAINER.CrossModalProbe.EVAL_EVERY": 3,
    "TRAINER.LPPlusPlus.EPOCHS": 4,
    "TRAINER.Auto.FOLDS": 2,
    "TRAINER.Auto.METHODS": ["ZeroshotCLIP", "GDA", "TipAdapter"],  # without epochs
    "TRAINER.APE.ALPHA_STEPS": 3,
    "TRAINER.APE.BETA_STEPS": 3,
    "TRAINER.APET.ALPHA_STEPS": 3,
    "TRAINER.APET.BETA_STEPS": 3,
}
PROMPTED = ("IVLP", "VPT", "MaPLe", "PromptSRC")  # in both encoders
TUNED = ("CLIPLoRA", "MMA", "TwoStage")  # in both encoders of a ViT, without prompts


def is_left_out(method: str, backbone: str, views: int) -> bool:
    """Whether a method refuses the backbone, or another case runs the same code.

    A head on image features runs alike whichever encoder they are of: TaskRes stands for those on a ResNet's. Images
    that a trained image encoder encodes have no cached views: one number of views stands for both. PromptSRC's model is
    IVLP's.
    """
    kind = TRAINER_REGISTRY.get(method)
    if backbone == "rn0":
        on_features = method != "TaskRes" and not (kind.through_encoder or kind.takes_states)
        return kind.needs_vit or method == "PromptSRC" or on_features
    if method in PROMPTED:
        return views > 0 or method == "IVLP"
    return method in TUNED and views == 0


CASES = [
    (method, backbone, views)
    for method in METHODS
    for backbone, views in (("vit0", 2), ("vit0", 0), ("rn0", 2))
    if not is_left_out(method, backbone, views)
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each of three classes 4 pictures to train on, 2 to validate on, 8 to test on."""
    return draw_tints(tmp_path_factory.mktemp("cuda"), {"train": 4, "val": 2, "test": 8}, side=16, tint=50)


def trainer_of(method: str, precision: str, views: int, backbone: str, images: str, output: str, *options: str) -> Any:
    node = TRAINER_REGISTRY.get(method).node_name()
    flags = {
        "DATASET": {"ROOT": images, "NAME": "ImageFolder", "FEATURES": {"VIEWS": views}},
        "MODEL": {"BACKBONE": {"NAME": backbone}},
        "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 6}},
        "OPTIM": {"NAME": "sgd", "LR": 0.001, "MAX_EPOCH": 2, "LR_SCHEDULER": "cosine"},
        "TRAIN": {"CHECKPOINT_FREQ": 1},
        "OUTPUT_DIR": output,
        "VERBOSE": False,
    }
    own = [str(part) for option in {**OPTIONS, f"TRAINER.{node}.PREC": precision}.items() for part in option]
    set_random_seed(1)
    return build_trainer(make_config(trainer=method, flags=flags, options=[*own, *options]))


def logits(trainer: Any) -> np.ndarray:
    trainer.set_model_mode("eval")
    with torch.no_grad():
        found = [trainer.model_inference(trainer.parse_batch_test(batch)[0]) for batch in trainer.test_loader]
    return torch.cat(found).cpu().numpy()


def weights(trainer: Any) -> dict[str, np.ndarray]:
    return {name: tensor.cpu().numpy() for name, tensor in trainer.head.state_dict().items()}


def train(*case: Any) -> dict[str, Any]:
    """What a run of two epochs finds, as plain values."""
    trainer = trainer_of(*case)
    trainer.train()
    return {
        "device": trainer.device.type,
        "has epochs": trainer.has_epochs(),
        "devices": {str(tensor.device) for tensor in trainer.head.state_dict().values()},
        "accuracy": trainer.results["test"]["accuracy"],
        "logits": logits(trainer),
        "weights": weights(trainer),
    }


def resume_and_load(*case: Any) -> dict[str, Any]:
    """What a run in the folder of ``train`` finds when it is resumed after the first epoch, and when it is loaded."""
    found: dict[str, Any] = {}
    saved = sorted(Path(case[-1]).glob("*/model.pth.tar-*"))
    if len(saved) > 1:
        saved[-1].unlink()
        resumed = trainer_of(*case)
        resumed.train()
        found |= {"resumed from": resumed.start_epoch, "resumed": weights(resumed)}
    if saved:
        loaded = trainer_of(*case)
        loaded.load_model(case[-1])
        loaded.test()
        found |= {"loaded": logits(loaded), "evaluated": loaded.results["test"]["accuracy"]}
    return found


def precisions_of(method: str, backbone: str, views: int) -> list[str]:
    """Those that a case adds something in. Images that are not cached are encoded alike for all methods that only run
    the image encoder: TaskRes stands for those in the precisions that "auto" does not choose."""
    through_encoder = TRAINER_REGISTRY.get(method).through_encoder
    if method in (*PROMPTED, "MMA", "TwoStage"):  # "amp" is slow; CLIPLoRA and test_trainers_precisions.py run it
        return ["fp32"] if backbone == "rn0" else ["fp32", "fp16", "bf16"]
    if backbone == "rn0":
        return ["fp32", "amp"]  # halves are slow on a CPU
    if views == 0 and method != "TaskRes":
        return ["fp32" if through_encoder else "fp16"]
    return list(PRECISIONS)


def is_resumed_in(method: str, backbone: str, views: int, precision: str) -> bool:
    """Whether the case's run is resumed and loaded, too: in fp32 and fp16, of what has prompts in fp16."""
    if method == "IVLP" or backbone != "vit0":  # PromptSRC saves what IVLP does
        return False
    return precision == "fp16" if method in PROMPTED else views == 2 and precision in ("fp32", "fp16")


@pytest.mark.parametrize(("method", "backbone", "views"), CASES)
def test_a_method_gives_the_cpus_numbers_on_a_gpu_and_is_resumed_and_loaded_without_a_change(
    on_cuda: Any, images: Path, tmp_path: Path, golden_backbone: Any, method: str, backbone: str, views: int
) -> None:
    case = views, str(golden_backbone(backbone)), str(images)
    expected = train(method, "fp32", *case, str(tmp_path / "cpu"))
    for precision in precisions_of(method, backbone, views):
        run_of = method, precision, *case, str(tmp_path / precision)
        found = on_cuda(train, *run_of)
        assert found["device"] == "cuda"
        assert found["devices"] <= {"cuda:0"}
        assert np.isfinite(found["logits"]).all()
        error = np.abs(found["logits"] - expected["logits"]).max() / np.abs(expected["logits"]).max()
        assert error < PRECISIONS[precision], precision
        if precision == "fp32":
            assert found["accuracy"] == expected["accuracy"]
        else:
            assert error > 0, f"{precision} has no effect"
        if is_resumed_in(method, backbone, views, precision):
            check_resumed(found, on_cuda(resume_and_load, *run_of), precision)


def check_resumed(whole: dict[str, Any], again: dict[str, Any], precision: str) -> None:
    """A resumed and a loaded run give what the whole one gave, bit by bit."""
    if "resumed" in again:
        assert again["resumed from"] == 1
        np.testing.assert_equal(again["resumed"], whole["weights"], err_msg=precision)
    if "loaded" in again:
        np.testing.assert_array_equal(again["loaded"], whole["logits"], err_msg=precision)
        assert again["evaluated"] == whole["accuracy"]
    assert ("resumed" in again) == whole["has epochs"]


def steps_in_float16(*case: Any) -> dict[str, Any]:
    """The optimiser's steps, and what is logged, of a run whose gradients overflow at first."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("dassl_lite")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    trainer = trainer_of(*case)
    steps: list[float] = []
    trainer.optim.register_step_post_hook(lambda *_: steps.append(trainer.get_current_lr()))
    start = trainer.scaler.get_scale()
    trainer.train()
    logger.removeHandler(handler)
    told = [message for message in messages if "overflow" in message]
    return {"rates": steps, "told": told, "scale": (start, trainer.scaler.get_scale())}


@pytest.mark.parametrize(
    ("method", "precision"), [("TaskResEnhance", "amp"), ("CoOp", "fp16"), ("CoOp", "amp"), ("ProGrad", "amp")]
)
def test_a_step_whose_scaled_gradients_overflow_is_repeated_and_that_is_said_once(
    on_cuda: Any, images: Path, tmp_path: Path, golden_backbone: Any, method: str, precision: str
) -> None:
    case = method, precision, 2, str(golden_backbone("vit0")), str(images), str(tmp_path)
    found = on_cuda(steps_in_float16, *case)
    assert found["rates"] == [1e-3, 1e-3, 5e-4, 5e-4]  # as many steps as batches, the schedule beside them
    assert found["scale"][1] < found["scale"][0]
    assert len(found["told"]) == 1


def test_recomputed_activations_survive_a_repeated_step(
    on_cuda: Any, images: Path, tmp_path: Path, golden_backbone: Any
) -> None:
    case = "CoOp", "fp16", 2, str(golden_backbone("vit0")), str(images)
    plain = on_cuda(train, *case, str(tmp_path / "plain"))
    recomputed = on_cuda(train, *case, str(tmp_path / "recomputed"), "TRAINER.COOP.TEXT_CHECKPOINT", "True")
    np.testing.assert_allclose(recomputed["logits"], plain["logits"], rtol=1e-3, atol=1e-3)


def broken_gradients(*case: Any) -> str:
    trainer = trainer_of(*case)
    backward = trainer.scaler.scale
    trainer.scaler.scale = lambda loss: backward(loss) * float("inf")
    try:
        trainer.train()
    except NotFiniteError as error:
        return str(error)
    return "it ended"


def test_gradients_that_no_scale_makes_finite_end_the_run(
    on_cuda: Any, images: Path, tmp_path: Path, golden_backbone: Any
) -> None:
    case = "TaskRes", "amp", 2, str(golden_backbone("vit0")), str(images), str(tmp_path)
    assert on_cuda(broken_gradients, *case).startswith(
        "gradients are infinite or NaN at epoch 1, batch 1, whatever the scale; lower OPTIM.LR"
    )


def automatic(method: str, images: str, backbone: str, output: str) -> dict[str, Any]:
    trainer = trainer_of(method, "auto", 2, backbone, images, output)
    return {
        "precision": trainer.precision,
        "arithmetic": trainer.run_results()["arithmetic"]["precision"],
        "declared": trainer.through_encoder,
        "head's": getattr(trainer.head, "through_encoder", False),
        "scaler": trainer.scaler is not None,
    }


@pytest.mark.parametrize("method", METHODS)
def test_auto_is_fp16_on_a_gpu_unless_gradients_run_through_an_encoder(
    on_cuda: Any, images: Path, tmp_path: Path, golden_backbone: Any, method: str
) -> None:
    found = on_cuda(automatic, method, str(images), str(golden_backbone("vit0")), str(tmp_path))
    assert found["precision"] == found["arithmetic"] == ("fp32" if found["head's"] else "fp16")
    assert found["declared"] == found["head's"]
    assert not found["scaler"]


def automatic_in_a_corner(corner: str, *case: Any) -> str:
    patch = {
        "overflows": mock.patch.object(run_backbone, "overflows", return_value=True),
        "an old GPU": mock.patch.object(torch.cuda, "get_device_capability", return_value=(6, 1)),
    }
    with patch[corner]:
        return str(trainer_of("TaskRes", "auto", 2, *case).precision)


@pytest.mark.parametrize("corner", ["overflows", "an old GPU"])
def test_auto_is_fp32_where_float16_overflows_or_is_slow(
    on_cuda: Any, images: Path, tmp_path: Path, golden_backbone: Any, corner: str
) -> None:
    case = str(golden_backbone("vit0")), str(images), str(tmp_path)
    assert on_cuda(automatic_in_a_corner, corner, *case) == "fp32"


def overflow_is_seen(backbone: str) -> tuple[bool, bool]:
    clip = load_clip(backbone, "fp16", "cuda")
    before = overflows(clip)
    clip.model.visual.ln_post.weight.data.mul_(1e6)
    return before, overflows(clip)


def test_features_that_are_infinite_in_float16_are_seen(on_cuda: Any, golden_backbone: Any) -> None:
    assert on_cuda(overflow_is_seen, str(golden_backbone("vit0"))) == (False, True)


def continued(precision: str, cut: bool, method: str, *case: Any) -> dict[str, Any]:
    """A run with PREC auto in the folder of one with ``precision``, which has ended or not."""
    cfg = trainer_of(method, precision, *case).cfg
    run.train(cfg)
    if cut:
        (Path(case[-1]) / "results.json").unlink()
        sorted(Path(case[-1]).glob("*/model.pth.tar-*"))[-1].unlink()
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TRAINER[method].PREC = "auto"
    cfg.freeze()
    run.train(cfg)
    results = read_results(case[-1])
    assert results is not None
    return {"computed in": results["arithmetic"]["precision"], "PREC": results["config"]["TRAINER"][method]["PREC"]}


@pytest.mark.parametrize("cut", [False, True])
def test_a_run_in_fp32_from_before_auto_is_resumed_in_fp32_on_a_gpu(
    on_cuda: Any, images: Path, tmp_path: Path, golden_backbone: Any, cut: bool
) -> None:
    case = "TaskRes", 2, str(golden_backbone("vit0")), str(images), str(tmp_path)
    found = on_cuda(continued, "fp32", cut, *case)
    assert found == {"computed in": "fp32", "PREC": "fp32"}


def resumed_without_a_session(method: str, *case: Any) -> str:
    trainer_of(method, "fp32", *case).train()
    try:
        trainer_of(method, "auto", *case).train()
    except UserError as error:
        return str(error)
    return "it ended"


def test_an_older_run_is_not_resumed_in_another_precision(
    on_cuda: Any, images: Path, tmp_path: Path, golden_backbone: Any
) -> None:
    case = "TaskRes", 2, str(golden_backbone("vit0")), str(images), str(tmp_path)
    told = on_cuda(resumed_without_a_session, *case)
    assert "belongs to a run in fp32, but PREC auto is fp16 here; set it to fp32" in told
