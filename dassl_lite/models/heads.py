"""Heads that methods share: cosine logits of image features against one prototype per class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


class ClassFeatures(nn.Module):
    """A head whose class features come through a text encoder, as it or its prompts are now: costly to compute."""

    _fixed = False
    _kept: torch.Tensor | None = None

    def encode_classes(self) -> torch.Tensor:
        """Text features (K, D), not normalised."""
        raise NotImplementedError(f"{type(self).__name__} does not define encode_classes()")

    def class_features(self) -> torch.Tensor:
        """``encode_classes`` in float32; within ``fixed``, computed at first use."""
        if self._kept is not None:
            return self._kept
        features = self.encode_classes().float()
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
