"""Where the tokens of a learned prompt stand: n context vectors beside the name of each class.

    end      [start] [context] [name] [.] [end]
    middle   [start] [context, first n // 2] [name] [context, the others] [.] [end]
    front    [start] [name] [context] [.] [end]

Shapes: K classes, n context vectors, S tokens behind the context, of the longest name: name, ".", end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dassl_lite.utils.errors import UserError

if TYPE_CHECKING:
    from dassl_lite.models.clip import CLIPBackbone

POSITIONS = ("end", "middle", "front")


@dataclass(frozen=True)
class PromptLayout:
    """The fixed tokens of K prompts, and where the context goes.

    Attributes:
        n_ctx: n.
        start: (1,) id of the start token.
        words: (n,) ids of the words that the context starts from; None where it is drawn.
        behind: (K, S) ids behind the context when the name stands at the end.
        shared: how many context vectors stand at the head of every prompt; the others stand among the rows that
            each class has of its own.
        lengths: K numbers of rows of their own, up to the end token.
        order: (K, n - shared + S) places in [context vectors not shared, behind] in the order of the prompt; None
            where all vectors are shared.
    """

    n_ctx: int
    start: Tensor
    words: Tensor | None
    behind: Tensor
    shared: int
    lengths: tuple[int, ...]
    order: Tensor | None


def lay_out(
    clip: CLIPBackbone,
    classnames: Sequence[str],
    n_ctx: int,
    words: str = "",
    *,
    position: str = "end",
    class_specific: bool = False,
    keys: str = "",
) -> PromptLayout:
    """Lay out the prompts of K classes; ``_`` in their names, and in the words, stands for a space.

    Args:
        n_ctx: n, unless there are words.
        words: what the context starts from. As in the reference, n is the number of words, not of tokens: where a
            word has several tokens, the last ones stay fixed behind the context.
        position: of the name: end, middle or front.
        class_specific: every class has a context of its own, so no vector is shared.
        keys: what stands before the names of the config keys N_CTX and CTX_INIT, for messages.

    Raises:
        UserError: the longest prompt has more tokens than the text encoder takes.
    """
    clip.text.require_prompts()
    names = [name.replace("_", " ") for name in classnames]
    words = " ".join(words.replace("_", " ").split())
    n_ctx = len(words.split()) or n_ctx
    context = len(clip.tokenizer.encode(words)) if words else n_ctx
    _check_room(clip, names, context, f"{keys}CTX_INIT '{shorten(words, 60)}'" if words else f"{keys}N_CTX {n_ctx}")
    fixed = context - n_ctx
    tokens = clip.tokenize([f"{words} {name}." for name in names])
    first = 1 + n_ctx if words else 1  # of the tokens behind the context
    counts = (clip.text.ends(tokens) + 1 - first).tolist()
    behind = tokens[:, first : first + max(counts)]
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]  # context vectors before the name
    shared = 0 if class_specific else before
    order = None
    if shared < n_ctx and position == "end":
        order = torch.arange(n_ctx + behind.shape[1]).expand(len(names), -1)
    elif shared < n_ctx:
        rows = [
            _name_first(before - shared, n_ctx - shared, fixed, length, behind.shape[1])
            for length in (len(clip.tokenizer.encode(name)) for name in names)
        ]
        order = torch.tensor(rows)
    lengths = tuple(count + n_ctx - shared for count in counts)
    return PromptLayout(n_ctx, tokens[0, :1], tokens[0, 1:first] if words else None, behind, shared, lengths, order)


def _name_first(before: int, context: int, fixed: int, name: int, behind: int) -> list[int]:
    """Places in [``context`` vectors, ``fixed`` tokens of their words, ``name`` tokens, the rest] with the name
    behind the first ``before`` vectors."""
    start = context + fixed
    named, rest = range(start, start + name), range(start + name, context + behind)
    return [*range(before), *named, *range(before, start), *rest]


def _check_room(clip: CLIPBackbone, names: Sequence[str], context: int, what: str) -> None:
    """Raise a UserError if start, ``context`` tokens, the longest name, "." and end do not fit."""
    counts = [len(clip.tokenizer.encode(f"{name}.")) for name in names]
    longest = max(range(len(names)), key=counts.__getitem__)
    room = clip.text.context_length - 2 - counts[longest]
    if context > room:
        remedy = f"a context of at most {room} tokens does" if room > 0 else "shorten that name"
        raise UserError(
            f"{what} does not fit: with the class name '{names[longest]}' a prompt has {counts[longest] + context + 2} "
            f"tokens where {clip.text.context_length} fit; {remedy}"
        )
