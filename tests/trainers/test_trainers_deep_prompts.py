"""IVLP, VPT, MaPLe and PromptSRC beyond their authors' numbers: cached features, other classes, wrong settings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.engine.commands import sweep
from dassl_lite.models.prompts import class_weights
from dassl_lite.trainers.promptsrc import epoch_weights
from dassl_lite.utils import UserError, set_random_seed

METHODS = ("IVLP", "VPT", "MaPLe", "PromptSRC")
CLASSES = ("crane", "golden retriever", "yo-yo", "hen")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("deep") / "images", np.random.default_rng(0)
    for part, count in {"train": 3, "val": 1, "test": 2}.items():
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture
def make(images: Path, tmp_path: Path, golden_backbone: Any) -> Callable[..., Any]:
    """``make("IVLP", "OPTIM.LR", "1")``: a trainer of two epochs on small images."""

    def trainer(method: str, *options: str, backbone: str = "vit0", output: str = "run", views: int = 1) -> Any:
        flags = {
            "DATASET": {"ROOT": str(images), "NAME": "ImageFolder", "FEATURES": {"VIEWS": views}},
            "MODEL": {"BACKBONE": {"NAME": str(golden_backbone(backbone))}},
            "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 6}},
            "OPTIM": {"NAME": "sgd", "LR": 0.001, "MAX_EPOCH": 2},
            "TRAIN": {"CHECKPOINT_FREQ": 1},
            "OUTPUT_DIR": str(tmp_path / output),
            "VERBOSE": False,
        }
        set_random_seed(1)
        return build_trainer(make_config(trainer=method, flags=flags, options=options))

    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_from_base_classes_is_resumed_bit_by_bit_and_evaluated_on_new_ones(make: Any, method: str) -> None:
    base, new = ("DATASET.SUBSAMPLE_CLASSES", "base"), ("DATASET.SUBSAMPLE_CLASSES", "new")
    trainer = make(method, *base)
    trainer.train()
    whole = {name: tensor.clone() for name, tensor in trainer.head.state_dict().items()}
    (Path(trainer.output_dir) / trainer.model_name / "model.pth.tar-2").unlink()
    again = make(method, *base)
    again.train()
    assert again.start_epoch == 1
    assert all(torch.equal(tensor, whole[name]) for name, tensor in again.head.state_dict().items())
    other = make(method, *new, output="new")
    start = {name: tensor.clone() for name, tensor in other.head.state_dict().items()}
    other.load_model(trainer.output_dir)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in other.head.state_dict().items())
    assert any(not torch.equal(tensor, start[name]) for name, tensor in whole.items())
    assert 0 <= other.test() <= 100
    assert other.num_classes == 2


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", METHODS)
def test_zero_shot_accuracy_is_of_the_encoder_without_prompts(make: Any, method: str) -> None:
    trainer = make(method)
    frozen = make("ZeroshotCLIP", output="frozen")
    batch = next(iter(trainer.test_loader))
    with torch.no_grad():
        features, _ = trainer.parse_batch_test(batch)
        with trainer.clip.images.unprompted():
            unprompted, _ = trainer.parse_batch_test(batch)
        assert torch.equal(unprompted, frozen.clip.encode_image(batch["img"]))
    assert not torch.allclose(features, unprompted, rtol=1e-3)
    assert trainer.zero_shot() == frozen.test()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["IVLP", "PromptSRC"])
def test_images_are_encoded_once_if_the_text_alone_has_prompts(make: Any, method: str) -> None:
    node = method.upper()
    assert make(method, f"TRAINER.{node}.N_CTX_VISION", "0").head.vision is None
    trainer, encoded = make(method, f"TRAINER.{node}.PROMPT_DEPTH_VISION", "0", views=2), []
    trainer.clip.visual.register_forward_pre_hook(lambda *given: encoded.append(given))
    assert trainer.train_loader_x.gives_features
    assert not trainer.trains_images
    assert list(trainer.head.state_dict()) == ["ctx", "deep.0"]
    trainer.train()
    encoded.clear()
    trainer.test()
    assert encoded == []


@pytest.mark.parametrize("method", ["IVLP", "PromptSRC"])
def test_on_a_resnet_the_text_alone_has_prompts(make: Any, method: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        trainer = make(method, backbone="rn0")
    assert "is not a ViT that takes prompts: only the text has prompts" in caplog.text
    assert trainer.head.vision is None


@pytest.mark.slow_after(2)
@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("VPT", (), "is not a ViT of open_clip with a class token, so it takes no prompts; use a ViT such as ViT-B/16"),
        ("MaPLe", (), "so it takes no prompts; use a ViT such as ViT-B/16"),
        ("IVLP", ("PROMPT_DEPTH_VISION", "2"), "such as ViT-B/16, or TRAINER.IVLP.PROMPT_DEPTH_VISION 0"),
        (
            "IVLP",
            ("N_CTX_TEXT", "4", "CTX_INIT", "a photo"),
            "is to start 4 vectors, but has for this backbone's token",
        ),
        ("MaPLe", ("N_CTX", "3", "CTX_INIT", "photo"), "TRAINER.MAPLE.CTX_INIT 'photo' is to start 3 vectors, but has"),
        ("PromptSRC", ("N_CTX_TEXT", "80"), "TRAINER.PROMPTSRC.N_CTX_TEXT 80 does not fit"),
        ("IVLP", ("N_CTX_VISION", "-1"), "TRAINER.IVLP.N_CTX_VISION is -1; it must be"),
        ("VPT", ("PROMPT_DEPTH_VISION", "0"), "TRAINER.VPT.PROMPT_DEPTH_VISION is 0; it must be"),
        ("IVLP", ("PROMPT_DEPTH_TEXT", "0"), "TRAINER.IVLP.PROMPT_DEPTH_TEXT is 0; it must be"),
        ("PromptSRC", ("GPA_STD", "0.0"), "TRAINER.PROMPTSRC.GPA_STD is 0.0; it must be"),
        ("PromptSRC", ("TEXT_LOSS_WEIGHT", "-1.0"), "TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT is -1.0; it must be"),
        ("VPT", ("CTX_INIT", "a {}"), "TRAINER.VPT.CTX_INIT is 'a {}'; it must be words alone"),
    ],
)
def test_a_wrong_setting_is_one_line(make: Any, method: str, options: tuple[str, ...], message: str) -> None:
    own = [f"TRAINER.{method.upper()}.{part}" if i % 2 == 0 else part for i, part in enumerate(options)]
    refused_by_a_vit = "0" in options or (options and options[0] != "PROMPT_DEPTH_VISION")
    with pytest.raises(UserError) as caught:
        make(method, *own, backbone="vit0" if refused_by_a_vit else "rn0")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_prompts_of_more_blocks_than_there_are_prompt_all_of_them(
    make: Any, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        make(method)  # with the authors' depth
    assert "encoder has 2 blocks: all of them are prompted" in caplog.text


def test_a_long_context_is_random_and_the_words_are_told_to_have_no_effect(make: Any) -> None:
    trainer = make("MaPLe", "TRAINER.MAPLE.N_CTX", "5")
    assert trainer.head.layout.words is None
    assert trainer.head.layout.n_ctx == 5
    assert "TRAINER.MAPLE.CTX_INIT" in trainer.idle_keys()
    assert "TRAINER.MAPLE.CTX_INIT" not in make("MaPLe", output="other").idle_keys()


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(("zero", "idle"), [("N_CTX", "PROMPT_DEPTH"), ("PROMPT_DEPTH", "N_CTX")])
def test_the_key_that_leaves_the_image_encoder_without_prompts_has_an_effect_and_the_other_none(
    make: Any, zero: str, idle: str
) -> None:
    found = make("IVLP", f"TRAINER.IVLP.{zero}_VISION", "0").idle_keys()
    assert [key for key in found if key.endswith("_VISION")] == [f"TRAINER.IVLP.{idle}_VISION"]


def test_vpt_compares_images_with_the_fixed_prompt(make: Any) -> None:
    trainer = make("VPT", "TRAINER.VPT.CTX_INIT", "art_of the")
    expected = class_weights(trainer.clip, list(trainer.classnames), ["art of the {}."])
    assert torch.allclose(trainer.head.class_features(), normalize(expected, dim=-1), atol=1e-6)
    assert trainer.head.class_features().grad_fn is None


def test_an_average_of_other_shapes_is_not_resumed(make: Any) -> None:
    trainer = make("PromptSRC", "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", "0")
    sums = {name: torch.zeros(7) for name, _ in trainer.head.named_parameters()}
    with pytest.raises(ValueError, match="other shapes than this run, first of ctx"):
        trainer.restore_method_state({"total": 1.0, "sums": sums})


def test_an_average_of_epochs_that_weigh_next_to_nothing_is_a_mean(make: Any) -> None:
    weights = epoch_weights(50, 1000.0, 0.1)
    assert torch.isfinite(weights).all()
    assert weights.sum() == pytest.approx(1)
    trainer = make("PromptSRC", "TRAINER.PROMPTSRC.GPA_MEAN", "2.0", "TRAINER.PROMPTSRC.GPA_STD", "0.05")
    trainer.max_epoch, trainer.epoch = 3, 0
    trainer.run_epoch()  # epoch 1 of 3, with a weight of 1e-87
    assert 0 < trainer.total < 1e-80
    start = trainer._learned()
    with trainer.deployed():
        assert all(torch.allclose(tensor, start[name]) for name, tensor in trainer._learned().items())


@pytest.mark.parametrize(
    ("backbone", "left"), [("rn0", {"TaskRes", "IVLP"}), ("vit0", {"TaskRes", "IVLP", "VPT", "MaPLe"})]
)
def test_a_sweep_of_all_methods_leaves_those_out_that_need_a_vit(make: Any, backbone: str, left: set[str]) -> None:
    cfg = make("ZeroshotCLIP", backbone=backbone).cfg
    assert set(sweep.compatible_methods(["TaskRes", "IVLP", "VPT", "MaPLe"], cfg)) == left
