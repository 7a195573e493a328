"""Losses: cross entropy, maximum mean discrepancy, optimal transport.

Shapes: B images, K classes, M and N images of two batches, D feature width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dassl_lite.metrics import cosine_distance, euclidean_squared_distance
from dassl_lite.utils.errors import unknown


def cross_entropy(input: Tensor, target: Tensor, label_smooth: float = 0, reduction: str = "mean") -> Tensor:
    """Cross entropy of logits (B, K) and labels (B,); spreads ``label_smooth`` of the mass evenly over all classes."""
    return F.cross_entropy(input, target, label_smoothing=label_smooth, reduction=reduction)


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
    """Unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012, lemma 6):

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
        """Features (M, D) and (N, D), with M and N at least 2, to a scalar."""
        if self.normalize:
            x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
        kernel = _KERNELS[self.kernel_type]
        return _mean_off_diagonal(kernel(x, x)) + _mean_off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()


def _mean_off_diagonal(square: Tensor) -> Tensor:
    n = len(square)
    return (square.sum() - square.diagonal().sum()) / (n * (n - 1))


_DISTANCES = {
    "cosine": cosine_distance,
    "euclidean": euclidean_squared_distance,
    "fast_euclidean": euclidean_squared_distance,  # in Dassl, another implementation of the same kernel
}


class OptimalTransport(nn.Module):
    """Base of the distances between two batches of features."""

    @staticmethod
    def distance(batch1: Tensor, batch2: Tensor, dist_metric: str = "cosine") -> Tensor:
        """Cost (M, N) of moving features (M, D) to (N, D): ``cosine``, or ``euclidean`` (squared)."""
        if dist_metric not in _DISTANCES:
            raise unknown("distance", dist_metric, _DISTANCES)
        return _DISTANCES[dist_metric](batch1, batch2)


class SinkhornDivergence(OptimalTransport):
    """2 W(x, y) - W(x, x) - W(y, y) (Genevay et al. 2018, https://arxiv.org/abs/1706.00292).

    W is the cost of the transport plan between two uniformly weighted batches. Sinkhorn's iteration, here in the log
    domain, finds the plan under an entropy weighted by ``eps`` (Cuturi 2013, https://arxiv.org/abs/1306.0895).

    Args:
        dist_metric: see ``distance``.
        eps: weight of the entropy; smaller gives a sharper plan and slower convergence.
        max_iter: maximum number of iterations; stops early once the potentials change by less than ``thre`` in total.
        bp_to_sinkhorn: also propagate gradients through the plan.
    """

    thre = 1e-3

    def __init__(
        self, dist_metric: str = "cosine", eps: float = 0.01, max_iter: int = 5, bp_to_sinkhorn: bool = False
    ) -> None:
        super().__init__()
        self.dist_metric = dist_metric
        self.eps = eps
        self.max_iter = max_iter
        self.bp_to_sinkhorn = bp_to_sinkhorn

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Features (M, D) and (N, D) to a scalar."""
        cost = self.transport_cost
        return 2 * cost(x, y) - cost(x, x) - cost(y, y)

    def transport_cost(self, x: Tensor, y: Tensor, return_pi: bool = False) -> Any:
        """W, a scalar; with ``return_pi`` also the plan (M, N), whose rows sum to 1 / M and columns to 1 / N."""
        cost = self.distance(x, y, self.dist_metric)
        plan = self._plan(cost if self.bp_to_sinkhorn else cost.detach())
        total = (plan * cost).sum()
        return (total, plan) if return_pi else total

    def _plan(self, cost: Tensor) -> Tensor:
        rows, columns = cost.shape
        u, v = cost.new_zeros(rows, 1), cost.new_zeros(1, columns)
        for _ in range(self.max_iter):
            before = u
            u = -self.eps * (math.log(rows) + ((v - cost) / self.eps).logsumexp(dim=1, keepdim=True))
            v = -self.eps * (math.log(columns) + ((u - cost) / self.eps).logsumexp(dim=0, keepdim=True))
            if (u - before).abs().sum().item() < self.thre:
                break
        return torch.exp((u + v - cost) / self.eps)


class MinibatchEnergyDistance(SinkhornDivergence):
    """Minibatch energy distance (Salimans et al. 2018, https://arxiv.org/abs/1803.05573), of batches cut in halves:

    W(x1, y1) + W(x1, y2) + W(x2, y1) + W(x2, y2) - 2 W(x1, x2) - 2 W(y1, y2)
    """

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Features (M, D) and (N, D), with M and N even, to a scalar."""
        if len(x) % 2 or len(y) % 2:
            raise ValueError(f"the batch sizes are {len(x)} and {len(y)}; both must be even")
        (x1, x2), (y1, y2) = x.chunk(2), y.chunk(2)
        cost = self.transport_cost
        between = cost(x1, y1) + cost(x1, y2) + cost(x2, y1) + cost(x2, y2)
        return between - 2 * cost(x1, x2) - 2 * cost(y1, y2)
