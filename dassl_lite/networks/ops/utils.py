"""Small operations for Dassl's semi-supervised trainers.

Shapes: B images, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sharpen_prob(p: Tensor, temperature: float = 2) -> Tensor:
    """Raise probabilities (B, K) to the power ``temperature`` and renormalise them; above 1 this sharpens them."""
    powered = p.pow(temperature)
    return powered / powered.sum(1, keepdim=True)


def reverse_index(data: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Reverse both along the first axis."""
    return data.flip(0), label.flip(0)


def shuffle_index(data: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Shuffle both in the same random order."""
    order = torch.randperm(len(data))
    return data[order], label[order]


def create_onehot(label: Tensor, num_classes: int) -> Tensor:
    """Labels (B,) as one-hot rows (B, K), float32 on the CPU, as in Dassl."""
    return nn.functional.one_hot(label.detach().cpu().long(), num_classes).float()


def sigmoid_rampup(current: float, rampup_length: float) -> float:
    """exp(-5 (1 - t)^2) with t = current / rampup_length clamped to [0, 1] (https://arxiv.org/abs/1610.02242)."""
    return math.exp(-5.0 * (1.0 - linear_rampup(current, rampup_length)) ** 2)


def linear_rampup(current: float, rampup_length: float) -> float:
    """current / rampup_length, clamped to [0, 1]."""
    if rampup_length <= 0:
        raise ValueError(f"rampup_length is {rampup_length}; it must be above 0")
    return min(max(current / rampup_length, 0.0), 1.0)


@torch.no_grad()
def ema_model_update(model: nn.Module, ema_model: nn.Module, alpha: float) -> None:
    """Update a moving average of a model's parameters: alpha * average + (1 - alpha) * current."""
    for average, current in zip(ema_model.parameters(), model.parameters(), strict=True):
        average.mul_(alpha).add_(current, alpha=1 - alpha)
