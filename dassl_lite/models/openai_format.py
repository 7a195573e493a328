"""CLIP weights in OpenAI's layout, where keys and shapes determine the architecture.

The layout is a flat dictionary: `visual.*`, `transformer.resblocks.*`, `token_embedding.weight` and so on. Our own
files may also contain metadata (image size, heads), and only some rows of the token table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dassl_lite.models import weights_file
from dassl_lite.models.names import OPENAI_NAMES
from dassl_lite.utils.errors import UserError, refusing_misfits, shown

if TYPE_CHECKING:
    import open_clip

# Last parts of the names of entries that are not weights: descriptions of the model, and a buffer that is not state.
_DESCRIPTIONS = (*weights_file.DESCRIPTIONS, "attn_mask")
TRANSFORMERS_KEY = "text_model.embeddings.token_embedding.weight"  # in every CLIP and SigLIP of transformers
_REQUIRED = (
    "visual.conv1.weight",
    "positional_embedding",
    "token_embedding.weight",
    "ln_final.weight",
    "text_projection",
)
VOCABULARY = 49408  # tokens of CLIP's own tokenizer
_HEAD_WIDTH = 64  # of all of OpenAI's models, in both encoders
# Limits above the sizes of any CLIP: a file of a few bytes can claim any size. Image sizes are in pixels.
_LARGEST = {"embed_dim": 16384, "layers": 256, "width": 16384, "patch_size": 1024, "image_size": 4096}
_LARGEST |= {"head_width": 16384, "context_length": 8192, "vocab_size": 4_000_000, "heads": 1024}
_LARGEST |= {"mlp_ratio": 64}
METADATA = ("image_size", "vision_head_width", "text_heads")  # of our own files: what shapes do not show
ROWS_SEED, ROWS_STD = 2021, 0.02  # of the rows of the token table that a file omits


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file: safetensors, a TorchScript archive, or written by torch.save.

    Raises:
        UserError: the file is missing or broken, or is not a CLIP in OpenAI's layout.
    """
    file = weights_file.read(path)
    require_layout(file.tensors, str(path))
    return file.tensors, file.metadata


def require_layout(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError unless the tensors have the names of OpenAI's; `source` is named."""
    missing = [key for key in _REQUIRED if key not in tensors]
    if not missing:
        return
    if TRANSFORMERS_KEY in tensors:
        raise UserError(
            f"{source} is in the layout of transformers, which its config.json describes: name the folder that has "
            "both, or a tag of open_clip's whose settings it has: ARCHITECTURE@TAG:FILE"
        )
    raise UserError(
        f"{source} is not a CLIP in OpenAI's layout (it lacks {', '.join(missing[:3])}); for weights in open_clip's "
        "layout, name the architecture: ARCHITECTURE:FILE"
    )


def architecture_of(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, source: str = "the file"
) -> dict[str, Any]:
    """Arguments for `open_clip.CLIP`, inferred from the shapes; `metadata` adds what shapes do not determine.

    Raises:
        UserError: they do not form a model, or form one beyond ``_LARGEST``; `source` is named.
    """
    with refusing_misfits(f"{source}: its shapes and metadata make no CLIP"):
        architecture = _architecture_of(tensors, metadata or {})
        check_sizes(architecture, "")
    return architecture


def check_sizes(sizes: Mapping[str, Any], prefix: str) -> None:
    """Refuse sizes that no CLIP has, before anything is allocated."""
    for name, value in sizes.items():
        if isinstance(value, Mapping):
            check_sizes(value, f"{name}.")
        if name == "eps" and not is_epsilon(value):
            raise UserError(f"{prefix}{name} {shown(value)} is not a number above 0 and at most 0.1")
        if name not in _LARGEST:
            continue
        least = 0 if name in ("layers", "mlp_ratio") else 1
        for number in value if isinstance(value, list | tuple) else [value]:
            plain = isinstance(number, int | float) and not isinstance(number, bool)
            if plain and not least <= number <= _LARGEST[name]:
                raise UserError(f"{prefix}{name} would be {number}, not {least} to {_LARGEST[name]}")


def is_epsilon(value: object) -> bool:
    """Whether a normalisation can have this epsilon."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 0.1


def _architecture_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    if empty := next((key for key in _REQUIRED if 0 in tensors[key].shape), None):
        raise ValueError(f"{empty} is empty")
    text_width = tensors["ln_final.weight"].shape[0]
    vision = _vision_transformer(tensors) if "visual.proj" in tensors else _resnet(tensors)
    if "input_resolution" in tensors:
        vision["image_size"] = int(tensors["input_resolution"])
    if "image_size" in metadata:
        vision["image_size"] = int(metadata["image_size"])
    return {
        "embed_dim": tensors["text_projection"].shape[1],
        "quick_gelu": bool(int(metadata.get("quick_gelu", 1))),  # all of OpenAI's use it
        "vision_cfg": {**vision, "head_width": int(metadata.get("vision_head_width", _HEAD_WIDTH))},
        "text_cfg": {
            "context_length": tensors["positional_embedding"].shape[0],
            "vocab_size": _vocabulary(tensors),
            "width": text_width,
            "heads": int(metadata.get("text_heads", max(1, text_width // _HEAD_WIDTH))),
            "layers": _count(tensors, "transformer.resblocks."),
        },
    }


def named(architecture: Mapping[str, Any]) -> str:
    """open_clip's architecture with these sizes, OpenAI's names first; "" if there is none."""
    import open_clip

    known = sorted(open_clip.list_models(), key=lambda name: (name not in OPENAI_NAMES.values(), len(name)))
    return next((name for name in known if _is_like(open_clip.get_model_config(name), architecture)), "")


def _is_like(config: Mapping[str, Any], architecture: Mapping[str, Any]) -> bool:
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision or "hf_model_name" in text or config.get("custom_text"):
        return False
    same = config["embed_dim"] == architecture["embed_dim"]
    for own, given, names in (
        (vision, architecture["vision_cfg"], ("layers", "width", "patch_size", "image_size")),
        (text, architecture["text_cfg"], ("layers", "width", "context_length", "vocab_size")),
    ):
        same = same and all(own.get(name) == given[name] for name in names)
    return same


def _vision_transformer(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    width, _, patch, _ = tensors["visual.conv1.weight"].shape
    grid = round((tensors["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    layers = _count(tensors, "visual.transformer.resblocks.")
    return {"layers": layers, "width": width, "patch_size": patch, "image_size": patch * grid}


def _resnet(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The image size is the largest that the pooled grid allows; metadata may give a smaller one."""
    grid = round((tensors["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
    return {
        "layers": [_count(tensors, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)],
        "width": tensors["visual.layer1.0.conv1.weight"].shape[0],
        "patch_size": None,
        "image_size": 32 * grid,
    }


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Number of numbered children under `prefix`."""
    return len({key[len(prefix) :].split(".")[0] for key in tensors if key.startswith(prefix)})


def _vocabulary(tensors: Mapping[str, Tensor]) -> int:
    if "token_embedding.rows" in tensors:
        return VOCABULARY
    return tensors["token_embedding.weight"].shape[0]


def token_table(width: int, rows: int = VOCABULARY) -> Tensor:
    """The initial token table (rows, width), float32, from a fixed seed: a file may omit rows that equal it."""
    drawn = np.random.default_rng(ROWS_SEED).standard_normal((rows, width), dtype=np.float32)
    return torch.from_numpy(drawn * np.float32(ROWS_STD))


def complete(tensors: Mapping[str, Tensor], architecture: Mapping[str, Any]) -> dict[str, Tensor]:
    """A model's state dict: without the entries that only describe it, with every row of the token table."""
    state = {key: value for key, value in tensors.items() if key.split(".")[-1] not in _DESCRIPTIONS}
    if (rows := state.pop("token_embedding.rows", None)) is not None:
        table = token_table(architecture["text_cfg"]["width"], architecture["text_cfg"]["vocab_size"])
        table[rows.long()] = state["token_embedding.weight"].float()
        state["token_embedding.weight"] = table
    return state


def as_openais_package_reads(path: Path) -> dict[str, Tensor]:
    """The state dict of a file for OpenAI's ``clip.build_model``, which takes the architecture from shapes alone.

    Raises:
        UserError: the file is not a CLIP, or its shapes do not determine the architecture.
    """
    tensors, metadata = read(path)
    architecture = architecture_of(tensors, metadata)
    if architecture != architecture_of({key: tensors[key] for key in tensors if key != "input_resolution"}, {}):
        raise UserError(f"{path} is a CLIP that OpenAI's `clip` package cannot build: its heads, size or GELU differ")
    return complete(tensors, architecture)


def build(
    tensors: Mapping[str, Tensor], architecture: dict[str, Any], dtype: torch.dtype, source: str
) -> open_clip.CLIP:
    """The model with these weights, on the CPU, in eval mode, with its weight matrices in `dtype`.

    Raises:
        UserError: the tensors do not fit the architecture; `source` and the first keys are named.
    """
    import open_clip

    with refusing_misfits(f"{source}: its shapes and metadata make no CLIP"):
        state = complete(tensors, architecture)
        # Initialising weights to overwrite them would take seconds and consume random numbers.
        with torch.device("meta"):
            model = open_clip.CLIP(**architecture, cast_dtype=None if dtype == torch.float32 else dtype)
        check_fit(model, state, source)  # before memory is allocated for these shapes
        model.to_empty(device="cpu")
        length = architecture["text_cfg"]["context_length"]
        model.attn_mask = torch.full((length, length), float("-inf")).triu_(1)  # the only state that no file contains
        model.load_state_dict(state)
    if dtype != torch.float32:
        open_clip.convert_weights_to_lp(model, dtype)
    return model.eval()


def check_fit(model: torch.nn.Module, state: dict[str, Tensor], source: str) -> None:
    own = model.state_dict()
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    if wrong or len(state) != len(own):
        wrong += [key for key in state if key not in own]
        raise UserError(f"{source} does not fit the CLIP that its own shapes imply: {', '.join(wrong[:3])}")
