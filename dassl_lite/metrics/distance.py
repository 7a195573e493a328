"""Distances between two sets of features.

Shapes: M and N rows, D feature width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dassl_lite.utils.errors import unknown


def euclidean_squared_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """Squared Euclidean distances (M, N) between the rows of (M, D) and (N, D), using one matrix product."""
    squares = input1.square().sum(1, keepdim=True) + input2.square().sum(1)
    # Rounding can make the distance of equal rows negative, and a later square root would turn that into NaN.
    return (squares - 2 * input1 @ input2.T).clamp_min(0)


def cosine_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """One minus the cosine similarity (M, N) between the rows of (M, D) and (N, D)."""
    return 1 - F.normalize(input1, dim=1) @ F.normalize(input2, dim=1).T


_METRICS = {"euclidean": euclidean_squared_distance, "cosine": cosine_distance}


def compute_distance_matrix(input1: Tensor, input2: Tensor, metric: str = "euclidean") -> Tensor:
    """Distances (M, N) between the rows of (M, D) and (N, D).

    Args:
        input1: (M, D).
        input2: (N, D).
        metric: ``euclidean`` (squared, as in Dassl) or ``cosine``.

    Raises:
        UserError: unknown metric.
        ValueError: the shapes do not fit.
    """
    if metric not in _METRICS:
        raise unknown("distance", metric, _METRICS)
    if input1.dim() != 2 or input2.dim() != 2 or input1.shape[1] != input2.shape[1]:
        shapes = f"{tuple(input1.shape)} and {tuple(input2.shape)}"
        raise ValueError(f"expected two matrices with the same number of columns, got {shapes}")
    return _METRICS[metric](input1, input2)
