"""Where LoRA goes: the encoders of a CLIP that have blocks to adapt, and the choice among the blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

ENCODERS = {"both": ("text", "vision"), "text": ("text",), "vision": ("vision",)}
# Positions as ranges of an encoder's blocks, in sixths of its depth.
POSITIONS = {"all": (0, 6), "bottom": (0, 2), "mid": (2, 4), "up": (4, 6), "half-bottom": (0, 3), "half-up": (3, 6)}
_TOP = re.compile(r"top([1-9]\d*)")


def adaptable_blocks(encoder: nn.Module) -> list[nn.Module]:
    """The transformer blocks of an image or text encoder that LoRA can adapt, in order; none for a ResNet."""
    blocks = getattr(getattr(encoder, "transformer", None), "resblocks", ())
    return list(blocks) if all(_is_adaptable(getattr(block, "attn", None)) for block in blocks) else []


def _is_adaptable(attention: Any) -> bool:
    if not isinstance(attention, nn.MultiheadAttention):
        return False
    return attention._qkv_same_embed_dim and attention.bias_k is None and not attention.add_zero_attn


def blocks_by_encoder(model: Any, wanted: str, name: str) -> dict[str, list[nn.Module]]:
    """The blocks of each encoder that is to be adapted, text before vision.

    Args:
        model: open_clip's.
        wanted: "both", "text", "vision", or "auto": both, but "text" where the image encoder is no transformer.
        name: of the backbone, for messages.

    Raises:
        UserError: an encoder that is asked for has no blocks.
    """
    found = {"text": adaptable_blocks(getattr(model, "text", model)), "vision": adaptable_blocks(model.visual)}
    if wanted == "auto" and not found["vision"]:
        logger.info(f"The image encoder of backbone {name} is no transformer: LoRA adapts the text encoder alone")
    chosen = ("both" if found["vision"] else "text") if wanted == "auto" else wanted
    for encoder in ENCODERS[chosen]:
        if not found[encoder]:
            other = "text" if encoder == "vision" else "vision"
            raise UserError(
                f"LoRA cannot adapt the {encoder} encoder of backbone {name}, which is no transformer of open_clip's; "
                f"adapt the {other} encoder alone (TRAINER.CLIPLoRA.ENCODER {other}) or take a ViT backbone"
            )
    return {encoder: found[encoder] for encoder in ENCODERS[chosen]}


def choose_blocks(position: str, numbers: Sequence[int], depth: int, encoder: str) -> list[int]:
    """Which of an encoder's ``depth`` blocks to adapt, as numbers from 0.

    Args:
        position: a name in ``POSITIONS``, or "top1", "top2" ...: the last ones.
        numbers: the blocks themselves; where given, ``position`` is not read.
        encoder: "text" or "vision", for messages.

    Raises:
        UserError: no such position, or one that this encoder does not have.
    """
    for number in numbers:
        if not 0 <= number < depth:
            raise UserError(
                f"LoRA block {number} is out of range: the {encoder} encoder has blocks 0 to {depth - 1}; "
                "set TRAINER.CLIPLoRA.BLOCKS to some of those"
            )
    if numbers:
        return sorted(set(numbers))
    if top := _TOP.fullmatch(position):
        first, last = depth - int(top[1]), depth
    elif position in POSITIONS:
        first, last = (depth * sixths // 6 for sixths in POSITIONS[position])
    else:
        raise unknown("LoRA position", position, (*POSITIONS, "top1", "top3"))
    if not 0 <= first < last:
        raise UserError(
            f"LoRA position '{position}' is out of range: the {encoder} encoder has {depth} blocks; "
            f"use 'all', or 'top1' to 'top{depth}'"
        )
    return list(range(first, last))
