"""CLIP-LoRA as a run: its length, files, resuming, precisions, and what it says to settings that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tints import draw_tints

from dassl_lite.data.feature_cache.loader import FeatureLoader
from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.models.lora import merge_lora
from dassl_lite.tools import eval as eval_tool
from dassl_lite.utils import UserError, set_random_seed


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training and four test pictures of each of three classes."""
    return draw_tints(tmp_path_factory.mktemp("tints"), {"train": 6, "val": 2, "test": 4})


@pytest.fixture
def make(golden_backbone: Any, pictures: Path, tmp_path: Path) -> Any:
    """``make("run", "KEY", "value", backbone="vit0")``: a seeded trainer on the pictures, with batches of 4."""

    def build(run: str, *options: str, backbone: str = "vit0", shots: int = -1) -> Any:
        cfg = make_config(
            trainer="CLIPLoRA",
            method_file="_base.yaml",
            flags={
                "DATASET": {"NAME": "ImageFolder", "ROOT": str(pictures), "NUM_SHOTS": shots},
                "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 4}},
                "MODEL": {"BACKBONE": {"NAME": backbone if ":" in backbone else str(golden_backbone(backbone))}},
                "OUTPUT_DIR": str(tmp_path / run),
            },
            options=["TRAINER.CLIPLoRA.STEPS_PER_SHOT", "1", *options],
        )
        set_random_seed(1)
        return build_trainer(cfg)

    return build


def state(trainer: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in trainer.head.state_dict().items()}


@pytest.mark.slow
def test_a_run_has_exactly_its_steps_and_the_rate_falls_after_each(make):
    trainer, rates = make("run"), []
    own = trainer.forward_backward
    trainer.forward_backward = lambda batch: rates.append(trainer.get_current_lr()) or own(batch)
    trainer.train()
    assert trainer.max_epoch == 2  # 18 images: 4 batches in an epoch, of which the second is cut
    assert len(rates) == 6
    expected = [1e-6 + (2e-4 - 1e-6) * (1 + np.cos(np.pi * i / 6)) / 2 for i in range(6)]
    assert rates == pytest.approx(expected)
    assert trainer.get_current_lr() == pytest.approx(1e-6)


@pytest.mark.slow
def test_the_number_of_steps_follows_the_shots_then_the_epochs(make):
    assert make("a", "TRAINER.CLIPLoRA.STEPS_PER_SHOT", "500", shots=2).steps_to_train() == 1000
    by_epochs = make("b", "TRAINER.CLIPLoRA.STEPS_PER_SHOT", "0", "OPTIM.MAX_EPOCH", "3")
    assert (by_epochs.steps_to_train(), by_epochs.max_epoch) == (12, 3)


@pytest.mark.slow
def test_the_saved_file_holds_the_pairs_alone_and_gives_the_same_logits(make, golden):
    trainer, images = make("run"), golden.tiny_clip.images("vit", 5, 6)
    trainer.train()
    (path,) = (Path(trainer.output_dir) / "clip_lora").glob("model.pth.tar-*")
    saved = torch.load(path, weights_only=True)
    assert all(key.split(".")[-1] in ("w_lora_A", "w_lora_B") for key in saved["state_dict"])
    assert sum(value.numel() for value in saved["state_dict"].values()) == 3072
    assert path.stat().st_size < 200_000
    with torch.no_grad():
        expected = trainer.model_inference(trainer.encode_image(images))
        other = make("other")
        before = other.set_model_mode("eval") or other.model_inference(other.encode_image(images))
        other.load_model(trainer.output_dir)
        found = other.model_inference(other.encode_image(images))
        assert not torch.allclose(before, expected)
        assert torch.equal(found, expected)
        merge_lora(other.clip.model)
        merged = other.model_inference(other.encode_image(images))
    assert (merged - expected).abs().max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("family", ["SigLIP", "EVA02", "roberta"])
def test_a_run_on_linear_attention_layers_loads_again_and_merges(make, family_names, family):
    trainer, images = make("run", backbone=family_names[family]), torch.randn(6, 3, 32, 32)
    assert trainer.head.settings["encoder"] == "both"
    trainer.train()
    (path,) = (Path(trainer.output_dir) / "clip_lora").glob("model.pth.tar-*")
    saved = torch.load(path, weights_only=True)["state_dict"]
    layers = [f"{encoder}.{n}.{p}_proj" for encoder in ("text", "vision") for n in (0, 1) for p in "qkv"]
    assert {key.rpartition(".")[0] for key in saved} == set(layers)
    with torch.no_grad():
        expected = trainer.model_inference(trainer.encode_image(images))
        other = make("other", backbone=family_names[family])
        before = other.set_model_mode("eval") or other.model_inference(other.encode_image(images))
        other.load_model(trainer.output_dir)
        assert torch.equal(other.model_inference(other.encode_image(images)), expected)
        assert not torch.equal(before, expected)
        assert merge_lora(other.clip.model) == 4
        assert (other.model_inference(other.encode_image(images)) - expected).abs().max() < 1e-3
    with pytest.raises(UserError, match=r"encoder = both, but this run has text; set TRAINER.CLIPLoRA.ENCODER to that"):
        make("text", "TRAINER.CLIPLoRA.ENCODER", "text", backbone=family_names[family]).load_model(trainer.output_dir)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_run(make):
    whole = make("whole", "TRAIN.CHECKPOINT_FREQ", "1")
    whole.train()
    folder = Path(whole.output_dir) / "clip_lora"
    assert [path.name for path in sorted(folder.glob("model*"))] == ["model.pth.tar-1", "model.pth.tar-2"]
    (folder / "model.pth.tar-2").unlink()
    resumed = make("whole")
    resumed.train()
    assert resumed.start_epoch == 1
    for key, value in state(whole).items():
        assert torch.equal(resumed.head.state_dict()[key], value), key


@pytest.mark.slow
def test_weights_of_another_scale_are_refused(make):
    trainer = make("run")
    trainer.train()
    with pytest.raises(UserError, match=r"alpha = 1\.0, but this run has 2\.0"):
        make("other", "TRAINER.CLIPLoRA.ALPHA", "2").load_model(trainer.output_dir)


@pytest.mark.slow
def test_the_evaluating_tool_reads_the_authors_file(make, golden, golden_backbone, pictures, tmp_path):
    described = golden.json("clip_lora")
    path, backbone = golden.path("") / described["saved_file"]["path"][0], described["model"]
    trainer = make("run", backbone=backbone)
    trainer.test()
    without = trainer.results["test"]["ece"]
    trainer.load_model(path)
    trainer.test()
    expected = trainer.results["test"]["ece"]
    assert expected != without
    arguments = ["--trainer", "CLIPLoRA", "--backbone", str(golden_backbone(backbone)), "--root", str(pictures)]
    for place in (path, path.parent):
        table = ["--model-dir", str(place), "--output", str(tmp_path / "table.json"), "DATASET.NAME", "ImageFolder"]
        assert run_tool(eval_tool.main, [*arguments, *table, "DATALOADER.NUM_WORKERS", "0"]) == 0
        (row,) = json.loads((tmp_path / "table.json").read_text())["rows"]
        assert row["ece"] == pytest.approx(expected, rel=1e-4)


def test_zero_shot_ignores_the_pairs(make):
    trainer = make("run")
    before = trainer.zero_shot()
    with torch.no_grad():
        for parameter in trainer.head.parameters():
            parameter.normal_()
    assert trainer.zero_shot() == before


@pytest.mark.slow
def test_only_text_adapters_train_on_cached_features(make):
    text = make("text", "TRAINER.CLIPLoRA.ENCODER", "text")
    assert isinstance(text.train_loader_x, FeatureLoader)
    assert not text.trains_images
    text.train()
    for encoder in ("both", "vision"):
        trainer = make(encoder, "TRAINER.CLIPLoRA.ENCODER", encoder)
        assert not isinstance(trainer.train_loader_x, FeatureLoader)
        assert trainer.trains_images


def test_class_weights_are_computed_once_per_evaluation(make):
    trainer, calls = make("run"), []
    own = trainer.clip.text.encode_tokens
    trainer.clip.text.encode_tokens = lambda *args, **kwargs: calls.append(1) or own(*args, **kwargs)
    trainer.test()
    assert len(calls) == 1
    with torch.no_grad():
        for parameter in trainer.head.text.parameters():
            parameter.normal_()
    before = trainer.head.class_features()
    trainer.test()
    assert len(calls) == 3
    assert torch.equal(trainer.head.class_features(), before)


@pytest.mark.slow
def test_saving_memory_changes_no_gradient(make):
    def gradients(*options: str) -> list[torch.Tensor]:
        trainer = make("memory", "TRAINER.CLIPLoRA.TEXT_CHUNK", "2", *options)
        features, label = trainer.parse_batch_train(next(iter(trainer.train_loader_x)))
        trainer.set_model_mode("train")
        torch.manual_seed(5)
        trainer.loss(trainer.head(features), label).backward()
        return [parameter.grad for parameter in trainer.head.text.parameters()]

    for dropout in ("0.0", "0.5"):
        options = ("TRAINER.CLIPLoRA.DROPOUT", dropout)
        plain, again = gradients(*options), gradients(*options, "TRAINER.CLIPLoRA.TEXT_CHECKPOINT", "True")
        largest = max(gradient.abs().max() for gradient in plain)
        assert all((a - b).abs().max() < 1e-5 * largest for a, b in zip(plain, again, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["amp", "bf16"])
def test_narrow_precisions_train_to_about_the_same_loss(make, precision):
    def losses(*options: str) -> list[float]:
        trainer, found = make(precision, "TRAINER.CLIPLoRA.DROPOUT", "0.0", *options), []
        own = trainer.forward_backward
        trainer.forward_backward = lambda batch: found.append(own(batch)["loss"]) or {"loss": found[-1]}
        trainer.run_log = _Silent()
        trainer.run_epoch()
        assert all(parameter.dtype == torch.float32 for parameter in trainer.head.parameters())
        return found

    assert losses("TRAINER.CLIPLoRA.PREC", precision) == pytest.approx(losses(), rel=0.1, abs=0.05)


class _Silent:
    """Takes the place of the run's log."""

    def __getattr__(self, name: str) -> Any:
        return (lambda *args: None) if name != "losses" else type("Losses", (), {"meters": {}})


@pytest.mark.slow
def test_a_resnet_backbone_adapts_its_text_encoder_and_says_so(make, caplog):
    with caplog.at_level("INFO", logger="dassl_lite"):
        trainer = make("run", backbone="rn0")
    assert "adapts the text encoder alone" in caplog.text
    assert len(trainer.head.text) == 2
    assert not len(trainer.head.vision)
    trainer.train()
    assert trainer.head.settings["encoder"] == "text"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("ENCODER", "image"), "unknown value of TRAINER.CLIPLoRA.ENCODER 'image'. Choices: auto, both, text, vision."),
        (("PARAMS", "q,x"), "unknown value in TRAINER.CLIPLoRA.PARAMS 'x'. Choices: k, o, q, v."),
        (("PARAMS", "()"), "TRAINER.CLIPLoRA.PARAMS is (); it must be some of q, k, v, o"),
        (("RANK", "0"), "TRAINER.CLIPLoRA.RANK is 0; it must be at least 1"),
        (("DROPOUT", "1.0"), "TRAINER.CLIPLoRA.DROPOUT is 1.0; it must be"),
        (("ALPHA", "0"), "TRAINER.CLIPLoRA.ALPHA is 0.0; it must be"),
        (("STEPS_PER_SHOT", "-1"), "TRAINER.CLIPLoRA.STEPS_PER_SHOT is -1; it must be"),
        (("BLOCKS", "(0, 2)"), "LoRA block 2 is out of range: the text encoder has blocks 0 to 1"),
        (("BLOCKS", "['a']"), "TRAINER.CLIPLoRA.BLOCKS is"),
        (("POSITION", "top3"), "'top3' is out of range: the text encoder has 2 blocks"),
        (("POSITION", "al"), "Did you mean 'all'?"),
        (("PREC", "fp8"), "unknown precision 'fp8'"),
    ],
)
def test_a_wrong_setting_is_one_line_with_the_remedy(make, options, message):
    with pytest.raises(UserError) as caught:
        make("run", f"TRAINER.CLIPLoRA.{options[0]}", options[1])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["both", "vision"])
def test_a_resnet_image_encoder_cannot_be_adapted(make, encoder):
    with pytest.raises(UserError, match="TRAINER.CLIPLoRA.ENCODER text"):
        make("run", "TRAINER.CLIPLoRA.ENCODER", encoder, backbone="rn0")


@pytest.mark.parametrize(
    ("recipe", "backbone"), [("vit_b16", "ViT-B/16"), ("vit_b32", "ViT-B/32"), ("vit_l14", "ViT-L/14")]
)
def test_published_recipes_hold_the_papers_numbers(recipe, backbone):
    cfg = make_config(trainer="CLIPLoRA", method_file=f"{recipe}.yaml")
    node, optim = cfg.TRAINER.CLIPLoRA, cfg.OPTIM
    assert backbone == cfg.MODEL.BACKBONE.NAME
    assert (node.ENCODER, node.PARAMS, node.POSITION) == ("both", ("q", "k", "v"), "all")
    assert (node.RANK, node.ALPHA, node.DROPOUT, node.STEPS_PER_SHOT) == (2, 1.0, 0.25, 500)
    assert (optim.NAME, optim.LR, optim.WEIGHT_DECAY, optim.MIN_LR) == ("adamw", 2e-4, 1e-2, 1e-6)
    assert (optim.LR_SCHEDULER, optim.SCHEDULE_UNIT, cfg.DATALOADER.TRAIN_X.BATCH_SIZE) == ("cosine", "batch", 32)
