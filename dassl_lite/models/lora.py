"""Low-rank adaptation of the attention layers of a backbone's encoders, as CLIP-LoRA does it.

Papers: LoRA, https://arxiv.org/abs/2106.09685; CLIP-LoRA, https://arxiv.org/abs/2405.18541

    W' x = W x + alpha / sqrt(r) * B A dropout(x)

W (D x D) is a frozen projection of an attention layer (query, key, value or output), A (r x D) starts random, B (D x r)
at zero. Each projection has its own pair and draws its own dropout mask.

open_clip's blocks contain an ``nn.MultiheadAttention``, which `LoRAAttention` replaces. The attention of timm's trunks
and of Hugging Face's text encoders is made of linear layers, which `LoRALinear` replaces: one for each projection, or
timm's ``qkv``, which is three of them side by side.

Why not a library: peft 0.21 supports torch's ``nn.MultiheadAttention``, but adapts the three input projections with one
joint pair, always adapts the output projection, and adds B A to W before the layer runs, so dropout cannot act on the
branch's input. It also adapts a ``qkv`` with one pair, whose A the three projections share. loralib scales by
alpha / r and has no layer for a pre-trained model. Neither reproduces the reference's parameter counts or gradients,
and with peft the choice among q, k and v would mean another method on each backbone.

Shapes: N sequences, L tokens, W width, H heads, E = W / H, r rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from dassl_lite.models import text_layers
from dassl_lite.models.encoders import choose_encoders, text_encoder
from dassl_lite.utils.errors import UserError, unknown

# The projections, and the names of their pairs in the reference's files.
PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}
# Positions as ranges of an encoder's blocks, in sixths of its depth.
POSITIONS = {"all": (0, 6), "bottom": (0, 2), "mid": (2, 4), "up": (4, 6), "half-bottom": (0, 3), "half-up": (3, 6)}
# Names of the projections in attention layers of timm and Hugging Face; all in a row are linear layers. Three
# projections in one layer follow each other in its output.
_LINEARS = (
    {"q": "qkv", "k": "qkv", "v": "qkv", "o": "proj"},  # timm
    {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"},  # timm: EVA02
    {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"},  # Hugging Face: M2M100
    {"q": "self.query", "k": "self.key", "v": "self.value", "o": "output.dense"},  # roberta
    {"q": "q", "k": "k", "v": "v", "o": "o"},  # T5
)
_TOP = re.compile(r"top([1-9]\d*)")


class LowRank(nn.Module):
    """The update of one projection: x (..., inputs) -> scaling * B A dropout(x) (..., outputs).

    Args:
        inputs, outputs: widths of the projection.
        rank: r.
        alpha: scaling is alpha / sqrt(r).
        dropout: probability of dropping an element of x in training.

    The pair is stored in float32 whatever the model's precision, and computes in the precision of x.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.w_lora_A = nn.Parameter(torch.empty(rank, inputs))
        self.w_lora_B = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.w_lora_A, a=math.sqrt(5))  # as nn.Linear starts
        self.scaling = alpha / math.sqrt(rank)
        self.dropout = nn.Dropout(dropout)
        self.active = True

    @property
    def is_dropping(self) -> bool:
        return self.active and self.dropout.training and self.dropout.p > 0

    def weight(self) -> Tensor:
        """The update of the projection's weight, (outputs, inputs), in float32."""
        return self.scaling * (self.w_lora_B @ self.w_lora_A)

    def forward(self, x: Tensor) -> Tensor | float:
        if not self.active:
            return 0.0
        low = linear(self.dropout(x), self.w_lora_A.to(x.dtype))
        return self.scaling * linear(low, self.w_lora_B.to(x.dtype))


class LoRAAttention(nn.Module):
    """Replaces a frozen ``nn.MultiheadAttention`` in a block of open_clip.

    Args:
        base: the attention, unchanged.
        pairs: by projection ("q", "k", "v", "o"); the others are not adapted.
    """

    def __init__(self, base: nn.MultiheadAttention, pairs: Mapping[str, LowRank]) -> None:
        super().__init__()
        self.base, self.num_heads = base, base.num_heads
        for projection, pair in pairs.items():
            setattr(self, PROJECTIONS[projection], pair)

    def pair(self, projection: str) -> LowRank | None:
        """The pair of a projection, if it has one."""
        return getattr(self, PROJECTIONS[projection], None)

    def in_proj(self, x: Tensor, parts: str = "qkv") -> tuple[Tensor, ...]:
        """Queries, keys and values (..., W) of x (..., W): those named in ``parts``."""
        frozen = text_layers.project(self.base, x, parts)
        pairs = (self.pair(part) for part in parts)
        return tuple(rows if pair is None else rows + pair(x) for rows, pair in zip(frozen, pairs, strict=True))

    def out_proj(self, x: Tensor) -> Tensor:
        """The output projection of x (..., W)."""
        pair = self.pair("o")
        return self.base.out_proj(x) if pair is None else self.base.out_proj(x) + pair(x)

    @property
    def project(self) -> Any:
        """``in_proj`` for the text tower, which runs a prefix shared by all prompts only once; None while dropout is
        active, because each prompt then draws its own masks, for the prefix too."""
        dropping = any(module.is_dropping for module in self.children() if isinstance(module, LowRank))
        return None if dropping else self.in_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Self-attention as in ``nn.MultiheadAttention``, (N, L, W) -> (N, L, W), without attention weights.

        Args:
            query, key, value: the same tensor; (L, N, W) if the base is not batch-first.
            attn_mask: (L, L) or (N * H, L, L), added to the scores; or bool, True where attention is forbidden.
        """
        if key is not query or value is not query or need_weights:
            raise ValueError("LoRAAttention is self-attention, and does not return its weights")
        x = query if self.base.batch_first else query.transpose(0, 1)
        q, k, v = (rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for rows in self.in_proj(x))
        attended = scaled_dot_product_attention(q, k, v, attn_mask=_mask(attn_mask, q))
        out = self.out_proj(attended.transpose(1, 2).flatten(2))
        return (out if self.base.batch_first else out.transpose(0, 1)), None

    @torch.no_grad()
    def merge(self) -> nn.MultiheadAttention:
        """Add the pairs to the weights of the base and return it: a plain attention to replace this module."""
        inputs = self.base.in_proj_weight.chunk(3)
        for projection, weight in zip("qkvo", (*inputs, self.base.out_proj.weight), strict=True):
            if (pair := self.pair(projection)) is not None:
                weight.copy_(weight + pair.weight().to(weight.device))  # the sum has the wider of the two types
        return self.base


class LoRALinear(nn.Module):
    """Replaces a frozen linear layer of an attention layer. It has no ``weight``: reading that would miss the pairs.

    Args:
        base: the layer, unchanged.
        pairs: one for each of the projections side by side in its output; None leaves one as it is.
        first: whether it is the first one replaced in its attention layer, for counting layers.
    """

    def __init__(self, base: nn.Linear, pairs: Sequence[LowRank | None], first: bool) -> None:
        super().__init__()
        self.base, self.first, self.parts = base, first, len(pairs)
        self.pairs = nn.ModuleDict({str(i): pair for i, pair in enumerate(pairs) if pair is not None})

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) -> (..., outputs)"""
        frozen: Tensor = self.base(x)
        if self.parts == 1:
            return frozen + self.pairs["0"](x)
        parts = enumerate(frozen.chunk(self.parts, dim=-1))
        return torch.cat([rows + self.pairs[str(i)](x) if str(i) in self.pairs else rows for i, rows in parts], dim=-1)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """Add the pairs to the weights of the base and return it."""
        weights = self.base.weight.chunk(self.parts)
        pairs: Any = self.pairs
        for i, pair in pairs.items():
            weight = weights[int(i)]
            weight.copy_(weight + pair.weight().to(weight.device))
        return self.base


def _mask(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """A mask of ``nn.MultiheadAttention`` as scaled_dot_product_attention takes it for queries (N, H, L, E)."""
    if mask is None:
        return None
    mask = ~mask if mask.dtype == torch.bool else mask.to(q.dtype)
    return mask.unflatten(0, (q.shape[0], q.shape[1])) if mask.dim() == 3 else mask


def add_lora(
    blocks: Sequence[nn.Module],
    numbers: Iterable[int],
    projections: Collection[str],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
) -> nn.ModuleDict:
    """Adapt the attention of the numbered blocks; returns the pairs: block number -> projection -> pair.

    Args:
        blocks: numbered blocks, from `adaptable_blocks`.
    """
    adapters = nn.ModuleDict()
    for number in numbers:
        block: Any = blocks[number]
        places = _places(block)
        pairs: dict[str, LowRank] = {}
        for projection in (p for p in PROJECTIONS if p in projections):
            inputs, outputs = (block.attn.embed_dim,) * 2 if places is None else _widths(block, places, projection)
            pairs[projection] = LowRank(inputs, outputs, rank, alpha, dropout)
        if places is None:
            block.attn = LoRAAttention(block.attn, pairs)
        else:
            _replace_linears(block, places, pairs)
        adapters[str(number)] = nn.ModuleDict({PROJECTIONS[p]: pair for p, pair in pairs.items()})
    return adapters


def _places(attention: nn.Module) -> Mapping[str, str] | None:
    """Where an attention layer made of linear layers keeps its projections, as in `_LINEARS`; None for other modules.

    If timm's attention adds its own biases to ``qkv``, it must be able to add them after the layer.
    """
    if getattr(attention, "q_bias", None) is not None and not hasattr(attention, "qkv_bias_separate"):
        return None
    if "Pool" in type(attention).__name__:  # has one query for all tokens
        return None
    for places in _LINEARS:
        if all(isinstance(_at(attention, place), nn.Linear) for place in places.values()):
            return places
    return None


def _at(module: nn.Module, place: str) -> Any:
    """The submodule at a dotted name; None if there is none."""
    found: Any = module
    for name in place.split("."):
        found = getattr(found, name, None)
    return found


def _side_by_side(places: Mapping[str, str], place: str) -> list[str]:
    """The projections in the linear layer at ``place``, in the order of its rows."""
    return [projection for projection, own in places.items() if own == place]


def _widths(attention: nn.Module, places: Mapping[str, str], projection: str) -> tuple[int, int]:
    linear = _at(attention, places[projection])
    return linear.in_features, linear.out_features // len(_side_by_side(places, places[projection]))


def _replace_linears(attention: Any, places: Mapping[str, str], pairs: Mapping[str, LowRank]) -> None:
    adapted = list(dict.fromkeys(places[projection] for projection in pairs))
    for place in adapted:
        owner, _, name = place.rpartition(".")
        module = _at(attention, owner) if owner else attention
        inside = [pairs.get(projection) for projection in _side_by_side(places, place)]
        setattr(module, name, LoRALinear(getattr(module, name), inside, first=place == adapted[0]))
    if getattr(attention, "q_bias", None) is not None:
        attention.qkv_bias_separate = True  # else it multiplies by the weight directly


def merge_lora(model: nn.Module) -> int:
    """Replace everything that ``add_lora`` put into ``model`` by plain layers with merged weights.

    The features stay the same (to rounding in the weights' precision), and nothing is left to train.

    Returns:
        The number of attention layers that were adapted.
    """
    replaced = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoRAAttention | LoRALinear):
                setattr(module, name, child.merge())
                replaced += isinstance(child, LoRAAttention) or child.first
    return replaced


@contextmanager
def without_lora(adapters: nn.Module) -> Iterator[None]:
    """A context in which the pairs in ``adapters`` are inactive: the model is the original one."""
    pairs = [module for module in adapters.modules() if isinstance(module, LowRank)]
    for pair in pairs:
        pair.active = False
    try:
        yield
    finally:
        for pair in pairs:
            pair.active = True


def adaptable_blocks(encoder: nn.Module) -> list[nn.Module]:
    """The modules whose attention LoRA can adapt, in order; empty for a convolutional network.

    Returns:
        open_clip's transformer blocks, or the attention layers of timm's trunks and Hugging Face's text encoders.
    """
    inner = getattr(encoder, "trunk", getattr(encoder, "transformer", None))
    blocks = getattr(inner, "resblocks", None)
    if blocks is not None:
        return list(blocks) if all(_is_adaptable(getattr(block, "attn", None)) for block in blocks) else []
    return [] if inner is None else [module for module in inner.modules() if _places(module) is not None]


def _is_adaptable(attention: Any) -> bool:
    if not isinstance(attention, nn.MultiheadAttention):
        return False
    return attention._qkv_same_embed_dim and attention.bias_k is None and not attention.add_zero_attn


def blocks_by_encoder(model: Any, wanted: str, name: str) -> dict[str, Sequence[nn.Module]]:
    """The blocks of each encoder to adapt, text before vision.

    Args:
        model: open_clip's model.
        wanted: "both", "text", "vision", or "auto": those that have attention layers.
        name: name of the backbone, for messages.

    Raises:
        UserError: a requested encoder has no such blocks.
    """
    found = {"text": adaptable_blocks(text_encoder(model)), "vision": adaptable_blocks(model.visual)}
    needs, key = "attention layers of a known kind", "TRAINER.CLIPLoRA.ENCODER"
    return choose_encoders(found, wanted, name, method="LoRA", needs=needs, key=key)


def choose_blocks(position: str, numbers: Sequence[int], depth: int, encoder: str) -> list[int]:
    """Which of an encoder's ``depth`` blocks to adapt, as numbers from 0.

    Args:
        position: a name in ``POSITIONS``, or "top1", "top2" ...: the last ones.
        numbers: the blocks themselves; they override ``position``.
        encoder: "text" or "vision", for messages.

    Raises:
        UserError: unknown position, or one outside this encoder.
    """
    for number in numbers:
        if not 0 <= number < depth:
            raise UserError(
                f"LoRA block {number} is out of range: the {encoder} encoder has blocks 0 to {depth - 1}; "
                "set TRAINER.CLIPLoRA.BLOCKS to numbers among those"
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
