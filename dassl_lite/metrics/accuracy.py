"""Top-k accuracy of a batch.

Shapes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def compute_accuracy(output: Tensor | Sequence[Tensor], target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """Percentage of the batch whose label, or one of whose labels, is among the k highest logits, for each k.

    Args:
        output: logits (B, K), or a sequence of outputs whose first entry is used.
        target: integer labels (B,), or bool (B, K), true for each class of an image.
        topk: the values of k.

    Returns:
        One float32 tensor (1,) per k, on the device of ``output``, without a synchronisation.

    Raises:
        ValueError: a k below 1 or above the number of classes K.
    """
    logits = output if isinstance(output, Tensor) else output[0]
    largest = max(topk)
    if min(topk) < 1 or largest > logits.shape[1]:
        raise ValueError(f"topk is {tuple(topk)}; each k must be from 1 to {logits.shape[1]}, the number of classes")
    predicted = logits.topk(largest, dim=1).indices  # (B, largest)
    if target.dim() == 2:
        hits = target.gather(1, predicted)
        hits = hits & (hits.cumsum(1) == 1)  # an image counts once
    else:
        hits = predicted == target.reshape(-1, 1)
    return [hits[:, :k].sum(dtype=torch.float32).reshape(1) * (100.0 / logits.shape[0]) for k in topk]
