"""Learned prompts: n context vectors beside the name of each class, and the head that learns them.

    end      [start] [context] [name] [.] [end]
    middle   [start] [context, first n // 2] [name] [rest of the context] [.] [end]
    front    [start] [name] [context] [.] [end]

`lay_out` decides where every token stands; `PromptLearner` holds the context and turns it into class features.

Shapes: B images, K classes, n context vectors, W width of the text encoder, D width of the features, S tokens behind
the context for the longest name: name, ".", end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dassl_lite.models.heads import CosineHead
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger

if TYPE_CHECKING:
    from dassl_lite.models.clip import CLIPBackbone

logger = get_logger(__name__)

POSITIONS = ("end", "middle", "front")
STD = 0.02  # of context vectors that start from random numbers


@dataclass(frozen=True)
class PromptLayout:
    """The fixed tokens of K prompts, and where the context goes.

    Attributes:
        n_ctx: n.
        start: (1,) id of the start token.
        words: (n,) ids of the words that the context starts from; None if it starts from random numbers.
        behind: (K, S) ids behind the context when the name stands at the end.
        shared: how many context vectors open every prompt; the others stand among the rows that differ by class.
        lengths: K numbers: rows that differ by class, up to the end token.
        order: (K, n - shared + S) positions in [context vectors not shared, behind], in prompt order; None if all
            vectors are shared.
        node: name of the config node with N_CTX, CTX_INIT and CSC, for messages.
    """

    n_ctx: int
    start: Tensor
    words: Tensor | None
    behind: Tensor
    shared: int
    lengths: tuple[int, ...]
    order: Tensor | None
    node: str = ""


def lay_out(
    clip: CLIPBackbone,
    classnames: Sequence[str],
    n_ctx: int,
    words: str = "",
    *,
    position: str = "end",
    class_specific: bool = False,
    node: str = "",
) -> PromptLayout:
    """Lay out the prompts of K classes; ``_`` in class names and words stands for a space.

    Args:
        n_ctx: n, unless there are words.
        words: what the context starts from. As in the reference, n is the number of words, not of tokens: if a word
            has several tokens, the last ones stay fixed behind the context.
        position: of the name: end, middle or front.
        class_specific: every class has its own context, so no vector is shared.
        node: name of the config node with N_CTX and CTX_INIT, for messages.

    Raises:
        UserError: the longest prompt has more tokens than the text encoder takes.
    """
    clip.text.require_prompts()
    names = [name.replace("_", " ") for name in classnames]
    words = " ".join(words.replace("_", " ").split())
    n_ctx = len(words.split()) or n_ctx
    context = len(clip.tokenizer.encode(words)) if words else n_ctx
    key = f"CTX_INIT '{shorten(words, 60)}'" if words else f"N_CTX {n_ctx}"
    _require_room(clip, names, context, f"{node}.{key}" if node else key)
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
            _name_inside(before - shared, n_ctx - shared, fixed, length, behind.shape[1])
            for length in (len(clip.tokenizer.encode(name)) for name in names)
        ]
        order = torch.tensor(rows)
    lengths = tuple(count + n_ctx - shared for count in counts)
    word_ids = tokens[0, 1:first] if words else None
    logger.info(f'Initial context: "{words or " ".join("X" * n_ctx)}"')
    logger.info(f"Number of context words (tokens): {n_ctx}")
    return PromptLayout(n_ctx, tokens[0, :1], word_ids, behind, shared, lengths, order, node)


def _name_inside(before: int, context: int, fixed: int, name: int, behind: int) -> list[int]:
    """Positions in [``context`` vectors, ``fixed`` tokens of their words, ``name`` tokens, the rest] that put the name
    behind the first ``before`` vectors."""
    start = context + fixed
    named, rest = range(start, start + name), range(start + name, context + behind)
    return [*range(before), *named, *range(before, start), *rest]


def _require_room(clip: CLIPBackbone, names: Sequence[str], context: int, setting: str) -> None:
    """Raise a UserError if start, ``context`` tokens, the longest name, "." and end do not fit."""
    counts = [len(clip.tokenizer.encode(f"{name}.")) for name in names]
    longest = max(range(len(names)), key=counts.__getitem__)
    room = clip.text.context_length - 2 - counts[longest]
    if context > room:
        remedy = f"use a context of at most {room} tokens" if room > 0 else "shorten that name"
        raise UserError(
            f"{setting} does not fit: with the class name '{names[longest]}' a prompt has "
            f"{counts[longest] + context + 2} tokens where {clip.text.context_length} fit; {remedy}"
        )


class PromptLearner(CosineHead):
    """Cosine logits against the text features of prompts with a learned context.

    The state is the context alone, in float32 whatever the precision of the text encoder. The text encoder belongs to
    ``clip`` and is not part of the module; embeddings of class names are computed for the classes at hand, not saved.

    Args:
        clip: provides the text encoder.
        layout: the prompts.
        class_specific: one context per class, ``ctx`` (K, n, W) instead of (n, W).
        chunk: classes that go through the text encoder at a time; 0 chooses by memory.
        checkpoint: recompute activations in the backward pass to save memory.
    """

    class_rows: tuple[str, ...]
    class_rows_required: bool
    through_encoder = True  # gradients run through an encoder in the run's precision
    token_prefix: Tensor
    token_suffix: Tensor
    order: Tensor | None

    def __init__(
        self,
        clip: CLIPBackbone,
        layout: PromptLayout,
        *,
        class_specific: bool = False,
        chunk: int = 0,
        checkpoint: bool = False,
    ) -> None:
        super().__init__(clip.logit_scale.detach().float().exp())
        classes = (len(layout.behind),) if class_specific else ()
        ctx = torch.empty(*classes, layout.n_ctx, clip.text.width).normal_(std=STD)
        with torch.no_grad():
            if layout.words is not None:
                ctx.copy_(clip.text.embed(layout.words))
            self.register_buffer("token_prefix", clip.text.embed(layout.start), persistent=False)
            self.register_buffer("token_suffix", clip.text.embed(layout.behind), persistent=False)
        self.ctx = nn.Parameter(ctx)
        self.register_buffer("order", layout.order, persistent=False)
        self.class_rows = ("ctx",) if class_specific else ()
        self.class_rows_required = class_specific  # random vectors of a class that was never trained mean nothing
        self.layout, self.class_specific = layout, class_specific
        self._text, self.chunk, self.checkpoint = clip.text, chunk, checkpoint

    def encode(self, context: Tensor) -> Tensor:
        """Text features, not normalised, of the prompts with ``context`` in them.

        Args:
            context: (n, W) or, if class-specific, (K, n, W). With the name at the end also (B, n, W): one context per
                image.

        Returns:
            (K, D); for one context per image (B, K, D).
        """
        shared = self.layout.shared
        prefix, suffix, own = self.token_prefix, self.token_suffix, context[..., shared:, :]
        if shared:
            start = prefix.expand(*context.shape[:-2], -1, -1)
            prefix = torch.cat([start, context[..., :shared, :]], dim=-2)
        if self.order is not None:
            rows = torch.cat([own.expand(len(suffix), -1, -1), suffix], dim=1)
            suffix = rows[torch.arange(len(rows), device=rows.device)[:, None], self.order]
        return self._text.encode_prompts(
            prefix, suffix, self.layout.lengths, chunk=self.chunk, checkpoint=self.checkpoint
        )

    def class_prototypes(self) -> Tensor:
        return self.encode(self.ctx)

    def step_cost(self, batch_size: int) -> int:
        """Multiplications of the widest product in the text encoder: a step is many products, each parallel."""
        rows, width = 1 + self.layout.shared + sum(self.layout.lengths), self._text.width
        return rows * width * 4 * width

    def prepare_to_load(self, weights: Mapping[str, Tensor], meta: Mapping[str, Any], path: Path) -> None:
        """Refuse a context of another shape: (n, W), or (K, n, W) with one per class.

        Raises:
            UserError: says which key differs and how it was set.
        """
        saved, own, node = weights.get("ctx"), self.ctx, self.layout.node
        if saved is None or saved.dim() not in (2, 3):
            return  # not a prompt learner's file: loading reports it
        if saved.dim() != own.dim():
            kinds = {2: "one context for all classes", 3: "a context for each class"}
            found, wanted = kinds[saved.dim()], kinds[own.dim()]
            remedy = f"set {node}.CSC to {saved.dim() == 3}"
        elif saved.shape[-2] != own.shape[-2]:
            found, wanted = f"a context of {saved.shape[-2]} vectors", f"one of {own.shape[-2]}"
            remedy = f"set {node}.N_CTX to {saved.shape[-2]}, or {node}.CTX_INIT to that many words"
        elif saved.shape[-1] != own.shape[-1]:
            found = f"context vectors of width {saved.shape[-1]}"
            wanted = f"a text encoder of width {own.shape[-1]}"
            remedy = "choose the backbone that it was trained with (MODEL.BACKBONE.NAME)"
        else:
            return
        raise UserError(f"{path} holds {found}, but this run has {wanted}; {remedy}")
