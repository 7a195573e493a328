"""Distances between two sets of features."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dassl_lite.utils.errors import unknown


def euclidean_squared_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """Squared Euclidean distances (M, N) between the rows of (M, D) and (N, D), by one matrix product."""
    squares = input1.square().sum(1, keepdim=True) + input2.square().sum(1)
    # Rounding can take the distance of equal rows below zero, which a later square root would turn into nan.
    return (squares - 2 * input1 @ input2.T).clamp_min(0)


def cosine_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """One minus the cosine (M, N) between the rows of (M, D) and (N, D)."""
    return 1 - F.normalize(input1, dim=1) @ F.normalize(input2, dim=1).T


_METRICS = {"euclidean": euclidean_squared_distance, "cosine": cosine_distance}


def compute_distance_matrix(input1: Tensor, input2: Tensor, metric: str = "euclidean") -> Tensor:
    """Distances (M, N) between the rows of (M, D) and (N, D).

    Args:
        metric: ``euclidean`` (squared, as in Dassl) or ``cosine``.
    """
    if metric not in _METRICS:
        raise unknown("distance", metric, _METRICS)
    if input1.dim() != 2 or input2.dim() != 2 or input1.shape[1] != input2.shape[1]:
        shapes = f"{tuple(input1.shape)} and {tuple(input2.shape)}"
        raise ValueError(f"two matrices of features of one width are needed, not {shapes}")
    return _METRICS[metric](input1, input2)
