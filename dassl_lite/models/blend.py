"""Several classifiers as one: the weighted mean of their probabilities.

    p(k | f) = sum over members i of w_i * softmax(tau_i * logits_i(f))_k

The weights maximise the likelihood of labels that no member was fitted to ("stacking"). Each member is first
credited with images that it alone explains, which keeps the weights near the credits.

Shapes: B images, N held-out images, K classes, M members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURES = (0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
_ROUNDS = 300  # of expectation maximisation, which converges from any start: the problem is convex


class Blend(nn.Module):
    """The mean of several heads; empty until `fill`.

    Attributes:
        meta: what a checkpoint needs to rebuild the members, as plain values.
        weights, temperatures: w and tau (M,).
    """

    weights: Tensor
    temperatures: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fill([], [], torch.zeros(0), torch.zeros(0))

    def fill(
        self, members: Sequence[nn.Module], about: Sequence[dict[str, Any]], weights: Tensor, temperatures: Tensor
    ) -> None:
        """Take the members, what a checkpoint says about each, and their weights and temperatures (M,)."""
        self.members, self.meta = nn.ModuleList(members), {"members": list(about)}
        self.register_buffer("weights", weights.float())
        self.register_buffer("temperatures", temperatures.float())

    def forward(self, image_features: Tensor) -> Tensor:
        """Logarithms of the probabilities (B, K)."""
        logits = torch.stack([member(image_features).float() for member in self.members])
        return mixed(self.temperatures[:, None, None] * logits, self.weights)


def mixed(logits: Tensor, weights: Tensor) -> Tensor:
    """Logarithms (B, K) of the mean of the probabilities of logits (M, B, K)."""
    return (F.log_softmax(logits, dim=-1) + weights.log()[:, None, None]).logsumexp(dim=0)


def calibrate(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """The temperature with the lowest log loss of logits (N, K), and that loss."""
    losses = [F.cross_entropy(factor * logits, labels).item() for factor in TEMPERATURES]
    return TEMPERATURES[losses.index(min(losses))], min(losses)


def stack(own: Tensor, credits: Tensor) -> Tensor:
    """Weights (M,) that sum to 1 and give the mean of the members with the highest likelihood.

    Args:
        own: probability (M, N) that each member gives to each image's label, of images that it was not fitted to.
        credits: number of images (M,), above 0, that each member is assumed to have explained alone beforehand.
    """
    own, credits = own.double(), credits.double()
    weights = credits / credits.sum()
    for _ in range(_ROUNDS if own.shape[1] else 0):
        explained = weights[:, None] * own
        weights = (explained / explained.sum(dim=0).clamp(min=1e-300)).sum(dim=1) + credits
        weights = weights / weights.sum()
    return weights
