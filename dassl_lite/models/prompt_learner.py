"""Learned prompts: n context vectors beside the name of each class, and the head that learns them.

    end      [start] [context] [name] [.] [end]
    middle   [start] [context, first n // 2] [name] [rest of the context] [.] [end]
    front    [start] [name] [context] [.] [end]

[start] and [end] are the special tokens that the backbone's tokenizer puts before and after a text: CLIP's has one of
each, SigLIP's no start.

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
STD = 0.02  # standard deviation of randomly initialised context vectors


@dataclass(frozen=True)
class PromptLayout:
    """The fixed tokens of K prompts, and where the context goes.

    Attributes:
        n_ctx: n.
        start: (1,) id of the start token; (0,) for a tokenizer without one.
        words: (k,) ids that the last k context vectors start from, those before them from 0; None if all start from
            random numbers.
        behind: (K, S) ids behind the context when the name stands at the end.
        shared: how many context vectors open every prompt; the others stand among the rows that differ by class.
        lengths: K numbers: rows that differ by class, up to the end token.
        order: (K, n - shared + S) positions in [context vectors not shared, behind], in prompt order; None if all
            vectors are shared.
        rows: (K, L) ids of the whole rows, padding included, in prompt order; for text encoders that see padding. Where
            the context is, its words, or an ordinary id if it starts from random numbers.
        node: name of the config node with N_CTX, CTX_INIT and CSC, for messages.
        number: name of its key N_CTX.
    """

    n_ctx: int
    start: Tensor
    words: Tensor | None
    behind: Tensor
    shared: int
    lengths: tuple[int, ...]
    order: Tensor | None
    rows: Tensor
    node: str = ""
    number: str = "N_CTX"


def lay_out(
    clip: CLIPBackbone,
    classnames: Sequence[str],
    n_ctx: int,
    words: str = "",
    *,
    position: str = "end",
    class_specific: bool = False,
    fill: bool = False,
    most: int = 0,
    tail: str = "{}.",
    node: str = "",
    number: str = "N_CTX",
) -> PromptLayout:
    """Lay out the prompts of K classes; ``_`` in class names and words stands for a space.

    Args:
        n_ctx: n, unless there are words.
        words: what the context starts from. As in the reference, n is the number of words, not of tokens: if a word
            has several tokens, the last ones stay fixed behind the context.
        position: where the name stands: end, middle or front.
        class_specific: every class has its own context, so no vector is shared.
        fill: there are ``n_ctx`` vectors whatever the words, and all tokens of the words initialise the last ones.
        most: n, where it is not the number of words: that many of the words' first tokens are learned.
        tail: what follows the context, with {} for the name; another than the default only if that is at the end.
        node, number: names of the config node with N_CTX and CTX_INIT, and of its key N_CTX, for messages.

    Raises:
        UserError: the longest prompt has more tokens than the text encoder takes, the context has fewer vectors than
            it is filled with, or the words have fewer tokens than are learned.
    """
    tokenizer = clip.tokenizer
    names = [name.replace("_", " ") for name in classnames]
    words = " ".join(words.replace("_", " ").split())
    if words and not fill:
        n_ctx = most or len(words.split())
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]  # context vectors before the name
    ordinary = _ordinary_id(clip)  # placeholder where the context starts from random numbers
    learned = tokenizer.encode(words, after_word=not before) if words else []
    setting = f"{node}." * bool(node) + (
        f"CTX_INIT '{shorten(words, 60)}'" if words and not fill else f"{number} {n_ctx}"
    )
    if fill and len(learned) > n_ctx:
        remedy = f"set it to {len(learned)} or more"
        raise UserError(f"{setting} is too few for the {len(learned)} tokens of '{shorten(words, 60)}'; {remedy}")
    context = [ordinary] * (n_ctx - len(learned)) + learned if fill or not words else learned
    if len(context) < n_ctx:
        what = f"is to start {n_ctx} vectors, but has" if most else f"has {n_ctx} words, but"
        raise UserError(f"{setting} {what} for this backbone's tokenizer only {len(context)} tokens")
    texts = [_behind(clip, tail.replace("{}", name), words, learned, before) for name in names]
    _require_room(clip, names, texts, len(context), setting)
    rows = torch.tensor([tokenizer.row([*context, *text]) for text in texts])
    start = rows[0, : len(tokenizer.prefix_ids)]
    first = len(start) + n_ctx  # of the tokens behind the context
    if clip.text.is_causal:
        counts = (clip.text.ends(rows) + 1 - first).tolist()
    else:
        counts = [len(context) - n_ctx + len(text) + len(tokenizer.suffix_ids) for text in texts]
    behind = rows[:, first : first + max(counts)].clone()
    shared = 0 if class_specific else before
    order = None
    if shared < n_ctx and position == "end":
        order = torch.arange(n_ctx + behind.shape[1]).expand(len(names), -1)
    elif shared < n_ctx:
        sizes = before - shared, n_ctx - shared, len(context) - n_ctx
        named = [len(tokenizer.encode(name, after_word=before > 0)) for name in names]
        order = torch.tensor([_name_inside(*sizes, length, behind.shape[1]) for length in named])
    lengths = tuple(count + n_ctx - shared for count in counts)
    drawn = torch.tensor(context[:n_ctx])
    prefix, suffix = _arrange(start[:, None], drawn[:, None], behind[..., None], shared, order)
    for row, rest, length in zip(rows, suffix[..., 0], lengths, strict=True):
        row[: len(prefix) + length] = torch.cat([prefix[:, 0], rest[:length]])
    unnamed = n_ctx - len(learned) if fill or not words else 0
    logger.info(f'Initial context: "{" ".join(["X"] * unnamed + words.split())}"')
    logger.info(f"Number of context words (tokens): {n_ctx}")
    starts = torch.tensor(learned[:n_ctx]) if words else None
    return PromptLayout(n_ctx, start, starts, behind, shared, lengths, order, rows, node, number)


def _ordinary_id(clip: CLIPBackbone) -> int:
    """The smallest id without a special meaning to the tokenizer or the text encoder."""
    tokenizer = clip.tokenizer
    framing = {*tokenizer.prefix_ids, *tokenizer.suffix_ids, *tokenizer.final_ids, tokenizer.pad_id}
    special = framing | clip.text.special_ids
    return next(i for i in range(len(special) + 1) if i not in special)


def _behind(clip: CLIPBackbone, text: str, words: str, learned: list[int], before: int) -> list[int]:
    """The ids of "name." as a tokenizer writes them where the name stands: behind the words, whose ids are ``learned``,
    or in front."""
    if words and before:
        ids = clip.tokenizer.encode(f"{words} {text}")
        if ids[: len(learned)] == learned:
            return ids[len(learned) :]
    return clip.tokenizer.encode(text, after_word=before > 0)


def _arrange(
    start: Tensor, context: Tensor, behind: Tensor, shared: int, order: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The prompts' common beginning and each class's remaining rows, in prompt order.

    Args:
        start: (1, W), or (0, W) without a start token.
        context: (n, W), (K, n, W) if each class has its own, or (B, n, W) if each image has.
        behind: (K, S, W).
        shared, order: as in `PromptLayout`.

    Returns:
        (P, W) or (B, P, W), and (K, S', W); rows beyond a class's length are meaningless.
    """
    prefix, own = start, context[..., shared:, :]
    if shared:
        prefix = torch.cat([start.expand(*context.shape[:-2], -1, -1), context[..., :shared, :]], dim=-2)
    if order is None:
        return prefix, behind
    rows = torch.cat([own.expand(len(behind), -1, -1), behind], dim=1)
    return prefix, rows[torch.arange(len(rows), device=rows.device)[:, None], order]


def _name_inside(before: int, context: int, fixed: int, name: int, behind: int) -> list[int]:
    """Positions in [``context`` vectors, ``fixed`` tokens of their words, ``name`` tokens, the rest] that put the name
    behind the first ``before`` vectors."""
    start = context + fixed
    named, rest = range(start, start + name), range(start + name, context + behind)
    return [*range(before), *named, *range(before, start), *rest]


def _require_room(
    clip: CLIPBackbone, names: Sequence[str], texts: Sequence[Sequence[int]], context: int, setting: str
) -> None:
    """Raise a UserError if special tokens, ``context`` tokens and the longest of the texts, "name.", do not fit."""
    tokenizer = clip.tokenizer
    counts = [len(text) for text in texts]
    longest = max(range(len(names)), key=counts.__getitem__)
    special = len(tokenizer.prefix_ids) + len(tokenizer.suffix_ids) + len(tokenizer.final_ids)
    room = tokenizer.context_length - special - counts[longest]
    if context > room:
        remedy = f"use a context of at most {room} tokens" if room > 0 else "shorten that name"
        raise UserError(
            f"{setting} does not fit: with the class name '{names[longest]}' a prompt has "
            f"{counts[longest] + context + special} tokens where {tokenizer.context_length} fit; {remedy}"
        )


class PromptLearner(CosineHead):
    """Cosine logits against the text features of prompts with a learned context.

    The state is the context alone, in float32 whatever the precision of the text encoder. The text encoder belongs to
    ``clip`` and is not part of the module; embeddings of class names are recomputed for the current classes, not saved.

    Args:
        clip: provides the text encoder.
        layout: the prompts.
        class_specific: one context per class, ``ctx`` (K, n, W) instead of (n, W).
        chunk: classes that go through the text encoder at a time; 0 chooses by memory.
        checkpoint: recompute activations in the backward pass to save memory.
    """

    class_rows: tuple[str, ...]
    class_rows_required: bool
    through_encoder = True  # gradients pass through the encoder in the run's precision
    token_prefix: Tensor
    token_suffix: Tensor
    token_rows: Tensor
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
                ctx.zero_()
                ctx[..., layout.n_ctx - len(layout.words) :, :] = clip.text.embed(layout.words)
            self.register_buffer("token_prefix", clip.text.embed(layout.start), persistent=False)
            self.register_buffer("token_suffix", clip.text.embed(layout.behind), persistent=False)
        self.ctx = nn.Parameter(ctx)
        self.register_buffer("order", layout.order, persistent=False)
        self.register_buffer("token_rows", layout.rows, persistent=False)
        self.class_rows = ("ctx",) if class_specific else ()
        self.class_rows_required = class_specific  # random vectors of an untrained class mean nothing
        self.layout, self.class_specific = layout, class_specific
        self._text, self.chunk, self.checkpoint = clip.text, chunk, checkpoint

    def encode(self, context: Tensor, deep: Mapping[int, Tensor] | None = None) -> Tensor:
        """Text features, not normalised, of the prompts with ``context`` in them.

        Args:
            context: (n, W) or, if class-specific, (K, n, W). With the name at the end also (B, n, W): one context per
                image.
            deep: block number -> (n, W) or (K, n, W), vectors in place of the context in the input of that block of the
                text encoder, with the name at the end.

        Returns:
            (K, D); for one context per image (B, K, D).
        """
        layout = self.layout
        prefix, suffix = _arrange(self.token_prefix, context, self.token_suffix, layout.shared, self.order)
        return self._text.encode_prompts(
            prefix,
            suffix,
            layout.lengths,
            tokens=self.token_rows,
            deep=deep,
            deep_at=len(layout.start),
            chunk=self.chunk,
            checkpoint=self.checkpoint,
        )

    def class_prototypes(self) -> Tensor:
        return self.encode(self.ctx)

    def step_cost(self, batch_size: int) -> int:
        """Multiplications in the text encoder's widest product: a step consists of many products, each parallel."""
        layout, width = self.layout, self._text.width
        rows = 1 + layout.shared + sum(layout.lengths) if self._text.is_causal else layout.rows.numel()
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
            remedy = f"set {node}.{self.layout.number} to {saved.shape[-2]}, or {node}.CTX_INIT to that many words"
        elif saved.shape[-1] != own.shape[-1]:
            found = f"context vectors of width {saved.shape[-1]}"
            wanted = f"a text encoder of width {own.shape[-1]}"
            remedy = "choose the backbone that it was trained with (MODEL.BACKBONE.NAME)"
        else:
            return
        raise UserError(f"{path} holds {found}, but this run has {wanted}; {remedy}")
