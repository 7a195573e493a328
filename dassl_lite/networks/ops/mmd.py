"""Maximum mean discrepancy between two batches of features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dassl_lite.metrics import euclidean_squared_distance
from dassl_lite.utils.errors import unknown

_SIGMAS = (1.0, 5.0, 10.0)


def _linear(x: Tensor, y: Tensor) -> Tensor:
    return x @ y.T


def _poly(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T + 2.0).square()


def _rbf(x: Tensor, y: Tensor) -> Tensor:
    distance = euclidean_squared_distance(x, y)
    return torch.stack([(-distance / (2 * sigma**2)).exp() for sigma in _SIGMAS]).sum(0)


_KERNELS = {"linear": _linear, "poly": _poly, "rbf": _rbf}


class MaximumMeanDiscrepancy(nn.Module):
    """The unbiased estimate of the squared MMD (Gretton et al. 2012, lemma 6):

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

    Args:
        kernel_type: ``linear``, ``poly`` ((x.y + 2)^2) or ``rbf`` (sum over sigma = 1, 5, 10).
        normalize: L2-normalise the features first.
    """

    def __init__(self, kernel_type: str = "rbf", normalize: bool = False) -> None:
        super().__init__()
        if kernel_type not in _KERNELS:
            raise unknown("kernel", kernel_type, _KERNELS)
        self.kernel_type = kernel_type
        self.normalize = normalize

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Features (M, D) and (N, D), M and N at least 2, to a number."""
        if self.normalize:
            x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
        kernel = _KERNELS[self.kernel_type]
        return _mean_off_diagonal(kernel(x, x)) + _mean_off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()


def _mean_off_diagonal(square: Tensor) -> Tensor:
    n = len(square)
    return (square.sum() - square.diagonal().sum()) / (n * (n - 1))
