"""Learned context vectors, in the prompts of all classes.

Shapes: B images, K classes, n context vectors, W width of the text encoder, D width of the features, S tokens behind
the context, see `prompt_layout`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dassl_lite.models.prompt_layout import PromptLayout

if TYPE_CHECKING:
    from dassl_lite.models.clip import CLIPBackbone

STD = 0.02  # of drawn context vectors


class PromptLearner(nn.Module):
    """A learned context and the fixed tokens around it; a head derives from it and adds ``forward``.

    The state is what is learned, in float32 whatever the text encoder computes in. The text encoder belongs to
    ``clip`` and is no part of the module; embeddings of names are computed for the classes at hand, not saved.

    Args:
        clip: gives the text encoder.
        layout: the prompts.
        class_specific: a context of its own for each class, ``ctx`` (K, n, W), not (n, W).
        chunk: classes that the text encoder takes in one go; 0 chooses by memory.
        checkpoint: compute activations again in the backward pass, to save memory.
    """

    token_prefix: Tensor
    token_suffix: Tensor
    order: Tensor | None
    scale: Tensor

    def __init__(
        self,
        clip: CLIPBackbone,
        layout: PromptLayout,
        *,
        class_specific: bool = False,
        chunk: int = 0,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        classes = (len(layout.behind),) if class_specific else ()
        ctx = torch.empty(*classes, layout.n_ctx, clip.text.width).normal_(std=STD)
        with torch.no_grad():
            if layout.words is not None:
                ctx.copy_(clip.text.embed(layout.words))
            self.register_buffer("token_prefix", clip.text.embed(layout.start), persistent=False)
            self.register_buffer("token_suffix", clip.text.embed(layout.behind), persistent=False)
        self.ctx = nn.Parameter(ctx)
        self.register_buffer("order", layout.order, persistent=False)
        self.register_buffer("scale", clip.logit_scale.detach().float().exp(), persistent=False)
        self.class_rows = ("ctx",) if class_specific else ()
        self.layout, self.class_specific = layout, class_specific
        self._text, self.chunk, self.checkpoint = clip.text, chunk, checkpoint
        self._fixed = False
        self._kept: Tensor | None = None

    def encode(self, context: Tensor) -> Tensor:
        """Text features, not normalised, of the prompts with ``context`` in them.

        Args:
            context: (n, W) or, where it is class-specific, (K, n, W). With the name at the end also (B, n, W): a
                context for each image.

        Returns:
            (K, D); for a context per image (B, K, D).
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

    def class_features(self) -> Tensor:
        """Text features (K, D) in float32, not normalised, of ``ctx``; within ``fixed``, computed at first use."""
        if self._kept is not None:
            return self._kept
        features = self.encode(self.ctx).float()
        self._kept = features if self._fixed else None
        return features

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Within it nothing is learned: the class features are computed once, for however many batches."""
        self._fixed = True
        try:
            yield
        finally:
            self._fixed, self._kept = False, None
