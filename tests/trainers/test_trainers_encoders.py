"""TwoStage and MMA, which adapt CLIP's encoders, as runs: files, resuming, what they compute, what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tints import draw_tints

from dassl_lite.data.feature_cache.loader import FeatureLoader
from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.models.clip import load_clip
from dassl_lite.models.tuned_parameters import TunedParameters, places
from dassl_lite.utils import UserError, set_random_seed

load_plugins()
STEPS = "TRAINER.TwoStage.STEPS_PER_SHOT"


COUNTS = {"train": 5, "val": 2, "test": 3}  # pictures of each class


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_tints(tmp_path_factory.mktemp("tints"), COUNTS)


@pytest.fixture(scope="module")
def unequal(golden: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP with three blocks in the image encoder and two in the text encoder."""
    path = tmp_path_factory.mktemp("unequal") / "clip.safetensors"
    save_file(golden.tiny_clip.state_dict("vit", 3, vision_layers=3), path)
    return str(path)


@pytest.fixture
def make(golden_backbone: Any, pictures: Path, tmp_path: Path) -> Callable[..., Any]:
    """``make("MMA", "run", "KEY", "value", backbone="vit0")``: a seeded trainer, batches of 4; 15 images, 3 batches."""

    def build(method: str, run: str, *options: str, backbone: str = "vit0", data: Path = pictures) -> Any:
        cfg = make_config(
            trainer=method,
            method_file="_base.yaml",
            flags={
                "DATASET": {"NAME": "ImageFolder", "ROOT": str(data), "FEATURES": {"VIEWS": 2}},
                "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 4}},
                "OPTIM": {"LR": 0.003},
                "MODEL": {"BACKBONE": {"NAME": backbone if "/" in backbone else str(golden_backbone(backbone))}},
                "OUTPUT_DIR": str(tmp_path / run),
                "TRAIN": {"CHECKPOINT_FREQ": 1},
                "VERBOSE": False,
            },
            options=[*((STEPS, "2") if method == "TwoStage" else ("OPTIM.MAX_EPOCH", "2")), *options],
        )
        set_random_seed(1)
        return build_trainer(cfg)

    return build


def weights(trainer: Any) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in trainer.head.state_dict().items()}


@torch.no_grad()
def logits(trainer: Any, images: torch.Tensor) -> torch.Tensor:
    trainer.set_model_mode("eval")
    return trainer.model_inference(trainer.encode_image(images).float())


def loaded(make: Callable[..., Any], method: str, run: str, *options: str, **kwargs: Any) -> Any:
    trainer = make(method, "other", *options, **kwargs)
    trainer.load_model(Path(trainer.output_dir).parent / run)
    return trainer


CASES = [
    ("MMA", 1, ()),
    ("TwoStage", 1, ()),  # 10 steps in epochs of 3: stage 1 has 6 of them, in 2 epochs, stage 2 has 4
    ("TwoStage", 2, ()),
    ("TwoStage", 3, ("TRAINER.TwoStage.PREC", "bf16", "TRAINER.TwoStage.PEFT", "bitfit")),
    ("TwoStage", 1, ("TRAINER.TwoStage.STAGE1_SHARE", "0", "OPTIM.NAME", "sgd")),
    ("TwoStage", 3, ("TRAINER.TwoStage.STAGE1_SHARE", "1")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "epoch", "options"), CASES)
def test_a_resumed_and_a_loaded_run_equal_one_that_never_stopped(make, golden, method, epoch, options):
    whole, images = make(method, "run", *options), golden.tiny_clip.images("vit", 5, 6)
    zero_shot, before = whole.zero_shot(), logits(whole, images)
    whole.train()
    expected = logits(whole, images)
    assert not torch.equal(expected, before)
    assert whole.zero_shot() == zero_shot
    assert torch.equal(logits(whole, images), expected)
    for number in range(epoch + 1, whole.max_epoch + 1):
        (Path(whole.output_dir) / whole.model_name / f"model.pth.tar-{number}").unlink()
    resumed = make(method, "run", *options)
    assert resumed.zero_shot() == zero_shot
    resumed.train()
    assert resumed.start_epoch == epoch < resumed.max_epoch
    np.testing.assert_equal(weights(resumed), weights(whole))
    assert resumed.results == whole.results
    again = loaded(make, method, "run", *options)
    assert torch.equal(logits(again, images), expected)
    again.test()
    assert again.results["test"] == whole.results["test"]
    assert all(parameter.dtype == torch.float32 for parameter in again.head.parameters())
    saved = torch.load(
        Path(whole.output_dir) / whole.model_name / f"model.pth.tar-{whole.max_epoch}", weights_only=True
    )
    assert set(saved["state_dict"]) == set(weights(whole))


@pytest.mark.slow
def test_the_stages_have_their_own_optimiser_state_and_schedule(make):
    trainer, rates, classifies = make("TwoStage", "run"), [], []
    own, start = trainer.forward_backward, {}

    def step(batch: Any) -> Any:
        rates.append(trainer.get_current_lr())
        classifies.append(trainer.head.classifies)
        if sum(classifies) == 1 and trainer.head.classifies:
            start.update(weights(trainer))
            assert trainer.head.classifier not in trainer.optim.state
        return own(batch)

    trainer.forward_backward = step
    trainer.train()
    assert classifies == [False] * 6 + [True] * 4
    cosine = [1e-6 + (0.003 - 1e-6) * (1 + np.cos(np.pi * i / n)) / 2 for n in (6, 4) for i in range(n)]
    assert rates == pytest.approx(cosine)
    after = weights(trainer)
    changed = {name for name in after if not np.array_equal(after[name], start[name])}
    assert changed == {"classifier"}
    tuned = dict(trainer.head.tuned.named_parameters())
    assert all(trainer.clip.model.get_parameter(name) is parameter for name, parameter in tuned.items())


@pytest.mark.slow
@pytest.mark.parametrize(("views", "encoded"), [("2", 2 * 15 + 9), ("0", 4 * 4 + 9)])
def test_stage_two_encodes_an_image_once_for_each_view(make, views, encoded):
    trainer, counts = make("TwoStage", "run", "DATASET.FEATURES.VIEWS", views, STEPS, "4"), []
    own = trainer.encode_image

    def encode(images: torch.Tensor) -> torch.Tensor:
        counts.append(len(images) if trainer.head.classifies else 0)
        return own(images)

    trainer.encode_image = encode
    trainer.train()
    stage_two = sum(counts)
    assert isinstance(trainer.train_loader_x, FeatureLoader) == (views != "0")
    assert stage_two == (encoded if views != "0" else 8 * 4 + 9)
    assert trainer.features.folder is None


@pytest.mark.slow
def test_the_epoch_that_validation_selects_may_be_one_of_stage_one(make, golden):
    trainer, images = make("TwoStage", "run", "TEST.FINAL_MODEL", "best_val"), golden.tiny_clip.images("vit", 5, 6)
    results = iter([10.0, 30.0, 20.0, 20.0])
    own = trainer.test

    def test(split: str | None = None) -> float:
        found = own(split)
        return next(results) if split == "val" else found

    trainer.test = test
    trainer.train()
    second = make("TwoStage", "other")
    second.load_model(trainer.output_dir, epoch=2)
    assert not trainer.head.classifies
    assert torch.equal(logits(trainer, images), logits(second, images))
    second.test()
    assert second.results["test"] == trainer.results["test"]


@pytest.mark.slow
def test_other_classes_get_the_text_features_of_the_adapted_encoder(make, tmp_path):
    trainer = make("TwoStage", "run")
    trainer.train()
    other = loaded(make, "TwoStage", "run", data=draw_tints(tmp_path / "other", COUNTS, ("blue", "hovercraft", "red")))
    assert other.head.classifies
    rows, named = other.head.classifier, torch.nn.functional.normalize(other.head._encode(), dim=-1)
    assert torch.equal(rows[0], trainer.head.classifier[list(trainer.classnames).index("blue")])
    assert torch.equal(rows[1], named[1])
    assert not torch.equal(rows[2], named[2])
    with other.head.tuned.holding():
        assert not torch.equal(other.head._encode()[1], named[1])


@pytest.mark.slow
def test_init_weights_start_stage_one_from_the_norms(make):
    trainer = make("TwoStage", "run")
    trainer.train()
    path = next((Path(trainer.output_dir) / "two_stage").glob("model.pth.tar-4"))
    second = make("TwoStage", "second", "MODEL.INIT_WEIGHTS", str(path))
    assert not second.head.classifies
    assert second.trains_images
    for name, parameter in second.head.tuned.named_parameters():
        assert torch.equal(parameter, trainer.head.tuned.get_parameter(name))
    third = make("TwoStage", "third", "MODEL.INIT_WEIGHTS", str(path), "TRAINER.TwoStage.STAGE1_SHARE", "0")
    assert third.features.folder is None  # its image encoder is not the backbone's
    third.train()


@pytest.mark.slow
def test_the_outer_norms_are_trained_if_asked_for(make):
    inner = dict(make("TwoStage", "run").head.tuned.named_parameters())
    both = dict(make("TwoStage", "run", "TRAINER.TwoStage.OUTER_NORMS", "True").head.tuned.named_parameters())
    outer = {
        f"{norm}.{leaf}" for norm in ("visual.ln_pre", "visual.ln_post", "ln_final") for leaf in ("weight", "bias")
    }
    assert set(both) - set(inner) == outer
    starts = ("TRAINER.TwoStage.TEXT_START", "1", "TRAINER.TwoStage.VISION_START", "1")
    upper = make("TwoStage", "run", "TRAINER.TwoStage.OUTER_NORMS", "True", *starts).head.tuned
    assert not [name for name, _ in upper.named_parameters() if "ln_pre" in name or ".0." in name]


def test_parameters_in_half_precision_are_trained_in_float32(golden_backbone):
    clip = load_clip(str(golden_backbone("vit0")), "bf16")
    found = places(clip.model, "bitfit")
    tuned = TunedParameters([*found["text"], *found["vision"]])
    linear, images = clip.model.transformer.resblocks[0].mlp.c_fc, torch.randn(2, 3, 32, 32)
    before = clip.encode_text(clip.tokenize("a")), clip.encode_image(images)
    parameter = tuned.get_parameter("transformer.resblocks.0.mlp.c_fc.bias")
    assert (parameter.dtype, linear.bias.dtype) == (torch.float32, torch.bfloat16)
    clip.encode_text(clip.tokenize("a")).float().sum().backward()
    assert parameter.grad.dtype == torch.float32
    with torch.no_grad(), tuned.holding({name: value + 0.5 for name, value in tuned.named_parameters()}):
        changed = clip.encode_text(clip.tokenize("a")), clip.encode_image(images)
    with torch.no_grad():
        after = clip.encode_text(clip.tokenize("a")), clip.encode_image(images)
    assert all(torch.allclose(a, b, atol=0.05) for a, b in zip(before, after, strict=True))
    assert not any(torch.allclose(a, b, atol=0.05) for a, b in zip(before, changed, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "text", "vision"),
    [
        ((), [1, 2], [1, 2]),  # up to the last block of the shallower encoder
        (("START", "0", "END", "3"), [0, 1, 2], [0, 1, 2, 3]),
        (("START", "3", "END", "3"), [], [3]),
        (("ENCODER", "vision"), [], [1, 2, 3]),
        (("ENCODER", "text", "START", "2"), [2], []),
    ],
)
def test_encoders_of_different_depth_share_what_both_have(make, unequal, golden, options, text, vision):
    keys = [f"TRAINER.MMA.{part}" if part.isupper() else part for part in options]
    trainer, images = make("MMA", "run", *keys, backbone=unequal), golden.tiny_clip.images("vit", 5, 4)
    adapters = trainer.head.adapters
    assert [int(i) for i in adapters.text] == text
    assert [int(i) for i in adapters.vision] == vision
    assert [int(i) for i in adapters.shared] == sorted({*text, *vision})
    assert trainer.trains_images == bool(vision)
    start = weights(trainer)
    trainer.loss(trainer.head(trainer.encode_image(images)), torch.arange(4) % 3).backward()
    assert all(parameter.grad is not None for parameter in adapters.parameters())
    assert all(parameter.grad is None for parameter in trainer.clip.parameters())
    np.testing.assert_equal(weights(trainer), start)


@pytest.mark.slow
def test_text_with_adapters_shares_its_prefix_and_equals_the_models_own(make):
    trainer = make("MMA", "run", "TRAINER.MMA.SCALE", "0.5", "TRAINER.MMA.START", "0")
    clip, tokens = trainer.clip, trainer.clip.tokenize(["a photo of a dog.", "a photo of a very old cat.", "cars"])
    assert clip.text._can_share()

    def gradients(encode: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        features, adapters = encode(tokens), trainer.head.adapters
        owns = [*adapters.text.parameters(), *adapters.shared.parameters()]
        return features, list(torch.autograd.grad(features.square().sum(), owns))

    (found, found_gradients), (expected, expected_gradients) = map(
        gradients, (clip.encode_text, clip.model.encode_text)
    )
    assert torch.allclose(found, expected, atol=1e-5)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        assert (one - other).abs().max() < 1e-4 * other.abs().max()
    with torch.no_grad():
        plain = load_clip(clip.name).encode_text(tokens)
        assert not torch.allclose(found, plain, atol=1e-3)
        with trainer.head.adapters.off():
            assert torch.equal(clip.encode_text(tokens), plain)
    clip.model.transformer.resblocks[0].register_forward_hook(lambda *given: None)
    assert not clip.text._can_share()  # another one's hook


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", ["TwoStage", "MMA"])
def test_a_resnets_text_encoder_is_adapted_alone_and_its_image_features_are_kept(make, caplog, method):
    with caplog.at_level("INFO", logger="dassl_lite"):
        trainer = make(method, "run", backbone="rn0")
    assert f"{method} adapts the text encoder alone" in caplog.text
    assert not trainer.trains_images
    assert isinstance(trainer.train_loader_x, FeatureLoader)
    assert trainer.features.folder is not None


WRONG = [
    ("MMA", "END", "3", "vit0", "MMA.START 1 and TRAINER.MMA.END 3 must be in order and within the blocks of backbone"),
    ("MMA", "START", "3", "vit0", "TRAINER.MMA.START 3 and TRAINER.MMA.END 2 must be in order"),
    ("MMA", "SCALE", "0", "vit0", "TRAINER.MMA.SCALE is 0.0; it must be"),
    ("MMA", "ENCODER", "vision", "rn0", "MMA cannot adapt the vision encoder of backbone"),
    ("TwoStage", "ENCODER", "both", "rn0", "adapt the text encoder alone (TRAINER.TwoStage.ENCODER text)"),
    ("TwoStage", "TEXT_START", "2", "vit0", "TEXT_START 2 is out of range: the text encoder of backbone"),
    ("TwoStage", "VISION_START", "9", "vit0", "VISION_START 9 is out of range: the vision encoder of backbone"),
    ("TwoStage", "PEFT", "lora", "vit0", "unknown value of TRAINER.TwoStage.PEFT 'lora'. Choices: bitfit, ln."),
    ("TwoStage", "STAGE1_SHARE", "1.5", "vit0", "TRAINER.TwoStage.STAGE1_SHARE is 1.5; it must be"),
]


@pytest.mark.slow_after(2)
@pytest.mark.parametrize(("method", "key", "value", "backbone", "message"), WRONG)
def test_a_wrong_setting_is_one_line_with_the_remedy(make, method, key, value, backbone, message):
    with pytest.raises(UserError) as caught:
        make(method, "run", f"TRAINER.{method}.{key}", value, backbone=backbone)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_weights_of_another_scale_are_refused(make, tmp_path):
    trainer = make("MMA", "run")
    trainer.save_model(0, trainer.output_dir)
    other = make("MMA", "other", "TRAINER.MMA.SCALE", "0.01")
    before = weights(other)
    with pytest.raises(UserError, match=r"SCALE .?0\.001.?, but this run has 0\.01; set TRAINER\.MMA\.SCALE to that"):
        other.load_model(trainer.output_dir)
    np.testing.assert_equal(weights(other), before)


@pytest.mark.slow
def test_a_refused_checkpoint_leaves_the_encoders_as_they_were(make):
    trainer = make("TwoStage", "run", "TRAINER.TwoStage.PEFT", "bitfit")
    trainer.save_model(0, trainer.output_dir)
    other = make("TwoStage", "other")
    before = weights(other)
    with pytest.raises(UserError, match=r"with PEFT .?bitfit.?, but this run has ln; set TRAINER.TwoStage.PEFT"):
        other.load_model(trainer.output_dir)
    (path,) = (Path(trainer.output_dir) / "two_stage").glob("model.pth.tar-*")
    state = torch.load(path, weights_only=True)
    for meta in ({}, {**state["meta"], "two_stage": "x"}):
        torch.save({**state, "meta": meta}, path)
        with pytest.raises(UserError, match="do not fit the model"):
            other.load_model(trainer.output_dir)
    np.testing.assert_equal(weights(other), before)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(("method", "name"), [("MMA", "mma"), ("TwoStage", "two_stage")])
def test_a_checkpoint_whose_setting_is_a_tensor_is_refused_in_one_line(make: Any, method: str, name: str) -> None:
    trainer = make(method, "run")
    settings = trainer.head.settings | {"ENCODER": torch.zeros(3)}
    with pytest.raises(UserError, match="x.pth"):
        trainer.adapt_state_dict(trainer.head, {}, {name: settings}, Path("x.pth"))
    settings = {key: torch.zeros(3) for key, value in trainer.head.settings.items() if not isinstance(value, str)}
    with pytest.raises(UserError, match='weights in "x.pth" do not fit'):
        trainer.adapt_state_dict(trainer.head, {}, {name: settings}, Path("x.pth"))


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(("encoder", "idle"), [("text", "VISION_START"), ("vision", "TEXT_START"), ("both", "")])
def test_the_first_block_of_a_frozen_encoder_is_told_to_have_no_effect(make: Any, encoder: str, idle: str) -> None:
    found = make("TwoStage", "run", "TRAINER.TwoStage.ENCODER", encoder).idle_keys()
    assert [key for key in found if key.endswith("_START")] == [f"TRAINER.TwoStage.{idle}"] * bool(idle)
