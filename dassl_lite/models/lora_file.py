"""The settings of LoRA weights, and the file format of CLIP-LoRA's authors, which holds both.

The file (``lora_weights.pt``): ``metadata`` with the keys of ``OPTIONS``, and ``weights``: layer_0, layer_1 ... (the
adapted blocks, text before vision) -> q_proj, k_proj, v_proj, proj -> w_lora_A, w_lora_B.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dassl_lite.utils.errors import UserError
from dassl_lite.utils.safe_load import load_file

FILE_NAME = "lora_weights.pt"
# A setting's name in the authors' files, and its config key.
OPTIONS = {"r": "RANK", "alpha": "ALPHA", "encoder": "ENCODER", "params": "PARAMS", "position": "POSITION"}


def settings(
    blocks: Sequence[str], rank: int, alpha: float, params: Sequence[str], position: str | list[int]
) -> dict[str, Any]:
    """The settings of LoRA weights, with the keys of ``OPTIONS``.

    Args:
        blocks: the adapted blocks, such as "text.0".
        params: the adapted projections.
        position: its name, or the numbers of the blocks.
    """
    encoders = sorted({block.partition(".")[0] for block in blocks})
    encoder = "both" if len(encoders) > 1 else encoders[0]
    return {"r": rank, "alpha": alpha, "encoder": encoder, "params": list(params), "position": position}


def find(place: str | Path) -> Path | None:
    """The authors' file at ``place``, the file itself or its folder; None if there is none."""
    path = Path(place) / FILE_NAME if Path(place).is_dir() else Path(place)
    return path if str(place) and path.is_file() else None


def require_same_settings(saved: Mapping[str, Any], own: Mapping[str, Any], path: Path) -> None:
    """Refuse weights with other settings: some would fit, but with a wrong scale or in the wrong place.

    Raises:
        UserError: names the setting, both values and the config key.
    """
    for name, key in OPTIONS.items():
        if name in saved and _comparable(saved[name]) != _comparable(own[name]):
            key = "BLOCKS" if name == "position" and not isinstance(saved[name], str) else key
            raise UserError(
                f"{path} holds LoRA weights with {name} = {_text(saved[name])}, but this run has {_text(own[name])}; "
                f"set TRAINER.CLIPLoRA.{key} to that"
            )


def read_reference(path: Path, blocks: Iterable[str], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict from the authors' file.

    Args:
        path: the file.
        blocks: this run's adapted blocks, such as "text.0", in the order of the file's layers.
        own: this run's settings, with the keys of ``OPTIONS``.

    Raises:
        UserError: not a file of LoRA weights, or one with other settings.
    """
    content = load_file(path, strict=True)
    layers = content.get("weights") if isinstance(content, dict) else None
    if not isinstance(layers, dict) or not isinstance(content.get("metadata"), dict):
        raise UserError(f"{path} is not a CLIP-LoRA file: it lacks 'weights' or 'metadata'")
    require_same_settings(content["metadata"], own, path)
    blocks = list(blocks)
    if len(layers) != len(blocks):
        raise UserError(
            f"{path} holds {len(layers)} LoRA layers, but this run has {len(blocks)}: it belongs to another backbone"
        )
    found: dict[str, Tensor] = {}
    for number, block in enumerate(blocks):
        layer = layers.get(f"layer_{number}", {})
        pairs = layer.items() if isinstance(layer, dict) else [(f"layer_{number}", layer)]
        for projection, pair in pairs:
            if not isinstance(pair, dict) or not all(isinstance(tensor, Tensor) for tensor in pair.values()):
                raise UserError(f"{path} is not a CLIP-LoRA file: its layer_{number} holds no pairs of tensors")
            found |= {f"{block}.{projection}.{name}": tensor for name, tensor in pair.items()}
    return found


def _comparable(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
