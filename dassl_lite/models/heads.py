"""The head that most methods share: cosine logits of image features against one prototype per class.

Shapes: B images, K classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CosineHead(nn.Module):
    """Image features (B, D) to logits (B, K); CLIP's own classifier, with room for what a method learns.

        logits = scale * normalise(adapt(image_features)) @ normalise(class_prototypes()).T

    A method overrides `class_prototypes`, and `adapt` if it changes the image features too.

    Args:
        scale: exp(logit_scale), a scalar.
    """

    scale: Tensor
    _evaluating = False
    _kept: Tensor | None = None

    def __init__(self, scale: Tensor | float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.as_tensor(scale).detach().float(), persistent=False)

    def class_prototypes(self) -> Tensor:
        """One row per class (K, D), of any length and dtype."""
        raise NotImplementedError(f"{type(self).__name__} does not define class_prototypes()")

    def adapt(self, image_features: Tensor) -> Tensor:
        """The image features (B, D) that are compared with the prototypes; unchanged unless overridden."""
        return image_features

    def forward(self, image_features: Tensor) -> Tensor:
        """Logits (B, K) for image features (B, D)."""
        image_features = F.normalize(self.adapt(image_features), dim=-1)
        return self.scale * image_features @ F.normalize(self.class_features(), dim=-1).t()

    def class_features(self) -> Tensor:
        """The prototypes (K, D) in float32; computed once within `evaluating`."""
        if self._kept is not None:
            return self._kept
        features = self.class_prototypes().float()
        if self._evaluating:
            object.__setattr__(self, "_kept", features)  # a module takes no second name for a parameter of its own
        return features

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """A context in which no parameter changes, so the prototypes are computed once for all batches."""
        self._evaluating = True
        try:
            yield
        finally:
            self._evaluating, self._kept = False, None


class FixedPrototypes(CosineHead):
    """Cosine logits against prototypes that are not learned: zero-shot CLIP.

    Args:
        prototypes: (K, D), of any length.
        scale: exp(logit_scale), a scalar.
    """

    prototypes: Tensor

    def __init__(self, prototypes: Tensor, scale: Tensor | float) -> None:
        super().__init__(scale)
        self.register_buffer("prototypes", F.normalize(prototypes, dim=-1), persistent=False)

    def class_prototypes(self) -> Tensor:
        return self.prototypes
