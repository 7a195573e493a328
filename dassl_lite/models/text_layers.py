"""CLIP's text transformer over packed rows: which tokens to compute, and one layer's arithmetic for them.

Two savings, both exact under a causal mask. Prompts that begin with the same tokens have the same states there, so
these are computed once (`share_prefixes`). And tokens after a prompt's end token never influence it, so they are
dropped: the remaining tokens of all prompts are laid out one after another without padding, sorted by length, and
prompts of equal length form one rectangle for the attention (`pack`). The layers do the same arithmetic as open_clip's
`ResidualAttentionBlock` under a causal mask.

Shapes: B images (1 if they share the prefix), P prefix tokens, K suffixes of at most S tokens, n of them in one pack
with R rows, W width, H heads, E = W / H. Of deep prompts, n is the number of rows, and L that of all tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

if TYPE_CHECKING:
    from open_clip.transformer import ResidualAttentionBlock

KeysValues = tuple[Tensor, Tensor]  # each (B, H, P, E)
_PARTS = {"q": (0, 1), "kv": (1, 3), "qkv": (0, 3)}


# --- which tokens to compute ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rectangle:
    """Suffixes that are computed together, as `count` x `length` rows.

    Attributes:
        visible: None if every suffix fills its rows, else (count, length) bool: True up to its end token.
    """

    count: int
    length: int
    visible: Tensor | None


@dataclass(frozen=True)
class Pack:
    """Some of K suffixes, one after another in R rows.

    Attributes:
        classes: (n,) which suffixes these are, in the order of the rows.
        source: (R,) each row's token in the flattened (K * S) tokens of all suffixes.
        offset: (R,) each row's position in its suffix.
        ends: (n,) the rows with the end tokens.
        rectangles: in the order of the rows.
    """

    classes: Tensor
    source: Tensor
    offset: Tensor
    ends: Tensor
    rectangles: tuple[Rectangle, ...]

    @property
    def sizes(self) -> list[int]:
        """Number of rows of each rectangle."""
        return [rectangle.count * rectangle.length for rectangle in self.rectangles]


@lru_cache(maxsize=64)  # a prompt learner asks for the same ones at every step
def pack(lengths: tuple[int, ...], stride: int, chunk: int, slack: int, device: torch.device) -> tuple[Pack, ...]:
    """Lay out K suffixes in rows.

    Args:
        lengths: tokens of each suffix, including its end token.
        stride: S, the width of the padded (K, S) array that contains the suffixes.
        chunk: maximum number of suffixes in one pack.
        slack: number of padded rows that are cheaper to compute than another rectangle.
    """
    order = sorted(range(len(lengths)), key=lambda k: -lengths[k])
    chunks = [order[start : start + chunk] for start in range(0, len(order), chunk)]
    return tuple(_pack(classes, lengths, stride, slack, device) for classes in chunks)


def _pack(classes: list[int], lengths: Sequence[int], stride: int, slack: int, device: torch.device) -> Pack:
    source: list[int] = []
    offset: list[int] = []
    ends: list[int] = []
    rectangles: list[Rectangle] = []
    for length, members in _rectangles(classes, lengths, slack):
        for k in members:
            ends.append(len(source) + lengths[k] - 1)
            # Padding repeats the end token: any token would do, and this one always exists.
            positions = [min(position, lengths[k] - 1) for position in range(length)]
            source += [k * stride + position for position in positions]
            offset += positions
        filled = torch.tensor([lengths[k] for k in members])
        visible = torch.arange(length) < filled[:, None]
        rectangles.append(Rectangle(len(members), length, None if bool(visible.all()) else visible.to(device)))
    rows = [torch.tensor(values, device=device) for values in (classes, source, offset, ends)]
    return Pack(rows[0], rows[1], rows[2], rows[3], tuple(rectangles))


def _rectangles(classes: list[int], lengths: Sequence[int], slack: int) -> list[tuple[int, list[int]]]:
    """(length, members) of each rectangle, for `classes` in order of decreasing length.

    Shorter suffixes join the rectangle before them if that needs at most `slack` padded rows.
    """
    rectangles: list[tuple[int, list[int]]] = []
    for length, group in groupby(classes, key=lambda k: lengths[k]):
        members = list(group)
        if rectangles and (rectangles[-1][0] - length) * len(members) <= slack:
            rectangles[-1][1].extend(members)
        else:
            rectangles.append((length, members))
    return rectangles


@dataclass(frozen=True)
class DeepRows:
    """Deep prompts: rows that replace those at the same positions of every prompt in the inputs of blocks.

    Attributes:
        rows: block number -> (n, W), the same for all prompts, or (K, n, W).
        first: position of the first replaced row in a prompt.
    """

    rows: Mapping[int, Tensor]
    first: int = 1

    def parting(self, prefix: int, depth: int) -> int:
        """The first of ``depth`` blocks whose rows do not lie within a prefix of so many tokens that all prompts share.

        From there on, prompts share only what comes before the replaced rows.
        """
        own = [i for i, rows in self.rows.items() if rows.dim() == 3 or self.first + rows.shape[-2] > prefix]
        return min(own, default=depth)

    def end(self) -> int:
        """Position after the last replaced row."""
        return self.first + max((rows.shape[-2] for rows in self.rows.values()), default=0)

    def of(self, classes: slice | Tensor) -> DeepRows:
        """The rows of some classes, in that order."""
        return replace(self, rows={i: rows[classes] if rows.dim() == 3 else rows for i, rows in self.rows.items()})

    def into(self, number: int, x: Tensor) -> Tensor:
        """The input ``x`` (N, L, W) of a block with its rows in place."""
        rows = self.rows.get(number)
        if rows is None:
            return x
        replacing = rows.to(x.dtype).expand(len(x), -1, -1)
        return torch.cat([x[:, : self.first], replacing, x[:, self.first + rows.shape[-2] :]], dim=1)

    @contextmanager
    def inside(self, transformer: Any) -> Iterator[None]:
        """A context in which open_clip's ``transformer`` puts the rows of N prompts into its own blocks' inputs."""

        def enter(number: int, block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x, *rest = inputs
            if getattr(transformer, "batch_first", True):
                return self.into(number, x), *rest
            return self.into(number, x.transpose(0, 1)).transpose(0, 1), *rest

        with ExitStack() as stack:
            for number in self.rows:
                handle = transformer.resblocks[number].register_forward_pre_hook(partial(enter, number))
                stack.callback(handle.remove)
            yield


def insert_rows(x: Tensor, rows: Tensor, packed: Pack, at: int) -> Tensor:
    """Packed rows ``x`` (B or 1, R, W) with ``rows`` (n, W), or (K, n, W), in place of each suffix's from ``at`` on."""
    replacing = rows[packed.classes] if rows.dim() == 3 else rows.expand(len(packed.classes), -1, -1)
    owns = replacing.to(x.dtype).split([rectangle.count for rectangle in packed.rectangles])
    parts = []
    for tokens, new in zip(_tokens(x, packed), owns, strict=True):
        new = new.expand(len(x), -1, -1, -1)
        parts.append(torch.cat([tokens[:, :, :at], new, tokens[:, :, at + new.shape[2] :]], dim=2).flatten(1, 2))
    return torch.cat(parts, dim=1)


def prepend_rows(x: Tensor, rows: Tensor, packed: Pack) -> tuple[Tensor, Pack]:
    """Packed rows in which every suffix begins with ``rows`` (B, m, W) too, and their pack."""
    if not (more := rows.shape[1]):
        return x, packed
    parts = []
    for tokens, rectangle in zip(_tokens(x, packed), packed.rectangles, strict=True):
        before = rows[:, None].expand(-1, rectangle.count, -1, -1)
        parts.append(torch.cat([before, tokens.expand(len(rows), -1, -1, -1)], dim=2).flatten(1, 2))
    longer = [
        Rectangle(one.count, one.length + more, one.visible if one.visible is None else _seen(one.visible, more))
        for one in packed.rectangles
    ]
    ends = packed.ends + more * torch.arange(1, len(packed.ends) + 1, device=x.device)
    return torch.cat(parts, dim=1), replace(packed, ends=ends, rectangles=tuple(longer))


def _tokens(x: Tensor, packed: Pack) -> list[Tensor]:
    """The rows of each rectangle, (B or 1, count, length, W)."""
    parts = zip(x.split(packed.sizes, dim=1), packed.rectangles, strict=True)
    return [rows.unflatten(1, (rectangle.count, rectangle.length)) for rows, rectangle in parts]


def _seen(visible: Tensor, more: int) -> Tensor:
    """A rectangle's `visible`, preceded by so many visible tokens."""
    return nn.functional.pad(visible, (more, 0), value=True)


def share_prefixes(prompts: Sequence[tuple[int, ...]], overhead: int) -> list[tuple[int, list[int]]]:
    """Group prompts so that computing each group's common prefix once leaves few rows in total.

    Args:
        prompts: token ids, each up to and including its end token.
        overhead: cost of another group in rows: it needs its own pass through the layers.

    Returns:
        (P, members) per group: the first P tokens of these prompts are equal, and each prompt has more than P.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    return _share(prompts, order, overhead)[0] if order else []


def _share(
    prompts: Sequence[tuple[int, ...]], members: list[int], overhead: int
) -> tuple[list[tuple[int, list[int]]], int]:
    """Groups for `members`, in lexicographic order, and their cost in rows.

    Members that continue with the same token are split off if that costs less than leaving them together.
    """
    shared = _common_prefix(prompts[members[0]], prompts[members[-1]])
    groups: list[tuple[int, list[int]]] = []
    rest: list[int] = []
    cost = 0
    for _, run in groupby(members, key=lambda i: prompts[i][shared]):
        part = list(run)
        together = sum(len(prompts[i]) - shared for i in part)
        if 1 < len(part) < len(members):
            split, split_cost = _share(prompts, part, overhead)
            if split_cost < together:
                groups += split
                cost += split_cost
                continue
        rest += part
        cost += together
    if rest:
        groups.append((shared, rest))
        cost += shared + overhead
    return groups, cost


def _common_prefix(first: tuple[int, ...], last: tuple[int, ...]) -> int:
    """Number of tokens that two prompts, and all between them in order, share; each keeps at least its last one."""
    longest = min(len(first), len(last)) - 1
    return next((i for i in range(longest) if first[i] != last[i]), longest)


# --- one layer --------------------------------------------------------------------------------------------------------


def is_plain(block: nn.Module) -> bool:
    """Whether the functions below compute what `block` would.

    That needs open_clip's own block and torch's own attention, or one that offers `project`, and no hooks but those
    that add what they compute beside the block (`beside`).
    """
    from open_clip.transformer import ResidualAttentionBlock

    if not isinstance(block, ResidualAttentionBlock) or type(block).forward is not ResidualAttentionBlock.forward:
        return False
    attention = block.attn
    if attention._forward_hooks or any(module._forward_pre_hooks for module in (block, attention)):
        return False
    if len(_beside(block)) < len(block._forward_hooks):
        return False
    if callable(getattr(attention, "project", None)):
        return True
    if type(attention).forward is not nn.MultiheadAttention.forward:
        return False
    return attention._qkv_same_embed_dim and attention.dropout == 0 and attention.bias_k is None


def project(attention: nn.Module, x: Tensor, parts: str) -> tuple[Tensor, ...]:
    """Queries, keys and values (..., W) of rows `x` (..., W): those that `parts` ("q", "kv", "qkv") names.

    A module that replaces the attention, such as LoRA's, provides this as a method: `project(x, parts)`.
    """
    if callable(custom := getattr(attention, "project", None)):
        return custom(x, parts)
    assert isinstance(attention, nn.MultiheadAttention)
    first, last = (third * attention.embed_dim for third in _PARTS[parts])
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias[first:last]
    return linear(x, attention.in_proj_weight[first:last], bias).chunk(len(parts), dim=-1)


def prefix_layer(block: ResidualAttentionBlock, x: Tensor) -> tuple[Tensor, KeysValues]:
    """The prefix's states (B, P, W) after the layer, and its keys and values in it."""
    q, k, v = (_heads(rows, block) for rows in project(block.attn, block.ln_1(x), "qkv"))
    attended = scaled_dot_product_attention(q, k, v, is_causal=True)
    return _residuals(block, x, attended.transpose(1, 2).flatten(2)), (k, v)


def prefix_keys_values(block: ResidualAttentionBlock, x: Tensor) -> KeysValues:
    """Keys and values only: all that the last layer needs of the prefix."""
    k, v = (_heads(rows, block) for rows in project(block.attn, block.ln_1(x), "kv"))
    return k, v


def suffix_layer(block: ResidualAttentionBlock, x: Tensor, prefix: KeysValues | None, packed: Pack) -> Tensor:
    """The states (B, R, W) of packed rows `x` (B or 1, R, W) after the layer."""
    parts = [rows.split(packed.sizes, dim=1) for rows in project(block.attn, block.ln_1(x), "qkv")]
    attended = [
        _attend(block, q, k, v, prefix, rectangle.count, _causal_mask(prefix, rectangle, x.device))
        for q, k, v, rectangle in zip(*parts, packed.rectangles, strict=True)
    ]
    return _residuals(block, x, torch.cat(attended, dim=1))


def last_layer(block: ResidualAttentionBlock, x: Tensor, prefix: KeysValues | None, packed: Pack) -> Tensor:
    """The states (B, n, W) of the end tokens after the last layer.

    The other tokens only serve as keys and values there, so their queries and all later steps are skipped.
    """
    normed = block.ln_1(x)
    (q,) = project(block.attn, normed[:, packed.ends], "q")
    queries = q.split([rectangle.count for rectangle in packed.rectangles], dim=1)
    parts = [rows.split(packed.sizes, dim=1) for rows in project(block.attn, normed, "kv")]
    attended = [
        _attend(block, q, k, v, prefix, rectangle.count, _end_mask(prefix, rectangle))
        for q, k, v, rectangle in zip(queries, *parts, packed.rectangles, strict=True)
    ]
    return _residuals(block, x[:, packed.ends], torch.cat(attended, dim=1))


def _attend(
    block: ResidualAttentionBlock,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: KeysValues | None,
    count: int,
    mask: Tensor | None,
) -> Tensor:
    """Attention of `count` suffixes to the prefix and to their own tokens.

    Shapes: q (b, count * L', W) with L' = length or 1; k and v (b, count * length, W); the result (B, count * L', W).
        b is B, or 1 where all images have the same rows.
    """
    heads = block.attn.num_heads
    q, k, v = (rows.unflatten(1, (count, -1)).unflatten(-1, (heads, -1)).transpose(2, 3) for rows in (q, k, v))
    if prefix is not None:
        images = prefix[0].shape[0]
        shared = (rows[:, None].expand(-1, count, -1, -1, -1) for rows in prefix)
        k, v = (
            torch.cat([s, rows.expand(images, -1, -1, -1, -1)], dim=3) for s, rows in zip(shared, (k, v), strict=True)
        )
        q = q.expand(images, -1, -1, -1, -1)
    if mask is not None and mask.dim() == 4:  # one per suffix, the same for every image
        mask = mask.repeat(q.shape[0], 1, 1, 1)
    # The fused kernels take four dimensions, so images and suffixes are merged into one.
    out = scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=mask)
    return out.transpose(1, 2).reshape(q.shape[0], -1, q.shape[2] * q.shape[4])


def _causal_mask(prefix: KeysValues | None, rectangle: Rectangle, device: torch.device) -> Tensor:
    """(length, P + length) bool: the whole prefix, and the tokens up to and including the query's."""
    shared = 0 if prefix is None else prefix[0].shape[2]
    allowed = torch.ones(rectangle.length, shared + rectangle.length, dtype=torch.bool, device=device)
    return allowed.tril_(shared)


def _end_mask(prefix: KeysValues | None, rectangle: Rectangle) -> Tensor | None:
    """(count, 1, 1, P + length) bool: what each end token attends to; None if that is everything."""
    if rectangle.visible is None:
        return None
    shared = 0 if prefix is None else prefix[0].shape[2]
    return _seen(rectangle.visible, shared)[:, None, None]


def _heads(rows: Tensor, block: ResidualAttentionBlock) -> Tensor:
    """(B, P, W) -> (B, H, P, E)"""
    return rows.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2)


def _residuals(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    besides = [hook.beside(block, x) for hook in _beside(block)]
    x = x + block.ls_1(block.attn.out_proj(attended))
    return sum(besides, x + block.ls_2(block.mlp(block.ln_2(x))))


def _beside(block: nn.Module) -> list[Any]:
    """A block's hooks that add something to each token: ``beside(block, x)`` (..., W) for its input (..., W)."""
    return [hook for hook in block._forward_hooks.values() if hasattr(hook, "beside")]
