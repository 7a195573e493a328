"""Files of CLIP weights: read without running code, and put into a model of open_clip's.

Whatever a training script, torch.save, TorchScript or safetensors wraps around the tensors is removed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dassl_lite.utils.errors import MISFITS, UserError, refusing_misfits
from dassl_lite.utils.files import HashingFile, open_file, read_json
from dassl_lite.utils.safe_load import is_torchscript, load_file, tensors_of

# Entries of OpenAI's files that describe the model.
DESCRIPTIONS = ("input_resolution", "context_length", "vocab_size")
_SMALL = 1024  # maximum bytes of a tensor that describes the model
_MOST_BYTES = 8  # maximum bytes of a single number
INDEX_SUFFIX = ".index.json"  # ending of an index, which names the files of weights that were saved in parts


@dataclass(frozen=True)
class WeightsFile:
    """The content of a file of weights.

    Attributes:
        tensors: by name, without a training script's wrapping.
        metadata: of a safetensors file.
        torchscript: whether it is a TorchScript archive, as OpenAI's are.
        training: whether a training script saved it during training: an epoch or an optimiser is beside the weights, or
            they have the names of a model that several processes train.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    torchscript: bool = False
    training: bool = False

    @property
    def is_openais(self) -> bool:
        """Whether only OpenAI's package, or one that writes like it, can have made it."""
        return self.torchscript or any(key in self.tensors for key in DESCRIPTIONS)


def read(path: Path, hasher: Any = None) -> WeightsFile:
    """Read safetensors, a TorchScript archive, what torch.save wrote, or the index of several such files.

    Args:
        hasher: an object of hashlib, which is fed all bytes of the file, but not of an index.

    Raises:
        UserError: the file is missing or broken, or holds no dictionary of tensors.
    """
    return _read(path, hasher, math.inf)


def outline(path: Path) -> WeightsFile:
    """`read`, without the values of large tensors, which are on the device "meta", so it takes no time.

    Those of a safetensors file are float32, whatever their type in the file.
    """
    return _read(path, None, _SMALL)


def _read(path: Path, hasher: Any, largest: float) -> WeightsFile:
    if path.name.endswith(INDEX_SUFFIX):
        return WeightsFile(_read_parts(path, largest), {})
    if path.suffix != ".safetensors":
        loaded = load_file(path, hasher=hasher, largest=largest)
        archive = is_torchscript(loaded)
        content = tensors_of(loaded) if archive else loaded
        return WeightsFile(unwrap(content, str(path)), {}, archive, _is_of_training(content))
    try:
        with open_file(path) as plain:  # only a file
            if hasher is not None:
                HashingFile(plain, hasher).hash_to()
        with safe_open(path, framework="pt") as file:
            state = {key: _tensor(file, key, largest) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, *MISFITS) as error:  # kinds of numbers that torch lacks
        raise UserError(f"cannot load {path}: not a complete safetensors file ({error})") from error
    return WeightsFile(unwrap(state, str(path)), metadata)


def _tensor(file: Any, key: str, largest: float) -> Tensor:
    """A tensor of a safetensors file; without values if it may have more bytes than ``largest``."""
    shape = file.get_slice(key).get_shape() if largest < math.inf else []
    if _MOST_BYTES * math.prod(shape) > largest:
        return torch.empty(shape, device="meta")
    return file.get_tensor(key)


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; other files have none. Raises UserError if it is broken."""
    if path.suffix != ".safetensors":
        return {}
    try:
        open_file(path).close()
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, *MISFITS) as error:
        raise UserError(f"cannot load {path}: not a complete safetensors file ({error})") from error


def _read_parts(index: Path, largest: float) -> dict[str, Tensor]:
    """The tensors of the files beside an index that it names."""
    if not index.is_file():
        raise UserError(f"no weights file {index}")
    with refusing_misfits(f"{index} is not an index of weights"):
        names = sorted({str(name) for name in read_json(index)["weight_map"].values()})
    tensors: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name or name.endswith(INDEX_SUFFIX):
            raise UserError(f"{index} names '{name}', which is not a file beside it")
        tensors |= _read(index.parent / name, None, largest).tensors
    return tensors


def _is_of_training(content: object) -> bool:
    if not isinstance(content, Mapping):
        return False
    inner = content.get("state_dict")
    keys = [*content, *(inner if isinstance(inner, Mapping) else ())]
    return any(key in ("epoch", "optimizer") or str(key).startswith("module.") for key in keys)


def unwrap(state: object, source: str) -> dict[str, Tensor]:
    """The flat dictionary of tensors in a file's content, without a training script's wrapping.

    Raises:
        UserError: there is none; `source` is named.
    """
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise UserError(f"{source} contains no dictionary of tensors, so no CLIP weights")
    return {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Put weights into a model of open_clip's, converted as open_clip converts its older and its foreign layouts.

    Raises:
        UserError: they do not fit the model; `source` and the first keys are named.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    own: Any = model
    with refusing_misfits(f"{source} does not fit"), torch.no_grad():
        state = convert_state_dict(own, {key: value for key, value in tensors.items() if key not in DESCRIPTIONS})
        if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        for key in ("logit_scale", "logit_bias"):
            if key in state and getattr(model, key, None) is not None:
                state[key] = state[key].reshape(getattr(model, key).shape)  # one number, with or without an axis
        if getattr(model, "logit_bias", None) is not None:
            state.setdefault("logit_bias", torch.zeros_like(own.logit_bias))
        state.pop("text.transformer.embeddings.position_ids", None)  # older transformers wrote it
        resize_pos_embed(state, model)
        resize_text_pos_embed(state, model)
        _require_fit(model, state, source)
        model.load_state_dict(state)


def _require_fit(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    own = model.state_dict()
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    wrong += [key for key in state if key not in own]
    if wrong:
        raise UserError(f"{source} does not fit the architecture: {', '.join(wrong[:3])}")
