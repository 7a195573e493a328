"""CLIP and SigLIP in the layout of `transformers`, converted key by key into models of open_clip's.

`config.json` gives the architecture. transformers itself is not needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dassl_lite.models import openai_format
from dassl_lite.utils.errors import UserError, refusing_misfits, shown

KINDS = ("clip", "siglip")

# Defaults: config.json omits what is as in transformers' first models.
_SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "clip": {
        "text": {
            **_SIZES,
            **{"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "vocab_size": 49408},
            **{
                "max_position_embeddings": 77,
                "hidden_act": "quick_gelu",
                "layer_norm_eps": 1e-5,
                "eos_token_id": 49407,
            },
        },
        "vision": {
            **_SIZES,
            **{"image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
        },
    },
    "siglip": {
        "text": {
            **_SIZES,
            **{"vocab_size": 32000, "max_position_embeddings": 64, "hidden_act": "gelu_pytorch_tanh"},
            **{"layer_norm_eps": 1e-6},
        },
        "vision": {
            **_SIZES,
            **{"image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
            **{"vision_use_head": True},
        },
    },
}
# Defaults of their image processors, where preprocessor_config.json omits them.
_IMAGES: dict[str, dict[str, Any]] = {
    "clip": {"do_center_crop": True, "default_to_square": False, "resample": 3},
    "siglip": {
        **{"do_center_crop": False, "default_to_square": True, "resample": 3},
        **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    },
}
# Integers and their minimum; sides may be a list of two.
_COUNTS = {"hidden_size": 1, "intermediate_size": 1, "num_hidden_layers": 0, "num_attention_heads": 1}
_COUNTS |= {"vocab_size": 1, "max_position_embeddings": 1, "patch_size": 1, "image_size": 1}
_COUNTS |= {"projection_dim": 1, "projection_size": 1, "eos_token_id": 0}
_SIDES = ("patch_size", "image_size")
# An activation's arguments for open_clip; None: QuickGELU.
_ACTIVATIONS: dict[str, dict[str, str] | None] = {
    "quick_gelu": None,
    "gelu": {},
    "gelu_pytorch_tanh": {"approximate": "tanh"},
}


@dataclass(frozen=True)
class TransformersModel:
    """The description of a CLIP or SigLIP.

    Attributes:
        kind: "clip" or "siglip".
        architecture: arguments for `open_clip.CLIP` or `open_clip.CustomTextCLIP`.
        images: its image processor's defaults.
        trunk: for SigLIP, arguments for timm's VisionTransformer.
    """

    kind: str
    architecture: dict[str, Any]
    images: dict[str, Any]
    trunk: dict[str, Any]

    @property
    def image_size(self) -> Any:
        """Side, or (height, width), of the images in pixels."""
        return self.architecture["vision_cfg"]["image_size"]

    @property
    def text(self) -> dict[str, Any]:
        """The text encoder's part of the architecture."""
        return self.architecture["text_cfg"]


def described(config: Mapping[str, Any], source: str) -> TransformersModel:
    """Read a config.json.

    Raises:
        UserError: it describes another kind of model, or one with unsupported parts; `source` is named.
    """
    kind = config.get("model_type")
    if kind not in KINDS:
        raise UserError(f"backbone '{source}': model_type {shown(kind)} of transformers is not supported; clip and "
                        "siglip are")  # fmt: skip
    text, vision = (
        {**_DEFAULTS[kind][part], **(config.get(f"{part}_config") or {}), **(config.get(f"{part}_config_dict") or {})}
        for part in ("text", "vision")
    )
    if kind == "clip":
        _check_numbers(config, ("projection_dim",), "", source)
    for part, of in ((text, "text"), (vision, "vision")):
        # and of no other keys: older files have nulls and more for those that their encoder lacks
        _check_numbers(part, (*_DEFAULTS[kind][of], "projection_size"), f"{of}_config.", source)
        if part["hidden_act"] not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            raise UserError(f"backbone '{source}': activation {shown(part['hidden_act'])} is not one of {known}")
        if part["hidden_size"] % part["num_attention_heads"]:
            raise UserError(f"backbone '{source}': the {of} encoder's heads do not divide its width")
    if vision.get("num_channels", 3) != 3:
        raise UserError(f"backbone '{source}': images of {vision['num_channels']} channels are not supported")
    architecture, trunk = (_clip if kind == "clip" else _siglip)(config, text, vision, source)
    openai_format.check_sizes(architecture, "")
    openai_format.check_sizes({"layers": trunk.get("depth", 0), "width": trunk.get("embed_dim", 1)}, "vision_cfg.")
    return TransformersModel(kind, architecture, _IMAGES[kind], trunk)


def _check_numbers(part: Mapping[str, Any], keys: tuple[str, ...], prefix: str, source: str) -> None:
    """Refuse values of these keys that are not valid numbers; `openai_format.check_sizes` refuses too large ones."""
    named = f"backbone '{source}': config.json: {prefix}"
    for key in keys:
        if key not in part:
            continue
        value = part[key]
        if key in _COUNTS:
            each = value if key in _SIDES and isinstance(value, list) and len(value) == 2 else [value]
            if not all(type(one) is int and one >= _COUNTS[key] for one in each):
                raise UserError(f"{named}{key} {shown(value)} is not a whole number from {_COUNTS[key]}")
        elif key == "layer_norm_eps" and not openai_format.is_epsilon(value):
            raise UserError(f"{named}{key} {shown(value)} is not a number above 0 and at most 0.1")


def _tower(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that both of open_clip's encoders share."""
    return {
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "mlp_ratio": _ratio(config),
        "act_kwargs": _ACTIVATIONS[config["hidden_act"]] or None,
        "norm_kwargs": {"eps": config["layer_norm_eps"]},
    }


def _ratio(config: Mapping[str, Any]) -> float:
    """The ratio that, times the width and rounded down, gives the width of the MLP."""
    ratio = config["intermediate_size"] / config["hidden_size"]
    exact = int(config["hidden_size"] * ratio) == config["intermediate_size"]
    return ratio if exact else (config["intermediate_size"] + 0.5) / config["hidden_size"]


def _text(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_tower(config),
        "heads": config["num_attention_heads"],
        "context_length": config["max_position_embeddings"],
        "vocab_size": config["vocab_size"],
    }


def _clip(
    config: Mapping[str, Any], text: Mapping[str, Any], vision: Mapping[str, Any], source: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    if text["hidden_act"] != vision["hidden_act"]:
        raise UserError(f"backbone '{source}': its encoders have different activations, which is not supported")
    own = {**_text(text)}
    # Configs of before 2023 name 2, and the end token is then the one with the largest id.
    if text["eos_token_id"] not in (2, text["vocab_size"] - 1):
        own |= {"pool_type": "eos", "eos_id": text["eos_token_id"]}
    seen = {
        **_tower(vision),
        "head_width": vision["hidden_size"] // vision["num_attention_heads"],
        "patch_size": vision["patch_size"],
        "image_size": vision["image_size"],
    }
    quick = _ACTIVATIONS[text["hidden_act"]] is None
    width = config.get("projection_dim", 512)
    return {"embed_dim": width, "quick_gelu": quick, "vision_cfg": seen, "text_cfg": own}, {}


def _siglip(
    config: Mapping[str, Any], text: Mapping[str, Any], vision: Mapping[str, Any], source: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    if (
        vision["vision_use_head"] is not True
        or text.get("projection_size", text["hidden_size"]) != vision["hidden_size"]
    ):
        raise UserError(f"backbone '{source}': a SigLIP without its pooling head is not supported")
    if "quick_gelu" in (text["hidden_act"], vision["hidden_act"]):
        raise UserError(f"backbone '{source}': a SigLIP with QuickGELU is not supported")
    own = {**_text(text), "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    size = vision["image_size"]
    trunk = {
        "img_size": size,
        "patch_size": vision["patch_size"],
        "embed_dim": vision["hidden_size"],
        "depth": vision["num_hidden_layers"],
        "num_heads": vision["num_attention_heads"],
        "mlp_ratio": _ratio(vision),
        "norm_layer": functools.partial(nn.LayerNorm, eps=vision["layer_norm_eps"]),
        "act_layer": functools.partial(nn.GELU, **(_ACTIVATIONS[vision["hidden_act"]] or {})),
    }
    # a small trunk, which `_build_siglip` replaces: open_clip takes a name only, and there is none for every size
    seen = {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"}
    return {
        "embed_dim": vision["hidden_size"],
        "init_logit_bias": -10,
        "vision_cfg": {**seen, "image_size": size},
        "text_cfg": own,
    }, trunk


# ---- weights --------------------------------------------------------------------------------------------------------


def converted(tensors: Mapping[str, Tensor], kind: str, source: str) -> dict[str, Tensor]:
    """The state dict of `open_clip.CLIP`, or for "siglip" of `open_clip.CustomTextCLIP` with a trunk of timm's.

    Raises:
        UserError: tensors are missing or left over; `source` and the first keys are named.
    """
    return _Converter(tensors, source).convert(kind)


def build(model: TransformersModel, tensors: Mapping[str, Tensor], dtype: torch.dtype, source: str) -> nn.Module:
    """The model with these weights, on the CPU, in eval mode, with its weight matrices in `dtype`.

    Raises:
        UserError: tensors are missing, left over, or do not fit; `source` and the first keys are named.
    """
    with refusing_misfits(f"{source} does not fit its config.json"):
        state = converted(tensors, model.kind, source)
        if model.kind == "clip":
            return openai_format.build(state, model.architecture, dtype, source)
        return _build_siglip(model, state, dtype, source)


def _build_siglip(model: TransformersModel, state: dict[str, Tensor], dtype: torch.dtype, source: str) -> nn.Module:
    import open_clip
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import LayerNormFp32
    from timm.models.vision_transformer import VisionTransformer

    low = dtype != torch.float32
    with torch.device("meta"):
        made = open_clip.CustomTextCLIP(**model.architecture, cast_dtype=dtype if low else None)
        made.visual.trunk = VisionTransformer(num_classes=0, class_token=False, global_pool="map", **model.trunk)
    assert isinstance(made.visual, TimmModel)
    openai_format.check_fit(made, state, source)  # before memory is allocated for the sizes in config.json
    made.to_empty(device="cpu")
    made.load_state_dict(state)
    if low:  # as open_clip does with timm's trunks
        made.to(dtype=dtype)
        for module in made.modules():
            if isinstance(module, LayerNormFp32):
                module.float()
    return made.eval()


class _Converter:
    """Renames and reshapes tensors, each of which has to be used.

    Args:
        tensors: by transformers' names.
        source: named in messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], source: str) -> None:
        # buffers, which older versions saved
        self.left = {key: value for key, value in tensors.items() if not key.endswith(".position_ids")}
        self.source = source
        self.made: dict[str, Tensor] = {}

    def convert(self, kind: str) -> dict[str, Tensor]:
        """The state dict of `open_clip.CLIP`, or of `open_clip.CustomTextCLIP` with a trunk of timm's."""
        if kind == "clip":
            self._clip()
        else:
            self._siglip()
        if self.left:
            raise UserError(f"{self.source} has tensors of no {kind}: {', '.join(sorted(self.left)[:3])}")
        return self.made

    def take(self, key: str) -> Tensor:
        if key not in self.left:
            raise UserError(f"{self.source} lacks {key}")
        return self.left.pop(key)

    def move(self, theirs: str, ours: str, change: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> None:
        self.made[ours] = change(self.take(theirs))

    def module(self, theirs: str, ours: str) -> None:
        """Weight and bias."""
        for part in (".weight", ".bias"):
            self.move(theirs + part, ours + part)

    def layers(self, prefix: str) -> Iterator[str]:
        """The prefixes of an encoder's layers."""
        numbers = {key[len(prefix) :].split(".")[0] for key in self.left if key.startswith(prefix)}
        return (prefix + number for number in sorted(numbers, key=int))

    def _joined(self, prefix: str, ours: Callable[[str], str]) -> None:
        """Query, key and value as one matrix and one bias."""
        for part in ("weight", "bias"):
            parts = [self.take(f"{prefix}.self_attn.{name}_proj.{part}") for name in "qkv"]
            self.made[ours(part)] = torch.cat(parts)

    def _open_clips_layers(self, theirs: str, ours: str) -> None:
        for number, prefix in enumerate(self.layers(f"{theirs}.encoder.layers.")):
            block = f"{ours}.resblocks.{number}"
            self._joined(prefix, lambda part, block=block: f"{block}.attn.in_proj_{part}")  # type: ignore[misc]
            self.module(f"{prefix}.self_attn.out_proj", f"{block}.attn.out_proj")
            for name, own in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2")):
                self.module(f"{prefix}.{name}", f"{block}.{own}")
            for name, own in (("fc1", "c_fc"), ("fc2", "c_proj")):
                self.module(f"{prefix}.mlp.{name}", f"{block}.mlp.{own}")

    def _text(self, ours: str) -> None:
        embeddings = "text_model.embeddings"
        self.move(f"{embeddings}.token_embedding.weight", f"{ours}token_embedding.weight")
        self.move(f"{embeddings}.position_embedding.weight", f"{ours}positional_embedding")
        self._open_clips_layers("text_model", f"{ours}transformer")
        self.module("text_model.final_layer_norm", f"{ours}ln_final")

    def _clip(self) -> None:
        self._text("")
        self.move("text_projection.weight", "text_projection", Tensor.t)
        self.move("visual_projection.weight", "visual.proj", Tensor.t)
        self.move("logit_scale", "logit_scale", lambda one: one.reshape(()))
        vision, ours = "vision_model", "visual"
        self.move(f"{vision}.embeddings.class_embedding", f"{ours}.class_embedding")
        self.move(f"{vision}.embeddings.patch_embedding.weight", f"{ours}.conv1.weight")
        self.move(f"{vision}.embeddings.position_embedding.weight", f"{ours}.positional_embedding")
        self.module(f"{vision}.pre_layrnorm", f"{ours}.ln_pre")  # spelt so
        self.module(f"{vision}.post_layernorm", f"{ours}.ln_post")
        self._open_clips_layers(vision, f"{ours}.transformer")

    def _siglip(self) -> None:
        self._text("text.")
        self.module("text_model.head", "text.text_projection")
        for name in ("logit_scale", "logit_bias"):
            self.move(name, name, lambda one: one.reshape(()))
        vision, ours = "vision_model", "visual.trunk"
        self.module(f"{vision}.embeddings.patch_embedding", f"{ours}.patch_embed.proj")
        self.move(f"{vision}.embeddings.position_embedding.weight", f"{ours}.pos_embed", lambda one: one[None])
        self.module(f"{vision}.post_layernorm", f"{ours}.norm")
        for number, prefix in enumerate(self.layers(f"{vision}.encoder.layers.")):
            block = f"{ours}.blocks.{number}"
            self._joined(prefix, lambda part, block=block: f"{block}.attn.qkv.{part}")  # type: ignore[misc]
            self.module(f"{prefix}.self_attn.out_proj", f"{block}.attn.proj")
            for name, own in (("layer_norm1", "norm1"), ("layer_norm2", "norm2"), *_MLP):
                self.module(f"{prefix}.{name}", f"{block}.{own}")
        self._pooling(f"{vision}.head", f"{ours}.attn_pool")

    def _pooling(self, theirs: str, ours: str) -> None:
        """The attention that pools SigLIP's image tokens; timm keeps its query apart from keys and values."""
        self.move(f"{theirs}.probe", f"{ours}.latent")
        for part in ("weight", "bias"):
            joined = self.take(f"{theirs}.attention.in_proj_{part}")
            query = len(joined) // 3
            self.made[f"{ours}.q.{part}"], self.made[f"{ours}.kv.{part}"] = joined[:query], joined[query:]
        for name, own in (("attention.out_proj", "proj"), ("layernorm", "norm"), *_MLP):
            self.module(f"{theirs}.{name}", f"{ours}.{own}")


_MLP = (("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2"))
