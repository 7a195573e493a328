"""The two encoders of a backbone: their blocks, and which of them a method adapts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from dassl_lite.utils.errors import UserError, shown
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

ENCODERS = {"both": ("text", "vision"), "text": ("text",), "vision": ("vision",)}
_NAMES = {"text": "text encoder", "vision": "image encoder"}

Part = TypeVar("Part")


def text_encoder(model: Any) -> Any:
    """The module with the text encoder's layers: in open_clip's older class, the model itself."""
    encoder = getattr(model, "text", None)
    return model if encoder is None else encoder


def transformer_blocks(model: Any) -> dict[str, list[nn.Module]]:
    """The blocks of CLIP's kind (with a norm ``ln_1`` in front) of each encoder; an empty list for other encoders."""
    found = {}
    for encoder, root in (("text", text_encoder(model)), ("vision", model.visual)):
        blocks = list(getattr(getattr(root, "transformer", None), "resblocks", ()))
        found[encoder] = (
            blocks if all(isinstance(getattr(block, "ln_1", None), nn.LayerNorm) for block in blocks) else []
        )
    return found


def choose_encoders(
    found: Mapping[str, Sequence[Part]], wanted: str, backbone: str, *, method: str, needs: str, key: str
) -> dict[str, Sequence[Part]]:
    """The parts of each encoder that a method adapts, text before vision.

    Args:
        found: "text" and "vision" -> the parts that can be adapted.
        wanted: "both", "text", "vision", or "auto": those with such parts.
        backbone, method: names, for messages.
        needs: what the method adapts, in words.
        key: config key that chooses the encoders.

    Raises:
        UserError: a requested encoder has nothing to adapt.
    """
    chosen = ENCODERS["both" if wanted == "auto" else wanted]
    for encoder in chosen:
        if found[encoder]:
            continue
        other = "text" if encoder == "vision" else "vision"
        if wanted == "auto" and found[other]:
            lacks = f"The {_NAMES[encoder]} of backbone {backbone} has no {needs}"
            logger.info(f"{lacks}: {method} adapts the {_NAMES[other]} alone")
            return {other: found[other]}
        alone = f"adapt the {other} encoder alone ({key} {other}) or " if found[other] else ""
        raise UserError(
            f"{method} cannot adapt the {encoder} encoder of backbone {backbone}, which has no {needs}; {alone}use a "
            "ViT backbone"
        )
    return {encoder: found[encoder] for encoder in chosen}


def name_of(chosen: Iterable[str]) -> str:
    """The name in `ENCODERS` of the encoders "text", "vision" that were chosen."""
    return next(name for name, encoders in ENCODERS.items() if set(encoders) == set(chosen))


def require_same_settings(saved: Any, own: Mapping[str, Any], path: Path, node: str) -> None:
    """Refuse weights that were trained with other settings: some would fit, but with a wrong scale or elsewhere.

    Args:
        saved: config key -> value, of the checkpoint at ``path``; anything else if it does not say.
        own: config key -> value, of this run.
        node: config node of the keys, such as TRAINER.MMA.

    Raises:
        UserError: names the key and both values.
    """
    for name, value in own.items():
        if isinstance(saved, Mapping) and saved.get(name, value) != value:
            theirs = shown(saved[name])
            raise UserError(
                f"{path} was trained with {name} {theirs}, but this run has {value}; set {node}.{name} to that"
            )
