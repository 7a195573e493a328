"""One layer of CLIP's text transformer over packed rows, given what the shared prefix holds.

Shapes: B images (1 where the prefix is not an image's own), P prefix tokens, R packed rows of n suffixes,
W width, H heads, E = W / H. Same arithmetic as open_clip's `ResidualAttentionBlock` under a causal mask.

Which tokens of a set of prompts have to be computed at all, and in which order.

Two savings, both exact under a causal mask. Prompts that begin with the same tokens have the same states there,
so these are computed once (`share_prefixes`). And what stands behind a prompt's end token never reaches it, so
it is left out: the remaining tokens of all prompts lie behind each other without padding, sorted by length, so
that prompts of one length form a block for the attention (`pack`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

KeysValues = tuple[Tensor, Tensor]  # each (B, H, P, E)
_PARTS = {"q": (0, 1), "kv": (1, 3), "qkv": (0, 3)}


@dataclass(frozen=True)
class Block:
    """Prompts that are computed as one rectangle: `count` times `length` rows.

    Attributes:
        seen: None where every prompt fills its row, else (count, length) bool, True up to its end token.
    """

    count: int
    length: int
    seen: Tensor | None


@dataclass(frozen=True)
class Pack:
    """Some of K suffixes, in rows behind each other. R rows, n suffixes.

    Attributes:
        classes: (n,) which suffixes these are, in the order in which they lie here.
        source: (R,) the row's token in the flattened (K * S) tokens of all suffixes.
        offset: (R,) the token's place in its suffix.
        ends: (n,) the rows with the end tokens.
        blocks: rectangles, in the order of the rows.
    """

    classes: Tensor
    source: Tensor
    offset: Tensor
    ends: Tensor
    blocks: tuple[Block, ...]

    @property
    def sizes(self) -> list[int]:
        return [block.count * block.length for block in self.blocks]


@lru_cache(maxsize=64)  # a prompt learner asks for the same ones at every step
def pack(lengths: tuple[int, ...], stride: int, chunk: int, slack: int, device: torch.device) -> tuple[Pack, ...]:
    """Lay K suffixes out in rows.

    Args:
        lengths: tokens of each suffix, its end token included.
        stride: S, the width of the padded (K, S) array in which the suffixes are given.
        chunk: suffixes in one pack, at most.
        slack: padded rows that are cheaper to compute than one more block.
    """
    order = sorted(range(len(lengths)), key=lambda k: -lengths[k])
    chunks = [order[start : start + chunk] for start in range(0, len(order), chunk)]
    return tuple(_pack(classes, lengths, stride, slack, device) for classes in chunks)


def _pack(classes: list[int], lengths: Sequence[int], stride: int, slack: int, device: torch.device) -> Pack:
    source: list[int] = []
    offset: list[int] = []
    ends: list[int] = []
    blocks: list[Block] = []
    for length, members in _blocks(classes, lengths, slack):
        for k in members:
            ends.append(len(source) + lengths[k] - 1)
            # Padding repeats the end token: any token would do, and this one is sure to exist.
            places = [min(place, lengths[k] - 1) for place in range(length)]
            source += [k * stride + place for place in places]
            offset += places
        own = torch.tensor([lengths[k] for k in members])
        seen = torch.arange(length) < own[:, None]
        blocks.append(Block(len(members), length, None if bool(seen.all()) else seen.to(device)))
    rows = [torch.tensor(values, device=device) for values in (classes, source, offset, ends)]
    return Pack(rows[0], rows[1], rows[2], rows[3], tuple(blocks))


def _blocks(classes: list[int], lengths: Sequence[int], slack: int) -> list[tuple[int, list[int]]]:
    """(length, members) of each block; `classes` fall in length. A shorter kind joins the block before it if
    the padding that it needs there stays within `slack` rows."""
    blocks: list[tuple[int, list[int]]] = []
    for length, kind in groupby(classes, key=lambda k: lengths[k]):
        members = list(kind)
        if blocks and (blocks[-1][0] - length) * len(members) <= slack:
            blocks[-1][1].extend(members)
        else:
            blocks.append((length, members))
    return blocks


def share_prefixes(prompts: Sequence[tuple[int, ...]], overhead: int) -> list[tuple[int, list[int]]]:
    """Divide prompts into groups, each computed with its common first tokens once, so that few rows remain.

    Args:
        prompts: token ids, each up to and with its end token.
        overhead: rows that one more group costs (a pass of its own through the layers).

    Returns:
        (P, members) per group: the first P tokens of these prompts are the same, and each has more.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    return _share(prompts, order, overhead)[0] if order else []


def _share(
    prompts: Sequence[tuple[int, ...]], members: list[int], overhead: int
) -> tuple[list[tuple[int, list[int]]], int]:
    """Groups for `members` (in lexicographic order) and what they cost in rows. A part that continues in the
    same way is split off where its own groups cost less than it does among the others."""
    shared = _common(prompts[members[0]], prompts[members[-1]])
    groups: list[tuple[int, list[int]]] = []
    rest: list[int] = []
    cost = 0
    for _, part in groupby(members, key=lambda i: prompts[i][shared]):
        own = list(part)
        together = sum(len(prompts[i]) - shared for i in own)
        if 1 < len(own) < len(members):
            apart, apart_cost = _share(prompts, own, overhead)
            if apart_cost < together:
                groups += apart
                cost += apart_cost
                continue
        rest += own
        cost += together
    if rest:
        groups.append((shared, rest))
        cost += shared + overhead
    return groups, cost


def _common(first: tuple[int, ...], last: tuple[int, ...]) -> int:
    """How many tokens two prompts, and all between them in order, share; each keeps at least its last one."""
    longest = min(len(first), len(last)) - 1
    return next((i for i in range(longest) if first[i] != last[i]), longest)


def is_plain(block: Any) -> bool:
    """Whether these functions compute what `block` would: its class and its attention's are open_clip's and
    torch's own, or the attention offers `project`; and no hook looks on."""
    if not isinstance(block, ResidualAttentionBlock) or type(block).forward is not ResidualAttentionBlock.forward:
        return False
    attention = block.attn
    if any(module._forward_hooks or module._forward_pre_hooks for module in (block, attention)):
        return False
    if callable(getattr(attention, "project", None)):
        return True
    own = type(attention).forward is nn.MultiheadAttention.forward
    return own and attention._qkv_same_embed_dim and attention.dropout == 0 and attention.bias_k is None


def project(attention: Any, x: Tensor, parts: str) -> tuple[Tensor, ...]:
    """Queries, keys and values (..., W) of rows `x` (..., W): those that `parts` ("q", "kv", "qkv") names.

    A module that takes the place of the attention (LoRA) has this as a method of its own: `project(x, parts)`.
    """
    if callable(own := getattr(attention, "project", None)):
        return own(x, parts)
    first, last = (place * attention.embed_dim for place in _PARTS[parts])
    bias = attention.in_proj_bias
    bias = None if bias is None else bias[first:last]
    return linear(x, attention.in_proj_weight[first:last], bias).chunk(len(parts), dim=-1)


def prefix_layer(block: Any, x: Tensor) -> tuple[Tensor, KeysValues]:
    """The prefix' states (B, P, W) after the layer, and its keys and values in it."""
    q, k, v = (_heads(rows, block) for rows in project(block.attn, block.ln_1(x), "qkv"))
    attended = scaled_dot_product_attention(q, k, v, is_causal=True)
    return _residuals(block, x, attended.transpose(1, 2).flatten(2)), (k, v)


def prefix_keys_values(block: Any, x: Tensor) -> KeysValues:
    """Keys and values alone: all that the last layer needs of the prefix."""
    k, v = (_heads(rows, block) for rows in project(block.attn, block.ln_1(x), "kv"))
    return k, v


def suffix_layer(block: Any, x: Tensor, prefix: KeysValues | None, pack: Pack) -> Tensor:
    """The states (B, R, W) of packed rows `x` (B or 1, R, W) after the layer."""
    parts = [rows.split(pack.sizes, dim=1) for rows in project(block.attn, block.ln_1(x), "qkv")]
    attended = [
        _attend(block, q, k, v, prefix, rectangle, _causal(prefix, rectangle, x.device))
        for q, k, v, rectangle in zip(*parts, pack.blocks, strict=True)
    ]
    return _residuals(block, x, torch.cat(attended, dim=1))


def last_layer(block: Any, x: Tensor, prefix: KeysValues | None, pack: Pack) -> Tensor:
    """The states (B, n, W) of the end tokens after the last layer. The other tokens only serve as keys and
    values there, so their queries and all that would follow are not computed."""
    normed = block.ln_1(x)
    (q,) = project(block.attn, normed[:, pack.ends], "q")
    queries = q.split([rectangle.count for rectangle in pack.blocks], dim=1)
    parts = [rows.split(pack.sizes, dim=1) for rows in project(block.attn, normed, "kv")]
    attended = [
        _attend(block, q, k, v, prefix, rectangle, _up_to_end(prefix, rectangle))
        for q, k, v, rectangle in zip(queries, *parts, pack.blocks, strict=True)
    ]
    return _residuals(block, x[:, pack.ends], torch.cat(attended, dim=1))


def _attend(
    block: Any, q: Tensor, k: Tensor, v: Tensor, prefix: KeysValues | None, rectangle: Block, mask: Tensor | None
) -> Tensor:
    """Attention of the queries of one rectangle's suffixes (b, count * L', W), with L' = length or 1, to the
    prefix and to their own tokens (b, count * length, W); b is B, or 1 for what is the same for all images."""
    heads, count = block.attn.num_heads, rectangle.count
    q, k, v = (rows.unflatten(1, (count, -1)).unflatten(-1, (heads, -1)).transpose(2, 3) for rows in (q, k, v))
    if prefix is not None:
        images = prefix[0].shape[0]
        shared = (rows[:, None].expand(-1, count, -1, -1, -1) for rows in prefix)
        k, v = (
            torch.cat([s, rows.expand(images, -1, -1, -1, -1)], dim=3) for s, rows in zip(shared, (k, v), strict=True)
        )
        q = q.expand(images, -1, -1, -1, -1)
    if mask is not None and mask.dim() == 4:  # one per suffix: the same for every image
        mask = mask.repeat(q.shape[0], 1, 1, 1)
    # The fused kernels want four dimensions: images and suffixes in one.
    out = scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=mask)
    return out.transpose(1, 2).reshape(q.shape[0], -1, q.shape[2] * q.shape[4])


def _causal(prefix: KeysValues | None, rectangle: Block, device: torch.device) -> Tensor:
    """(length, P + length) bool: all of the prefix, and the tokens up to one's own."""
    shared = 0 if prefix is None else prefix[0].shape[2]
    allowed = torch.ones(rectangle.length, shared + rectangle.length, dtype=torch.bool, device=device)
    return allowed.tril_(shared)


def _up_to_end(prefix: KeysValues | None, rectangle: Block) -> Tensor | None:
    """(count, 1, 1, P + length) bool: what the end tokens see; None where that is everything."""
    if rectangle.seen is None:
        return None
    shared = 0 if prefix is None else prefix[0].shape[2]
    return nn.functional.pad(rectangle.seen, (shared, 0), value=True)[:, None, None]


def _heads(rows: Tensor, block: Any) -> Tensor:
    """(B, P, W) -> (B, H, P, E)"""
    return rows.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2)


def _residuals(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    x = x + block.ls_1(block.attn.out_proj(attended))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
