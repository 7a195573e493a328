"""Normalisation layers that keep statistics per domain.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _DSBN(nn.Module):
    """One batch norm per domain (Chang et al. 2019, https://arxiv.org/abs/1906.03950); ``select_bn`` selects one.

    Args:
        num_features: number of channels.
        n_domain: number of domains.
    """

    norm: type[nn.Module]

    def __init__(self, num_features: int, n_domain: int) -> None:
        super().__init__()
        self.bn = nn.ModuleList(self.norm(num_features) for _ in range(n_domain))
        self.n_domain = n_domain
        self.domain_idx = 0

    def select_bn(self, domain_idx: int = 0) -> None:
        if not 0 <= domain_idx < self.n_domain:
            raise ValueError(f"domain_idx is {domain_idx}; it must be from 0 to {self.n_domain - 1}")
        self.domain_idx = domain_idx

    def forward(self, x: Tensor) -> Tensor:
        return self.bn[self.domain_idx](x)


class DSBN1d(_DSBN):
    """For features (B, C)."""

    norm = nn.BatchNorm1d


class DSBN2d(_DSBN):
    """For feature maps (B, C, H, W)."""

    norm = nn.BatchNorm2d


class _TransNorm(nn.Module):
    """Transferable normalisation (Wang et al. 2019): batch norm per domain, with more weight on transferable channels.

    The first half of a training batch must hold the source domain, the second half the target domain. Each half is
    normalised with its own statistics and then scaled with a common weight and bias; evaluation uses the target's
    statistics. Then channel c is multiplied by 1 + alpha_c, where

        alpha_c = C q_c / sum_k q_k,   q_c = 1 / (1 + |mean_s / std_s - mean_t / std_t|)

    Args:
        num_features: number of channels C.
        eps: added to variances.
        momentum: weight of the PAST in the running statistics, as in Dassl; in torch's batch norm, of the present.
        adaptive_alpha: False skips the multiplication by 1 + alpha.
    """

    dims: int  # number of axes of the input

    running_mean_s: Tensor
    running_var_s: Tensor
    running_mean_t: Tensor
    running_var_t: Tensor

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, adaptive_alpha: bool = True
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.adaptive_alpha = adaptive_alpha
        for domain in "st":
            self.register_buffer(f"running_mean_{domain}", torch.zeros(num_features))
            self.register_buffer(f"running_var_{domain}", torch.ones(num_features))
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C) or (B, C, H, W); B must be even in training."""
        if x.dim() != self.dims or x.shape[1] != self.num_features:
            raise ValueError(f"expected {self.dims} axes and {self.num_features} channels, got shape {tuple(x.shape)}")
        if not self.training:
            source = self.running_mean_s, self.running_var_s
            target = self.running_mean_t, self.running_var_t
            return self._reweighted(self._normalised(x, *target), source, target)
        if len(x) % 2:
            raise ValueError(f"a training batch must be half source, half target; its size {len(x)} is odd")
        halves = x.chunk(2)
        source, target = (self._statistics(half) for half in halves)
        self._remember(source, self.running_mean_s, self.running_var_s)
        self._remember(target, self.running_mean_t, self.running_var_t)
        normalised = torch.cat([self._normalised(halves[0], *source), self._normalised(halves[1], *target)])
        return self._reweighted(normalised, source, target)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        channels = x.transpose(0, 1).flatten(1)  # (C, the rest)
        return channels.mean(1), channels.var(1)

    @torch.no_grad()
    def _remember(self, statistics: tuple[Tensor, Tensor], mean: Tensor, var: Tensor) -> None:
        for running, new in zip((mean, var), statistics, strict=True):
            running.mul_(self.momentum).add_((1 - self.momentum) * new)

    def _normalised(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        scaled = (x - self._spread(mean)) / self._spread((var + self.eps).sqrt())
        return scaled * self._spread(self.weight) + self._spread(self.bias)

    def _reweighted(self, x: Tensor, source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
        if not self.adaptive_alpha:
            return x
        ratios = [mean / (var + self.eps).sqrt() for mean, var in (source, target)]
        closeness = 1 / (1 + (ratios[0] - ratios[1]).abs())
        alpha = self.num_features * closeness / closeness.sum()
        return (1 + self._spread(alpha.detach())) * x

    def _spread(self, values: Tensor) -> Tensor:
        """(C,) -> (1, C) or (1, C, 1, 1)"""
        return values.view(1, -1, *(1,) * (self.dims - 2))


class TransNorm1d(_TransNorm):
    """For features (B, C)."""

    dims = 2


class TransNorm2d(_TransNorm):
    """For feature maps (B, C, H, W)."""

    dims = 4
