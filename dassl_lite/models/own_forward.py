"""Text encoders unlike CLIP's, run by their own forward: from ids, or with given embeddings.

An encoder that is not causal sees a prompt's padding; others read the last token or a special one, or average
all. So a learned prompt goes through the whole encoder as a row of L embeddings with its padding. The ids of the
row are passed too: the encoder needs them to find padding and end, for its masks, positions and pooling.

Shapes: B images, K classes, N texts, L tokens, P and S tokens of prefix and suffix, W width of the encoder, D width of
the features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from dassl_lite.models.text_layers import DeepRows
from dassl_lite.utils.errors import UserError


@dataclass(frozen=True)
class RowsOfPrompts:
    """Learned prompts with their padding.

    Attributes:
        prefix: (B, P, W), the first embeddings of every prompt of an image.
        suffix: (K, S, W), those that follow.
        lengths: K numbers: embeddings of each suffix up to and including its end token.
        tokens: (K, L) ids of the rows, with any ordinary id for what is learned.
        embedded: (K, L, W), their embeddings; only those from the padding on are used.
        deep: rows that replace others in the blocks' inputs.
    """

    prefix: Tensor
    suffix: Tensor
    lengths: tuple[int, ...]
    tokens: Tensor
    embedded: Tensor
    deep: DeepRows

    def __len__(self) -> int:
        """B * K."""
        return len(self.prefix) * len(self.suffix)

    def of(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (n, L) and embeddings (n, L, W) of the prompts with these indices (n,), counted image by image."""
        image, class_ = numbers // len(self.suffix), numbers % len(self.suffix)
        length = self.tokens.shape[1]
        rows = torch.cat([self.prefix[image], self.suffix[class_]], dim=1)[:, :length]
        rows = nn.functional.pad(rows, (0, 0, 0, length - rows.shape[1]))
        ends = self.prefix.shape[1] + on_device(self.lengths, rows.device)
        inside = torch.arange(length, device=rows.device) < ends[class_, None]
        around = self.embedded[class_]
        return self.tokens[class_], torch.where(inside[..., None], rows.to(around), around)


class OwnForward:
    """A text encoder's own `encode_text`.

    Args:
        model: open_clip's model; its modules are read at each call, so replacing one takes effect.
    """

    def __init__(self, model: Any) -> None:
        custom = getattr(model, "text", None)
        self.model, self._text = model, model if custom is None else custom

    @property
    def embedding(self) -> Any:
        """The module that looks token embeddings up. Raises UserError if there is none."""
        own = getattr(self._text, "token_embedding", None)
        if own is not None:
            return own
        inner = getattr(self._text, "transformer", None)
        if inner is None or not hasattr(inner, "get_input_embeddings"):
            raise UserError("this backbone's text encoder shows no token embedding, so it cannot take learned prompts")
        return inner.get_input_embeddings()

    @property
    def projection(self) -> Any:
        """The last linear step: a matrix (W, D), a linear layer, or None."""
        if not hasattr(self._text, "proj"):
            return self._text.text_projection
        last = self._text.proj[-1] if isinstance(self._text.proj, nn.Sequential) else self._text.proj
        return None if isinstance(last, nn.Identity) else last

    def encode_tokens(self, tokens: Tensor, project: bool, chunk: int, checkpoint: bool) -> Tensor:
        """Features (N, D), or states (N, W) before the projection, of ids (N, L), `chunk` texts at a time."""
        return torch.cat([run(checkpoint, self._encode, part, None, project) for part in tokens.split(chunk)])

    def encode_rows(self, prompts: RowsOfPrompts, project: bool, chunk: int, checkpoint: bool) -> Tensor:
        """Features (B, K, D), or states (B, K, W), of learned prompts, `chunk` at a time."""

        def encode(numbers: Tensor) -> Tensor:
            deep = prompts.deep.of(numbers % len(prompts.suffix))
            with deep.inside(self._text.transformer) if deep.rows else nullcontext():
                return self._encode(*prompts.of(numbers), project)

        parts = torch.arange(len(prompts), device=prompts.tokens.device).split(chunk)
        features = torch.cat([run(checkpoint, encode, numbers) for numbers in parts])
        return features.unflatten(0, (len(prompts.prefix), len(prompts.suffix)))

    def _encode(self, tokens: Tensor, rows: Tensor | None, project: bool) -> Tensor:
        """Features (N, D), or states (N, W), of ids (N, L), with `rows` (N, L, W) in place of their embeddings."""
        with ExitStack() as changes:
            if rows is not None:
                changes.enter_context(self._embedding_gives(rows))
            if project:
                return self.model.encode_text(tokens)
            changes.enter_context(self._without_projection())
            states = self.model.encode_text(tokens) if self._text is self.model else self._text(tokens)
            return states[0] if isinstance(states, tuple) else states

    @contextmanager
    def _embedding_gives(self, rows: Tensor) -> Iterator[None]:
        """A context in which the token embedding returns `rows` (N, L, W), whatever the ids."""

        def replace(module: nn.Module, given: Any, embedded: Tensor) -> Tensor:
            assert embedded.shape == rows.shape, (embedded.shape, rows.shape)
            return rows.to(embedded.dtype)

        handle = self.embedding.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _without_projection(self) -> Iterator[None]:
        """A context in which the encoder stops before its last linear step."""
        name = "proj" if hasattr(self._text, "proj") else "text_projection"
        own = getattr(self._text, name)
        before = own[:-1] if isinstance(own, nn.Sequential) else nn.Identity() if name == "proj" else None
        setattr(self._text, name, before)
        try:
            yield
        finally:
            setattr(self._text, name, own)


@lru_cache(maxsize=64)  # a prompt learner asks for the same ones at every step
@torch.inference_mode(False)
def on_device(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """The numbers as a tensor."""
    return torch.tensor(numbers, device=device)


def run(checkpoint: bool, compute: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """``compute(*inputs)``; with ``checkpoint``, its activations are recomputed in the backward pass."""
    if checkpoint and torch.is_grad_enabled():
        return recompute(compute, *inputs, use_reentrant=False)
    return compute(*inputs)
