"""Heads that methods share: cosine logits of image features against one prototype per class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def cosine_logits(image_features: torch.Tensor, prototypes: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """Logits (B, K): cosine similarity of image features (B, D) and prototypes (K, D), times ``scale``.

    Args:
        scale: exp(logit_scale), a scalar.
    """
    return scale * F.normalize(image_features, dim=-1) @ F.normalize(prototypes, dim=-1).t()


class CosineHead(nn.Module):
    """Cosine logits against fixed prototypes.

    Args:
        prototypes: (K, D), of any length.
        logit_scale: CLIP's, before exp.
    """

    prototypes: torch.Tensor
    scale: torch.Tensor

    def __init__(self, prototypes: torch.Tensor, logit_scale: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("prototypes", F.normalize(prototypes, dim=-1), persistent=False)
        self.register_buffer("scale", logit_scale.exp(), persistent=False)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) for image features (B, D)."""
        return cosine_logits(image_features, self.prototypes, self.scale)
