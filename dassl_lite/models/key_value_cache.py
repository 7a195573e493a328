"""Tip-Adapter's head: zero-shot logits plus the logits of a cache of labelled images.

    logits = scale * f @ W.T + alpha * exp(-beta * (1 - f @ keys.T)) @ values

Shapes: B images, N cache entries, K classes, D feature width, V views.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl_lite.utils.errors import UserError

_CHUNK = 256  # images at a time in a search


class KeyValueCache(nn.Module):
    """A cache of keys and values, empty until `fill` or until a checkpoint is loaded.

    Args:
        text_features: W (K, D), of length 1.
        scale: exp(logit_scale), a scalar.
        trainable: whether the keys are trained.

    Attributes:
        keys, values: (N, D), of length 1 before training, and (N, K), one-hot.
        alpha: weight of the cache.
        beta: its sharpness: how fast an entry's vote falls with its distance.
    """

    class_rows: Mapping[str, int] = {"values": 1, "text_features": 0}
    text_features: Tensor
    values: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, text_features: Tensor, scale: float, trainable: bool = False) -> None:
        super().__init__()
        self.scale = scale
        self.keys = nn.Parameter(text_features.new_zeros(0, text_features.shape[1]), requires_grad=trainable)
        self.register_buffer("values", text_features.new_zeros(0, len(text_features)))
        self.register_buffer("text_features", text_features)
        self.register_buffer("alpha", torch.tensor(1.0))
        self.register_buffer("beta", torch.tensor(1.0))

    def prepare_to_load(self, weights: Mapping[str, Tensor], meta: Mapping[str, Any], path: Path) -> None:
        """Make room for as many entries as a checkpoint has: it may come from another dataset, with other shots.

        The parameter object stays the same, so an optimiser still holds it.
        """
        entries = len(weights["keys"]) if "keys" in weights else 0
        self.keys.data = self.keys.new_zeros(entries, self.keys.shape[1])
        self.values = self.values.new_zeros(entries, self.values.shape[1])

    def fill(self, views: Tensor, labels: Tensor) -> None:
        """One entry per image: the mean over views of its features (V, N, D), and its label (N,)."""
        self.keys.data = F.normalize(views.mean(dim=0), dim=-1).to(self.keys)
        self.values = F.one_hot(labels, self.values.shape[1]).to(self.values)

    def set_alpha_beta(self, alpha: float, beta: float) -> None:
        """Set alpha and beta."""
        self.alpha.fill_(alpha)
        self.beta.fill_(beta)

    def forward(self, image_features: Tensor) -> Tensor:
        """Logits (B, K) for image features (B, D).

        Raises:
            UserError: the cache is empty.
        """
        if not len(self.keys):
            raise UserError("the cache is empty: it needs shots (DATASET.NUM_SHOTS 1 or more) or a checkpoint")
        zero_shot, affinity = self._similarities(image_features)
        return zero_shot + self.alpha * self._vote(affinity, self.beta)

    @torch.no_grad()
    def accuracies(self, image_features: Tensor, labels: Tensor, betas: Tensor, alphas: Tensor) -> Tensor:
        """Accuracy in percent for every beta (rows) with every alpha (columns)."""
        correct = torch.zeros(len(betas), len(alphas), device=labels.device, dtype=torch.float64)
        for features, label in zip(image_features.split(_CHUNK), labels.split(_CHUNK), strict=True):
            zero_shot, affinity = self._similarities(features)
            for row, beta in enumerate(betas.to(self.keys)):
                logits = zero_shot + alphas.to(self.keys)[:, None, None] * self._vote(affinity, beta)
                correct[row] += (logits.argmax(dim=-1) == label).sum(dim=-1)
        return 100 * correct / len(labels)

    def _similarities(self, image_features: Tensor) -> tuple[Tensor, Tensor]:
        """Zero-shot logits (B, K) and cosines with the keys (B, N)."""
        features = F.normalize(image_features, dim=-1)
        return self.scale * features @ self.text_features.t(), features @ self.keys.t()

    def _vote(self, affinity: Tensor, beta: Tensor) -> Tensor:
        """Logits of the cache, before alpha (B, K)."""
        return torch.exp(-beta * (1 - affinity)) @ self.values
