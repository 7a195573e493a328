"""What MixStyle and EFDMix share: when to mix, with whom, how much, and how it is switched on and off."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dassl_lite.utils.errors import unknown

_PARTNERS = ("random", "crossdomain")


class FeatureMix(nn.Module):
    """Mixes each image's feature statistics with a partner's, in training only.

    Args:
        p: probability with which a batch is mixed.
        alpha: of the Beta(alpha, alpha) distribution that the own share is drawn from.
        eps: added to variances.
        mix: ``random``: partners are drawn from the batch; ``crossdomain``: from its other half, which holds another
            domain.
    """

    def __init__(self, p: float = 0.5, alpha: float = 0.1, eps: float = 1e-6, mix: str = "random") -> None:
        super().__init__()
        self.p = p
        self.alpha = alpha
        self.eps = eps
        self.beta = torch.distributions.Beta(alpha, alpha)
        self.update_mix_method(mix)
        self.set_activation_status(True)

    def extra_repr(self) -> str:
        return f"p={self.p}, alpha={self.alpha}, eps={self.eps}, mix={self.mix}"

    def set_activation_status(self, status: bool = True) -> None:
        self._activated = status

    def update_mix_method(self, mix: str = "random") -> None:
        if mix not in _PARTNERS:
            raise unknown("way to mix", mix, _PARTNERS)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, C, H, W), mixed or as they are."""
        if not self.training or not self._activated or random.random() > self.p:
            return x
        # The order of the draws is the reference's, so that a seed gives the same mixture.
        own_share = self.beta.sample(torch.Size((len(x), 1, 1, 1))).to(x.device)
        return self.blend(x, self._partners(len(x)).to(x.device), own_share)

    def blend(self, x: Tensor, partners: Tensor, own_share: Tensor) -> Tensor:
        """``x`` (B, C, H, W) mixed with ``x[partners]``; ``own_share`` (B, 1, 1, 1) of it stays."""
        raise NotImplementedError

    def _partners(self, batch: int) -> Tensor:
        if self.mix == "random":
            return torch.randperm(batch)
        second, first = torch.arange(batch - 1, -1, -1).chunk(2)
        return torch.cat([second[torch.randperm(len(second))], first[torch.randperm(len(first))]])


@contextlib.contextmanager
def activation(model: nn.Module, kind: type[FeatureMix], status: bool, mix: str | None = None) -> Iterator[None]:
    """Switch every ``kind`` in ``model`` on or off, and back at the context's end; ``mix`` changes for good."""
    layers = [module for module in model.modules() if isinstance(module, kind)]
    before = [layer._activated for layer in layers]
    for layer in layers:
        if mix is not None:
            layer.update_mix_method(mix)
        layer.set_activation_status(status)
    try:
        yield
    finally:
        for layer, former in zip(layers, before, strict=True):
            layer.set_activation_status(former)
