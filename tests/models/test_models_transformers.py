"""CLIP and SigLIP in the layout of transformers give its own features, converted without it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dassl_lite.data.transforms import build_transform
from dassl_lite.engine.build import make_config, with_backbone_inputs
from dassl_lite.models import model_folder, names, published_weights
from dassl_lite.models.clip import load_clip, preprocessing
from dassl_lite.models.tokenizer import _byte_pairs
from dassl_lite.utils.errors import UserError

transformers = pytest.importorskip("transformers")

TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16}
VISION = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
TEXTS = ["a photo of a cat.", "dog", "a dog of a cat"]


def save_tokenizer(folder: Path, frame: str, padding: str) -> None:
    """A small tokenizer of whole words, in transformers' files."""
    import tokenizers

    words = ["<pad>", "a", "photo", "of", "cat", "dog", ".", "[UNK]", *map(str, range(90)), "<s>", "</s>"]
    ids = {word: number for number, word in enumerate(words[:98] + words[-2:])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = [(word, ids[word]) for word in frame.split() if word in ids]
    made.post_processor = tokenizers.processors.TemplateProcessing(single=frame, special_tokens=special)
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token=padding, eos_token="</s>").save_pretrained(
        folder
    )


def save_clip(folder: Path, act: str = "quick_gelu", **changes: Any) -> Any:
    torch.manual_seed(0)
    text = {**TEXT, "intermediate_size": 67, "vocab_size": 100, "hidden_act": act, "eos_token_id": 99, **changes}
    vision = {**VISION, "intermediate_size": 96, "hidden_act": act}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    model.save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    save_tokenizer(folder, "<s> $A </s>", "<pad>")
    return model.eval()


def save_siglip(folder: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    text = {**TEXT, "intermediate_size": 67, "vocab_size": 100, "projection_size": 48}
    vision = {**VISION, "intermediate_size": 96, **changes}
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
    model.logit_bias.data.fill_(-7.5)
    model.save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    save_tokenizer(folder, "$A </s>", "</s>")
    return model.eval()


SAVE: dict[str, Callable[..., Any]] = {"clip": save_clip, "siglip": save_siglip}


@pytest.fixture(params=SAVE)
def kind(request: Any) -> str:
    return request.param


@pytest.fixture
def model(kind: str, tmp_path: Path) -> Any:
    """transformers' model; its files are in tmp_path."""
    return SAVE[kind](tmp_path)


@torch.no_grad()
def theirs(model: Any, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Image and text features."""
    image, text = model.get_image_features(pixel_values=images), model.get_text_features(input_ids=tokens)
    return getattr(image, "pooler_output", image), getattr(text, "pooler_output", text)


@torch.no_grad()
def close(ours: Tensor, reference: Tensor) -> bool:
    return float((ours - reference).abs().max()) < 1e-5 * float(reference.abs().max())


@pytest.mark.slow_after(1)
def test_features_tokens_and_logits_are_those_of_transformers(kind: str, model: Any, tmp_path: Path) -> None:
    clip = load_clip(str(tmp_path))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokens = tokenizer(TEXTS, padding="max_length", max_length=16, return_tensors="pt").input_ids
    assert torch.equal(clip.tokenize(TEXTS), tokens)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    image_features, text_features = theirs(model, images, tokens)
    assert close(clip.encode_image(images), image_features)
    assert close(clip.encode_text(tokens), text_features)
    assert close(clip.model.encode_text(tokens), text_features)
    with torch.no_grad():
        logits = model(input_ids=tokens, pixel_values=images).logits_per_image
    bias = 0 if clip.model.logit_bias is None else clip.model.logit_bias
    assert close(clip(images, tokens) + bias, logits)
    assert kind == "clip" or bias.item() == -7.5


@pytest.mark.slow
@pytest.mark.parametrize("act", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
def test_every_activation_and_end_token_of_clip_is_transformers_own(act: str, tmp_path: Path) -> None:
    for number, changes in enumerate(({}, {"eos_token_id": 2}, {"eos_token_id": 57}, {"layer_norm_eps": 1e-2})):
        model = save_clip(tmp_path / str(number), act, **changes)
        clip = load_clip(str(tmp_path / str(number)))
        tokens = torch.randint(3, 56, (4, 16), generator=torch.Generator().manual_seed(2))
        tokens[:, 9], tokens[:, 12] = (57, 3) if changes.get("eos_token_id") == 57 else (99, 3)
        images = torch.randn(2, 3, 32, 32)
        image_features, text_features = theirs(model, images, tokens)
        assert close(clip.encode_image(images), image_features)
        assert close(clip.encode_text(tokens), text_features), changes


@pytest.mark.slow
def test_a_single_file_loads_into_an_architecture_of_open_clips(
    kind: str, model: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    vision = {"layers": 2, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 32, "mlp_ratio": 2.0}
    text = {"layers": 2, "width": 32, "heads": 2, "context_length": 16, "vocab_size": 100, "mlp_ratio": 67.5 / 32}
    config = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    if kind == "siglip":

        def build(pretrained: bool = False, **options: Any) -> Any:
            sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}
            return timm.create_model("vit_base_patch16_siglip_224", **{**options, **sizes, "act_layer": "gelu_tanh"})

        build.__name__ = "tiny_siglip"
        timm.models.register_model(build)
        config |= {"embed_dim": 48, "quick_gelu": False, "custom_text": True, "init_logit_bias": -10}
        config["vision_cfg"] = {
            "image_size": 32,
            "timm_model_name": "tiny_siglip",
            "timm_pool": "map",
            "timm_proj": "none",
        }
        text |= {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-6}}
        text |= {"act_kwargs": {"approximate": "tanh"}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    (tmp_path / "config.json").unlink()
    clip = load_clip(f"tiny:{tmp_path / 'model.safetensors'}")
    images, tokens = torch.randn(2, 3, 32, 32), torch.tensor([[98, 4, 99, *[0] * 13]])
    image_features, text_features = theirs(model, images, tokens)
    assert close(clip.encode_image(images), image_features)
    assert close(clip.encode_text(tokens), text_features)


@pytest.mark.slow
def test_what_config_json_sets_is_part_of_the_digest(tmp_path: Path) -> None:
    save_clip(tmp_path)
    digests = set()
    for act, eps in (("gelu", 1e-5), ("gelu_pytorch_tanh", 1e-5), ("quick_gelu", 1e-5), ("gelu", 1e-3)):
        config = json.loads((tmp_path / "config.json").read_text())
        for part in ("text_config", "vision_config"):
            config[part] |= {"hidden_act": act, "layer_norm_eps": eps}
        (tmp_path / "config.json").write_text(json.dumps(config))
        digests.add(load_clip(str(tmp_path)).digest)
    assert len(digests) == 4
    save_siglip(tmp_path / "siglip")
    save_siglip(tmp_path / "other", num_attention_heads=4)
    assert load_clip(str(tmp_path / "siglip")).digest != load_clip(str(tmp_path / "other")).digest


@pytest.mark.slow_after(1)
def test_images_are_prepared_as_transformers_prepares_them(kind: str, model: Any, tmp_path: Path) -> None:
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2}
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    cfg = make_config(trainer="ZeroshotCLIP", flags={"MODEL": {"BACKBONE": {"NAME": str(tmp_path)}}})
    transform = build_transform(with_backbone_inputs(cfg), is_train=False)
    assert preprocessing(str(tmp_path)).resize_mode == {"clip": "shortest", "siglip": "squash"}[kind]
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 92, 3)).astype(np.uint8))
    image = image.resize((9, 6)).resize((92, 64), Image.Resampling.BICUBIC)  # a smooth one
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    pixels = processor(image, return_tensors="pt").pixel_values[0]
    ours = transform(image)
    assert ours.shape == pixels.shape == (3, 32, 32)
    assert float((ours - pixels).abs().max()) < 0.03  # it may resize with torch, which rounds otherwise than Pillow


@pytest.mark.slow
def test_every_kind_of_file_gives_the_same_model(kind: str, model: Any, tmp_path: Path) -> None:
    digest = load_clip(str(tmp_path)).digest
    assert load_clip(str(tmp_path / "model.safetensors")).digest == digest
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert load_clip(str(tmp_path)).digest == digest
    for path in tmp_path.glob("model*"):
        path.unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert load_clip(str(tmp_path)).digest == digest
    assert load_clip(str(tmp_path / "pytorch_model.bin")).digest == digest


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_is_close(model: Any, precision: str, tmp_path: Path) -> None:
    clip, images = load_clip(str(tmp_path), precision), torch.randn(2, 3, 32, 32)
    expected = theirs(model, images, clip.tokenize(TEXTS))
    for ours, reference in zip(
        (clip.encode_image(images), clip.encode_text(clip.tokenize(TEXTS))), expected, strict=True
    ):
        assert ours.dtype == clip.dtype
        assert float((ours.float() - reference).abs().max()) < 0.1 * float(reference.abs().max())


@pytest.mark.slow
def test_a_hub_name_loads_what_transformers_has_downloaded(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cached(repository: str, filename: str) -> str | None:
        assert repository == "org/model"
        return str(tmp_path / filename) if (tmp_path / filename).is_file() else None

    asked = []

    def missing(repository: str, filename: str) -> Path:
        asked.append(filename)
        raise published_weights.DownloadError("url", "the server answered 404 Not Found")

    monkeypatch.setattr(published_weights, "try_to_load_from_cache", cached)
    monkeypatch.setattr(published_weights, "_download_from_hub", missing)
    monkeypatch.setattr("dassl_lite.models.model_folder.tokenizer_of", lambda text, *_: load_clip("demo").tokenizer)
    assert preprocessing("hf-hub:org/model") == preprocessing(str(tmp_path))
    assert load_clip("hf-hub:org/model").digest == load_clip(str(tmp_path)).digest
    assert "open_clip_config.json" not in asked


@pytest.mark.slow
def test_openais_vocabulary_needs_no_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    words = _byte_pairs().encoder
    save_clip(tmp_path, vocab_size=len(words), eos_token_id=2, max_position_embeddings=77)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)  # every import of it fails
    assert load_clip(str(tmp_path)).tokenize("a cat")[0, :4].tolist() == [49406, 320, 2368, 49407]


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "chinese_clip"}, "model_type 'chinese_clip' of transformers is not supported; clip and siglip"),
        ({"model_type": ["clip"]}, "model_type"),
        ({"text_config": {"hidden_act": "gelu"}}, "different activations"),
        ({"text_config": {"hidden_act": "relu"}}, "activation 'relu' is not one of quick_gelu, gelu"),
        ({"vision_config": {"num_attention_heads": 5}}, "heads do not divide"),
        ({"vision_config": {"num_channels": 1}}, "images of 1 channels"),
        ({"text_config": {"num_hidden_layers": 10**6}}, "layers would be 1000000"),
        ({"text_config": {"hidden_size": "wide"}}, "."),
        ({"text_config": 5}, "."),
        *(
            ({f"{part}_config": {"layer_norm_eps": eps}}, rf"config\.json: {part}_config\.layer_norm_eps")
            for part in ("text", "vision")
            for eps in (None, "32", [32], {}, True, -1, 0, 3.5, 1e9, float("nan"))
        ),
        *(
            ({"vision_config": {key: value}}, rf"config\.json: vision_config\.{key}")
            for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
            for value in (None, "32", [32], {}, True, -1, 2.5)
        ),
        ({"text_config": {"vocab_size": 2.5}}, r"config\.json: text_config\.vocab_size"),
        ({"text_config": {"max_position_embeddings": "16"}}, r"config\.json: text_config\.max_position_embeddings"),
        ({"text_config": {"eos_token_id": [99]}}, r"config\.json: text_config\.eos_token_id"),
        ({"projection_dim": None}, r"config\.json: projection_dim"),
        ({"projection_dim": 24.0}, r"config\.json: projection_dim"),
        ({"projection_dim": 25}, "does not fit"),
        ({"text_config": {"num_hidden_layers": 1}}, "does not fit"),
    ],
)
def test_an_unsupported_config_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save_clip(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as caught:
        load_clip(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_resize": False}, "not resized"),
        *(
            ({"rescale_factor": factor}, r"preprocessor_config\.json: rescale_factor")
            for factor in (1 / 127.5, 1.0, 0, -1 / 255, 1.00001 / 255, None, "1/255", [1 / 255], {}, True, float("nan"))
        ),
        *(
            ({key: value}, rf"preprocessor_config\.json: {key}")
            for key in ("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb")
            for value in ("false", 0, [])
        ),
        ({"do_normalize": None}, r"preprocessor_config\.json: do_normalize"),
        ({"do_pad": True}, r"preprocessor_config\.json: do_pad"),
        ({"do_flip_channel_order": True}, r"preprocessor_config\.json: do_flip_channel_order"),
        ({"rescale_offset": True}, r"preprocessor_config\.json: rescale_offset"),
        ({"crop_pct": 0.9}, r"preprocessor_config\.json: crop_pct"),
        ({"size": {"shortest_edge": 32, "longest_edge": 40}}, r"preprocessor_config\.json: size"),
        ({"size": 32, "do_center_crop": False}, "by their shorter edge and not cropped"),
        (
            {"crop_size": {"height": 16, "width": 16}},
            r"images of \(16, 16\) are made for a model that takes \(32, 32\)",
        ),
        ({"size": {"shortest_edge": 40}}, r"resized to \(40, 40\) and cropped to \(32, 32\)"),
        ({"do_center_crop": False}, "by their shorter edge and not cropped"),
        ({"resample": 1}, "resample 1 is neither"),
        ({"size": "large"}, "."),
        ({"image_std": [0.0, 1.0, 1.0]}, "std"),
    ],
)
def test_an_unsupported_image_preprocessing_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    save_clip(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message) as caught:
        preprocessing(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_an_explicit_preprocessing_equals_the_default(kind: str, model: Any, tmp_path: Path) -> None:
    own = preprocessing(str(tmp_path))
    path = tmp_path / "preprocessor_config.json"
    whole = json.loads(path.read_text())
    for change in (
        {"rescale_factor": 1 / 255, "do_rescale": True, "do_normalize": True, "do_resize": True},
        {"rescale_factor": 0.003921569, "do_convert_rgb": None, "do_pad": None, "rescale_offset": False},
        {"image_mean": None, "image_std": None, "do_convert_rgb": False},
    ):
        path.write_text(json.dumps({**whole, **change}))
        assert preprocessing(str(tmp_path)) == own
    path.write_text(json.dumps({**whole, "do_normalize": False}))
    assert preprocessing(str(tmp_path)).mean == (0.0,) * 3


def test_a_height_and_width_before_a_crop_are_squashed_to(tmp_path: Path) -> None:
    save_clip(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": {"height": 32, "width": 32}}))
    cfg = make_config(trainer="ZeroshotCLIP", flags={"MODEL": {"BACKBONE": {"NAME": str(tmp_path)}}})
    columns = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (32, 1))
    image = Image.fromarray(np.stack([columns] * 3, axis=-1))
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt").pixel_values[0]
    assert float((build_transform(with_backbone_inputs(cfg), is_train=False)(image) - pixels).abs().max()) < 0.03


def test_what_an_encoder_does_not_read_may_be_null(kind: str, model: Any, tmp_path: Path) -> None:
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"] |= {"eos_token_id": None, "vocab_size": None, "projection_dim": None}
    config["text_config"] |= {"image_size": None, "projection_dim": None, "bos_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert preprocessing(str(tmp_path)).size == (32, 32)


@pytest.mark.slow_after(1)
def test_tensors_that_are_missing_or_left_over_are_named(kind: str, model: Any, tmp_path: Path) -> None:
    state = load_file(tmp_path / "model.safetensors")
    save_file({**state, "surplus": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"has tensors of no {kind}: surplus"):
        load_clip(str(tmp_path))
    state.pop("vision_model.post_layernorm.bias")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks vision_model\.post_layernorm\.bias"):
        load_clip(str(tmp_path))


def test_weights_without_their_description_are_one_line(model: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"layout of transformers, which its config\.json describes"):
        load_clip(str(tmp_path / "model.safetensors"))


def test_a_folder_without_tokenizer_is_one_line(model: Any, tmp_path: Path) -> None:
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="has no tokenizer"):
        load_clip(str(tmp_path))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_one_of_the_tokenizers_files_says_that_there_is_one(model: Any, tmp_path: Path, file: str) -> None:
    for path in tmp_path.glob("tokenizer*"):
        if path.name != file:
            path.unlink()
    assert model_folder.of(names.parse(str(tmp_path)))._has_tokenizer()


def test_a_tokenizer_without_transformers_names_the_extra(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r'needs transformers: pip install "dassl-lite\[hf\]"'):
        load_clip(str(tmp_path))


HOSTILE: tuple[Any, ...] = (None, "", "x", -1, 0, 2.5, 10**30, float("nan"), [1, 2], {"a": 1}, True)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_any_value_in_a_description_gives_a_model_or_one_line(kind: str, model: Any, tmp_path: Path, file: str) -> None:
    path = tmp_path / file
    whole = json.loads(path.read_text())
    parts = [whole, *(inner for inner in whole.values() if isinstance(inner, dict))]
    refused = 0
    for part, key, value in [(inner, key, value) for inner in parts for key in inner for value in HOSTILE]:
        before, part[key] = part[key], value
        path.write_text(json.dumps(whole))
        part[key] = before
        read = load_clip if file == "config.json" and value in (-1, 10**30) else preprocessing
        try:
            read(str(tmp_path))
        except UserError:  # nothing else
            refused += 1
    assert refused > 25


@pytest.mark.parametrize(
    "index", [None, [], {}, {"weight_map": 3}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "../x"}}]
)
def test_an_invalid_index_of_weights_is_refused_in_one_line(model: Any, tmp_path: Path, index: Any) -> None:
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json") as caught:
        load_clip(str(tmp_path))
    assert "\n" not in str(caught.value)
