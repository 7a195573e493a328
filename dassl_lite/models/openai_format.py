"""CLIP weights in OpenAI's layout, where keys and shapes determine the architecture.

The layout is a flat dictionary: `visual.*`, `transformer.resblocks.*`, `token_embedding.weight` and so on. Our own
files may also contain metadata (image size, heads), and only some rows of the token table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dassl_lite.utils.errors import MISFITS, UserError, refusing_misfits
from dassl_lite.utils.files import open_file
from dassl_lite.utils.safe_load import is_torchscript, load_file, tensors_of

# Last parts of the names of entries that are not weights: descriptions of the model, and a buffer that is not state.
_DESCRIPTIONS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
_REQUIRED = (
    "visual.conv1.weight",
    "positional_embedding",
    "token_embedding.weight",
    "ln_final.weight",
    "text_projection",
)
_HEAD_WIDTH = 64  # of all of OpenAI's models, in both encoders
# Sizes beyond those of any CLIP: a file of a few bytes can name any. Image sizes in pixels.
_LARGEST = {"embed_dim": 16384, "layers": 256, "width": 16384, "patch_size": 1024, "image_size": 4096}
_LARGEST |= {"head_width": 16384, "context_length": 8192, "vocab_size": 4_000_000, "heads": 1024}
ROWS_SEED, ROWS_STD = 2021, 0.02  # of the rows of the token table that a file omits


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file: safetensors, a TorchScript archive, or written by torch.save.

    Raises:
        UserError: the file is missing or broken, or is not a CLIP in OpenAI's layout.
    """
    if path.suffix != ".safetensors":
        loaded = load_file(path)
        return unwrap(tensors_of(loaded) if is_torchscript(loaded) else loaded, str(path)), {}
    try:
        open_file(path).close()  # only a file
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, *MISFITS) as error:  # kinds of numbers that torch lacks
        raise UserError(f"cannot load {path}: not a complete safetensors file ({error})") from error
    return unwrap(state, str(path)), metadata


def unwrap(state: object, source: str) -> dict[str, Tensor]:
    """The flat dictionary of tensors in a file's content, without a training script's wrapping.

    Raises:
        UserError: the content is not a CLIP in OpenAI's layout; `source` is named.
    """
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise UserError(f"{source} contains no dictionary of tensors, so no CLIP weights")
    tensors = {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    if missing := [key for key in _REQUIRED if key not in tensors]:
        raise UserError(
            f"{source} is not a CLIP in OpenAI's layout (it lacks {', '.join(missing[:3])}); for weights in "
            "open_clip's layout, name the architecture: ARCHITECTURE:FILE"
        )
    return tensors


def architecture_of(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, source: str = "the file"
) -> dict[str, Any]:
    """Arguments for `open_clip.CLIP`, inferred from the shapes; `metadata` adds what shapes do not determine.

    Raises:
        UserError: they make no model, or one beyond ``_LARGEST``; `source` is named.
    """
    with refusing_misfits(f"{source}: its shapes and metadata make no CLIP"):
        architecture = _architecture_of(tensors, metadata or {})
        _check_sizes(architecture, "")
    return architecture


def _check_sizes(sizes: Mapping[str, Any], prefix: str) -> None:
    """Refuse sizes that no CLIP has, before anything is made of them."""
    for name, value in sizes.items():
        if isinstance(value, Mapping):
            _check_sizes(value, f"{name}.")
        for number in value if isinstance(value, list) else [value]:
            least = 0 if name == "layers" else 1
            if isinstance(number, int) and not isinstance(number, bool) and not least <= number <= _LARGEST[name]:
                raise UserError(f"{prefix}{name} would be {number}, not {least} to {_LARGEST[name]}")


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
        return open_clip.SimpleTokenizer().vocab_size
    return tensors["token_embedding.weight"].shape[0]


def token_table(width: int, rows: int = 49408) -> Tensor:
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
        UserError: the file is no CLIP, or one whose architecture its shapes do not tell.
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
    with refusing_misfits(f"{source}: its shapes and metadata make no CLIP"):
        state = complete(tensors, architecture)
        # Initialising weights to overwrite them would take seconds and consume random numbers.
        with torch.device("meta"):
            model = open_clip.CLIP(**architecture, cast_dtype=None if dtype == torch.float32 else dtype)
        _check_fit(model, state, source)  # before memory is taken for what the shapes promise
        model.to_empty(device="cpu")
        length = architecture["text_cfg"]["context_length"]
        model.attn_mask = torch.full((length, length), float("-inf")).triu_(1)  # the only state that no file contains
        model.load_state_dict(state)
    if dtype != torch.float32:
        open_clip.convert_weights_to_lp(model, dtype)
    return model.eval()


def _check_fit(model: torch.nn.Module, state: dict[str, Tensor], source: str) -> None:
    own = model.state_dict()
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    if wrong or len(state) != len(own):
        wrong += [key for key in state if key not in own]
        raise UserError(f"{source} does not fit the CLIP that its own shapes imply: {', '.join(wrong[:3])}")
