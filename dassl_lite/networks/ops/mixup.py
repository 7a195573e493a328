"""mixup: convex combinations of images and of their labels."""

from __future__ import annotations

import torch
from torch import Tensor


def mixup(
    x1: Tensor, x2: Tensor, y1: Tensor, y2: Tensor, beta: float, preserve_order: bool = False
) -> tuple[Tensor, Tensor]:
    """Zhang et al. 2018, https://arxiv.org/abs/1710.09412: share * first + (1 - share) * second.

    Args:
        x1, x2: images (B, C, H, W).
        y1, y2: label probabilities (B, K).
        beta: one share per image is drawn from Beta(beta, beta).
        preserve_order: the first keeps at least one half.

    Returns:
        Mixed images (B, C, H, W) and label probabilities (B, K).
    """
    share = torch.distributions.Beta(beta, beta).sample(torch.Size((len(x1), 1, 1, 1)))
    if preserve_order:
        share = torch.maximum(share, 1 - share)
    share = share.to(x1.device)
    label_share = share[:, :, 0, 0]
    return share * x1 + (1 - share) * x2, label_share * y1 + (1 - label_share) * y2
