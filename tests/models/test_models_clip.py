"""Loading CLIP by name: from every kind of file, in every precision, and the errors."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from dassl_lite.models import names, openai_format
from dassl_lite.models.clip import PRECISIONS, digest_of_weights, load_clip, preprocessing
from dassl_lite.utils.errors import UserError


@pytest.fixture
def small_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ViT-B-32 a model that is built in no time."""
    config = open_clip.get_model_config("ViT-B-32")
    config["vision_cfg"] |= {"layers": 1, "width": 64}
    config["text_cfg"] |= {"layers": 1, "width": 64, "heads": 1}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", config)


def same(one: Any, other: Any) -> bool:
    state = other.model.state_dict()
    return all(torch.equal(value, state[key]) for key, value in one.model.state_dict().items())


# --- the packaged weights -------------------------------------------------------------------------------------


def test_packaged_demo_encodes_images_and_texts() -> None:
    clip = load_clip("demo")
    assert clip.image_size == preprocessing("demo").size
    texts = clip.tokenize(["a photo of a red circle.", "a photo of the digit seven."])
    features = clip.encode_text(texts)
    assert features.shape == (2, clip.embed_dim)
    assert clip.encode_image(torch.randn(3, 3, *clip.image_size)).shape == (3, clip.embed_dim)
    assert torch.nn.functional.cosine_similarity(features[:1], features[1:]).item() < 0.99


def test_token_rows_that_the_demo_omits_come_from_the_documented_seed() -> None:
    from safetensors import safe_open

    clip = load_clip("demo")
    with safe_open(names.DEMO_FILE, framework="pt") as file:
        stored = file.get_tensor("token_embedding.rows").long()
        assert torch.equal(clip.model.token_embedding.weight[stored], file.get_tensor("token_embedding.weight").float())
    drawn = openai_format.token_table(clip.text.width)
    others = torch.ones(len(drawn), dtype=torch.bool)
    others[stored] = False
    assert others.sum() > 1000
    assert torch.equal(clip.model.token_embedding.weight[others], drawn[others])


def test_the_bias_of_a_sigmoid_is_available_and_does_not_change_logits(small_vit: None, monkeypatch: Any) -> None:
    assert load_clip("random:ViT-B-32").logit_bias is None
    config = open_clip.get_model_config("ViT-B-32") | {"init_logit_bias": -10}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", config)
    clip = load_clip("random:ViT-B-32")
    assert clip.logit_bias.item() == -10
    images, tokens = torch.randn(1, 3, *clip.image_size), clip.tokenize(["a", "b"])
    assert clip(images, tokens).abs().max() <= clip.logit_scale.exp()


def test_an_architecture_added_to_open_clip_is_known_at_once(monkeypatch: Any) -> None:
    names.parse("random:ViT-B-32")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "my-vit", open_clip.get_model_config("ViT-B-32"))
    assert names.parse("random:my-vit").architecture == "my-vit"


def test_loading_leaves_the_random_stream_as_it_was(small_vit: None) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_clip("demo")
    load_clip("random:ViT-B-32")
    assert torch.equal(torch.rand(3), expected)


def test_loaded_model_is_frozen_and_in_eval_mode() -> None:
    clip = load_clip("demo")
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    assert not any(module.training for module in clip.modules())


# --- local files --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["vit0", "rn0"])
def tag(request: Any) -> str:
    return request.param


@pytest.mark.slow
def test_every_kind_of_local_file_gives_the_same_model(tag: str, golden_backbone: Any, tmp_path: Path) -> None:
    path = golden_backbone(tag)
    reference = load_clip(str(path))
    state = torch.load(path)
    torch.save({"epoch": 1, "state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pt")
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file({key: value.clone() for key, value in state.items()}, tmp_path / "s.safetensors")
    _save_torchscript(state, tmp_path / "archive.pt")
    for name in ("w.pt", "legacy.pth", "s.safetensors", "archive.pt"):
        clip = load_clip(str(tmp_path / name))
        assert same(clip, reference), name
        assert clip.digest == reference.digest, name
        assert clip.preprocessing == reference.preprocessing == preprocessing(str(tmp_path / name)), name


def _save_torchscript(state: dict[str, torch.Tensor], path: Path) -> None:
    """An archive like OpenAI's: a traced model with the sizes as buffers."""
    model = openai_format.build(state, openai_format.architecture_of(state), torch.float32, "test")
    for key in ("input_resolution", "context_length", "vocab_size"):
        if hasattr(model, key):
            delattr(model, key)
        model.register_buffer(key, state[key])
    size = int(state["input_resolution"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch recommends other formats
        inputs = {"encode_image": torch.zeros(1, 3, size, size), "encode_text": torch.zeros(1, 77, dtype=torch.long)}
        torch.jit.save(torch.jit.trace_module(model, inputs), path)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # open_clip tries torch.jit.load first
def test_model_equals_open_clips_own_loader(tag: str, golden_backbone: Any, golden: Any) -> None:
    theirs = open_clip.load_openai_model(str(golden_backbone(tag)), precision="fp32", device="cpu")
    ours = load_clip(str(golden_backbone(tag)))
    images, tokens = golden.tiny_clip.images(tag.rstrip("0"), 3, 2), ours.tokenize(["a cat", "two dogs on a bench"])
    assert torch.allclose(ours.encode_image(images), theirs.encode_image(images), rtol=1e-5, atol=1e-5)
    assert torch.allclose(ours.encode_text(tokens), theirs.encode_text(tokens), rtol=1e-5, atol=1e-6)


def test_open_clips_layout_loads_with_its_architecture_named(small_vit: None, tmp_path: Path) -> None:
    model = open_clip.create_model("ViT-B-32")
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "mine.pt")
    clip = load_clip(f"ViT-B-32@scratch:{tmp_path / 'mine.pt'}")
    assert torch.equal(clip.model.visual.proj, model.visual.proj)
    assert not any(isinstance(module, open_clip.transformer.QuickGELU) for module in clip.modules())


@pytest.mark.parametrize(
    "broken", ["empty.pt", "half.pt", "half.safetensors", "other.pt", "other.safetensors", "list.pt"]
)
def test_broken_or_foreign_file_is_reported_in_one_line_that_names_it(
    broken: str, golden_backbone: Any, tmp_path: Path
) -> None:
    path = tmp_path / broken
    state = torch.load(golden_backbone("vit0"))
    if broken.startswith("empty"):
        path.write_bytes(b"")
    elif broken == "list.pt":
        torch.save([1, 2], path)
    else:
        state = {"fc.weight": torch.ones(2)} if broken.startswith("other") else state
        save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
        if broken.startswith("half"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=broken.replace(".", r"\.")) as caught:
        load_clip(str(path))
    assert "\n" not in str(caught.value)


def test_tensors_that_do_not_fit_together_are_named(golden_backbone: Any, tmp_path: Path) -> None:
    state = torch.load(golden_backbone("vit0"))
    state["visual.proj"] = state["visual.proj"][:, :7].clone()
    del state["ln_final.bias"]
    torch.save(state, tmp_path / "file.pt")
    with pytest.raises(UserError, match=r"does not fit .*visual\.proj.*"):
        load_clip(str(tmp_path / "file.pt"))


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "architecture"), names.OPENAI_NAMES.items())
def test_openais_names_mean_openais_weights(name: str, architecture: str) -> None:
    parsed = names.parse(name)
    assert (parsed.kind, parsed.architecture, parsed.tag) == ("tag", architecture, "openai")
    assert names.parse(architecture).tag == "openai"


def test_open_clips_names_with_a_tag_are_parsed() -> None:
    parsed = names.parse("ViT-B-16:laion2b_s34b_b88k")
    assert (parsed.kind, parsed.architecture, parsed.tag) == ("tag", "ViT-B-16", "laion2b_s34b_b88k")
    assert names.parse("ViT-B/16:laion400m_e32").architecture == "ViT-B-16"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B/61", r"unknown backbone 'ViT-B/61'\. Did you mean 'ViT-B/16'\? Choices: .*RN50"),
        ("resnet", "unknown backbone 'resnet'"),
        ("ViT-B-16:laion2b", "unknown weights for backbone ViT-B-16: 'laion2b'.*laion2b_s34b_b88k"),
        ("coca_ViT-B-32", "unknown weights for backbone coca_ViT-B-32"),
        ("random:ViT-B/61", "unknown architecture 'ViT-B/61'"),
        ("random:RN50:x", "the seed 'x' is not a number"),
        ("nowhere.pt", "no weights file nowhere.pt: "),
        ("ViT-B-16:nowhere.pt", "no weights file nowhere.pt: "),
    ],
)
def test_wrong_name_is_reported_in_one_line_with_the_choices(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_clip(name)


def test_unknown_precision_lists_the_choices() -> None:
    with pytest.raises(UserError, match="unknown precision 'fp8'.*amp, bf16, fp16, fp32"):
        load_clip("demo", precision="fp8")


@pytest.mark.parametrize(
    ("name", "size", "mean", "interpolation"),
    [
        ("RN50x4", 288, 0.48145466, "bicubic"),
        ("ViT-L/14@336px", 336, 0.48145466, "bicubic"),
        ("ViT-B-16-SigLIP:webli", 224, 0.5, "bicubic"),
        ("random:ViT-B/16", 224, 0.48145466, "bicubic"),
    ],
)
def test_preprocessing_is_known_without_the_weights(name: str, size: int, mean: float, interpolation: str) -> None:
    described = preprocessing(name)
    assert described.size == (size, size)
    assert described.mean[0] == mean
    assert described.interpolation == interpolation


# --- random weights, precision, digest -------------------------------------------------------------------------------


@pytest.mark.slow
def test_random_weights_depend_on_the_seed_alone_and_are_logged(
    small_vit: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        one, again, other = (load_clip(f"random:ViT-B-32{seed}") for seed in ("", ":0", ":1"))
    assert one.digest == again.digest != other.digest
    assert "random weights (seed 0), for timing and tests only" in caplog.text


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("precision", sorted(PRECISIONS))
def test_every_precision_encodes_images_and_texts(precision: str, tag: str, golden_backbone: Any, golden: Any) -> None:
    reference, clip = load_clip(str(golden_backbone(tag))), load_clip(str(golden_backbone(tag)), precision)
    images, tokens = golden.tiny_clip.images(tag.rstrip("0"), 3, 2), clip.tokenize(["a cat", "two dogs"])
    for ours, theirs in (
        (clip.encode_image(images), reference.encode_image(images)),
        (clip.encode_text(tokens), reference.encode_text(tokens)),
    ):
        assert ours.dtype == clip.dtype == PRECISIONS[precision]
        tolerance = {torch.float32: 1e-6, torch.float16: 0.02, torch.bfloat16: 0.1}[clip.dtype]
        assert float((ours.float() - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


def test_fp16_on_a_cpu_warns(golden_backbone: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_clip(str(golden_backbone("vit0")), "fp16")
    assert "fp16 on a CPU is slow" in caplog.text


def test_digest_changes_with_any_weight_and_with_the_activation(golden_backbone: Any) -> None:
    model = load_clip(str(golden_backbone("vit0"))).model
    before = digest_of_weights(model)
    assert digest_of_weights(model) == before
    model.ln_final.bias.data[3] += 1e-4
    changed = digest_of_weights(model)
    assert changed != before
    model.transformer.resblocks[0].mlp.gelu = torch.nn.GELU()
    model.transformer.resblocks[1].mlp.gelu = torch.nn.GELU()
    for block in model.visual.transformer.resblocks:
        block.mlp.gelu = torch.nn.GELU()
    assert digest_of_weights(model) not in (before, changed)


def test_changed_module_of_the_model_takes_effect_in_the_text_tower(golden_backbone: Any) -> None:
    clip = load_clip(str(golden_backbone("vit0")))
    tokens = clip.tokenize(["a cat"])
    before = clip.encode_text(tokens)
    clip.model.ln_final.weight.data *= 2
    assert not torch.allclose(clip.encode_text(tokens), before)


def test_open_clip_leaves_the_root_logger_as_it_was(small_vit: None) -> None:
    handlers = list(logging.getLogger().handlers)
    load_clip("random:ViT-B-32")
    assert logging.getLogger().handlers == handlers


def test_the_image_size_follows_from_patches_and_positions() -> None:
    state = {
        "visual.conv1.weight": torch.zeros(96, 3, 4, 4),
        "visual.positional_embedding": torch.zeros(7 * 7 + 1, 96),
        "visual.transformer.resblocks.0.ln_1.weight": torch.zeros(96),
    }
    found = openai_format._vision_transformer(state)
    assert found == {"layers": 1, "width": 96, "patch_size": 4, "image_size": 28}


def test_a_tag_may_be_written_with_dashes_or_capitals() -> None:
    assert names.parse("ViT-B-16:LAION2B-s34b-b88k").tag == "laion2b_s34b_b88k"


@pytest.mark.parametrize(
    ("openais", "open_clips"),
    [
        *((name, name) for name in ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")),
        *(("ViT-B/32", "ViT-B-32"), ("ViT-B/16", "ViT-B-16")),
        *(("ViT-L/14", "ViT-L-14"), ("ViT-L/14@336px", "ViT-L-14-336")),
    ],
)
def test_openais_names_are_open_clips_architectures_with_openais_weights(openais: str, open_clips: str) -> None:
    parsed = names.parse(openais)
    assert (parsed.kind, parsed.architecture, parsed.tag) == ("tag", open_clips, "openai")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".tar", ".bin", ".safetensors"])
def test_a_file_of_weights_is_known_by_its_ending(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"weights{suffix}").write_bytes(b"x")
    assert names.parse(str(tmp_path / f"weights{suffix}")).kind == "file"
    with pytest.raises(UserError, match=f"weights2{suffix}"):
        names.parse(f"weights2{suffix}")


def test_openais_names_are_those_of_its_releases() -> None:
    published = {"RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"}
    published |= {"ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"}
    assert set(names.OPENAI_NAMES) == published
    assert all(open_clip.get_model_config(name) for name in names.OPENAI_NAMES.values())
    assert {name.replace("/", "-").replace("@", "-").removesuffix("px") for name in published} == set(
        names.OPENAI_NAMES.values()
    )
