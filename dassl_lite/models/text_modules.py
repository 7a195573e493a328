"""The text side of an open_clip model, whichever of its classes holds it: what the text tower reads."""

from __future__ import annotations

import logging
from typing import Any

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from dassl_lite.utils.errors import UserError

logger = logging.getLogger(__name__)


class TextModules:
    """Embedding, layers, norm and projection of a text encoder. N texts, L tokens, W width, D width of features.

    Not a module: it has no parameters of its own and reads those of `model`, so a module that was replaced
    there (LoRA), moved or changed counts at once.

    Args:
        model: open_clip's `CLIP` or `CustomTextCLIP`. A text encoder that is not causal, or not open_clip's
            own, still encodes tokens, through its own `encode_text`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        text = getattr(model, "text", None)
        self._text: Any = model if text is None else text
        pool = getattr(self._text, "text_pool_type", None) or getattr(self._text, "pool_type", None)
        self._pool = pool or "argmax"
        causal = getattr(self._text, "attn_mask", None) is not None and getattr(self._text, "cls_emb", None) is None
        own = text is None or isinstance(text, TextTransformer)
        self.is_causal: bool = own and causal and self._pool in ("argmax", "eos")
        if not self.is_causal:
            logger.info("The text encoder is not CLIP's own kind: it runs as it is, and takes no learned prompts")

    @property
    def blocks(self) -> Any:
        """The layers, an `nn.ModuleList`."""
        return self._text.transformer.resblocks

    @property
    def width(self) -> int:
        """W, the width of token embeddings."""
        return self._text.token_embedding.weight.shape[1]

    @property
    def embed_dim(self) -> int:
        """D, the width of the features."""
        own = self._text.text_projection if self.is_causal else None
        if own is None:
            return self._text.output_dim if not self.is_causal else self.width
        return own.out_features if isinstance(own, nn.Linear) else own.shape[1]

    @property
    def projection(self) -> Tensor:
        """(W, D), the matrix that makes features of end states; the identity where a model has none."""
        self.require_prompts()
        own = self._text.text_projection
        if isinstance(own, nn.Linear):
            if own.bias is not None:
                raise UserError("this backbone's text projection has a bias, so another matrix cannot replace it")
            return own.weight.t()
        return torch.eye(self.width, device=self.device) if own is None else own

    @property
    def context_length(self) -> int:
        """The most tokens that a prompt can have, start and end included."""
        return self._text.context_length

    @property
    def dtype(self) -> torch.dtype:
        """In which the layers compute."""
        return self._text.transformer.get_cast_dtype()

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings (..., W) of ids (...), without positions: what prefix and suffix are made of."""
        self.require_prompts()
        return self._text.token_embedding(tokens.to(self.device)).to(self.dtype)

    def ends(self, tokens: Tensor) -> Tensor:
        """Where the end token of each text stands: (N,) from ids (N, L)."""
        if self._pool == "argmax":
            return tokens.argmax(dim=-1)
        end: int = getattr(self._text, "text_eos_id", None) or self._text.eos_id
        return tokens.eq(end).int().argmax(dim=-1)

    def positions(self, places: Tensor) -> Tensor:
        """Positional embeddings (n, W) of places (n,)."""
        return self._text.positional_embedding[places].to(self.dtype)

    def project(self, states: Tensor, projection: Tensor | None) -> Tensor:
        """Features (..., D) of normed end states (..., W), through `projection` (W, D) or the model's own."""
        own = self._text.text_projection
        if projection is not None:
            return states @ projection.to(states)
        if own is None:
            return states
        return own(states) if isinstance(own, nn.Linear) else states @ own

    def require_prompts(self) -> None:
        """Raise UserError where the encoder cannot take prompts as embeddings."""
        if not self.is_causal:
            raise UserError("this backbone's text encoder is not CLIP's own kind, so it cannot take learned prompts")
