"""Batch normalisation with statistics and weights per domain."""

from __future__ import annotations

from torch import Tensor, nn


class _DSBN(nn.Module):
    """One batch norm per domain (Chang et al. 2019, https://arxiv.org/abs/1906.03950); ``select_bn`` says which acts.

    Args:
        num_features: channels.
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
            raise ValueError(f"domain {domain_idx} is not among the {self.n_domain} domains (0 to {self.n_domain - 1})")
        self.domain_idx = domain_idx

    def forward(self, x: Tensor) -> Tensor:
        return self.bn[self.domain_idx](x)


class DSBN1d(_DSBN):
    """On features (B, C)."""

    norm = nn.BatchNorm1d


class DSBN2d(_DSBN):
    """On feature maps (B, C, H, W)."""

    norm = nn.BatchNorm2d
