"""Top-k accuracy of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def compute_accuracy(output: Tensor | Sequence[Tensor], target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """Percentage of the batch whose label is among the k highest logits, for each k.

    Args:
        output: logits (B, K); of several outputs the first counts.
        target: labels (B,), integers.
        topk: the values of k.

    Returns:
        One tensor (1,) per k, float32, on the device of ``output``; nothing waits for the device.

    Raises:
        ValueError: a k below 1 or above the number of classes K.
    """
    logits = output if isinstance(output, Tensor) else output[0]
    largest = max(topk)
    if min(topk) < 1 or largest > logits.shape[1]:
        raise ValueError(f"topk is {tuple(topk)}; each must be between 1 and the {logits.shape[1]} classes")
    predicted = logits.topk(largest, dim=1).indices  # (B, largest)
    hits = predicted == target.reshape(-1, 1)
    return [hits[:, :k].sum(dtype=torch.float32).reshape(1) * (100.0 / logits.shape[0]) for k in topk]
