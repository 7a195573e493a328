"""CLIP's text encoder (first version: the plain way)."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class TextTower:
    """Reads the modules of an open_clip model."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def embed_dim(self) -> int:
        return self.model.text_projection.shape[1]

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Features (N, D) of token ids (N, L)."""
        return self.model.encode_text(tokens.to(self.model.logit_scale.device))
