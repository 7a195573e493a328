"""Cross entropy under Dassl's name."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(input: Tensor, target: Tensor, label_smooth: float = 0, reduction: str = "mean") -> Tensor:
    """Of logits (B, K) and labels (B,); ``label_smooth`` of the mass goes to all classes evenly."""
    return F.cross_entropy(input, target, label_smoothing=label_smooth, reduction=reduction)
