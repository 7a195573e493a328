"""How far a classifier's confidence is from its accuracy."""

from __future__ import annotations

import torch
from torch import Tensor


def expected_calibration_error(confidence: Tensor, correct: Tensor, num_bins: int = 15) -> float:
    """ECE with bins of equal width (Guo et al. 2017, https://arxiv.org/abs/1706.04599, equations 2 to 3).

        ECE = sum_m  n_m / N * | accuracy_m - confidence_m |,   bin m = ((m - 1) / M, m / M]

    Args:
        confidence: (N,) largest softmax probability of each image.
        correct: (N,) whether the predicted class is the true one.
        num_bins: M.

    Returns:
        A fraction between 0 and 1.
    """
    confidence = confidence.double()
    bins = (confidence * num_bins).ceil().long().sub(1).clamp(0, num_bins - 1)
    # |accuracy - confidence| * n of a bin is the absolute sum of its differences.
    gaps = torch.zeros(num_bins, dtype=torch.float64, device=confidence.device)
    gaps.index_add_(0, bins, correct.double() - confidence)
    return (gaps.abs().sum() / len(confidence)).item()
