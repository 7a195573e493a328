"""Which tokens of a set of prompts have to be computed at all, and in which order.

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

import torch
from torch import Tensor


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
