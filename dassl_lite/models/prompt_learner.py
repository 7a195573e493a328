"""Learned context vectors, in the prompts of all classes.

Shapes: B images, K classes, n context vectors, W width of the text encoder, D width of the features, S tokens behind
the context, see `prompt_layout`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dassl_lite.models.heads import ClassFeatures
from dassl_lite.models.prompt_layout import PromptLayout
from dassl_lite.utils.errors import UserError

if TYPE_CHECKING:
    from dassl_lite.models.clip import CLIPBackbone

STD = 0.02  # of drawn context vectors


class PromptLearner(ClassFeatures):
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
        self.class_rows_required = class_specific  # drawn vectors of a class that was never trained mean nothing
        self.layout, self.class_specific = layout, class_specific
        self._text, self.chunk, self.checkpoint = clip.text, chunk, checkpoint

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

    def encode_classes(self) -> Tensor:
        return self.encode(self.ctx)


def require_same_context(saved: Tensor | None, own: Tensor, path: Path, name: str) -> None:
    """Refuse a saved context that is of another kind than a run's own: (n, W), or (K, n, W) where each class has one.

    Args:
        name: of the config node with CSC, N_CTX and CTX_INIT, for messages.

    Raises:
        UserError: says which key differs, and how it was set.
    """
    if saved is None or saved.dim() not in (2, 3):
        return  # not a prompt learner's file: loading says so
    if saved.dim() != own.dim():
        kinds = {2: "one context for all classes", 3: "a context for each class"}
        texts, remedy = (kinds[saved.dim()], kinds[own.dim()]), f"set {name}.CSC to {saved.dim() == 3}"
    elif saved.shape[-2] != own.shape[-2]:
        texts = (f"a context of {saved.shape[-2]} vectors", f"one of {own.shape[-2]}")
        remedy = f"set {name}.N_CTX to {saved.shape[-2]}, or {name}.CTX_INIT to that many words"
    elif saved.shape[-1] != own.shape[-1]:
        texts = (f"context vectors of width {saved.shape[-1]}", f"a text encoder of width {own.shape[-1]}")
        remedy = "choose the backbone that it was trained with (MODEL.BACKBONE.NAME)"
    else:
        return
    raise UserError(f"{path} holds {texts[0]}, but this run has {texts[1]}; {remedy}")
