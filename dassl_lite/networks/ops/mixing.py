"""Mixing images or their feature statistics: MixStyle, EFDMix and mixup.

Dassl's functions ``activate_*``, ``deactivate_*``, ``random_*`` and ``crossdomain_*`` are for ``model.apply``;
``run_with_*`` and ``run_without_*`` are context managers.

Shapes: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from dassl_lite.utils.errors import unknown

_PARTNERS = ("random", "crossdomain")


class FeatureMix(nn.Module):
    """Base of MixStyle and EFDMix: during training, mixes each image's feature statistics with a partner's.

    Args:
        p: probability of mixing a batch.
        alpha: an image keeps a share of its own statistics drawn from Beta(alpha, alpha); below 1 most draws are near 0
            or 1.
        eps: added to variances.
        mix: ``random`` draws partners from the whole batch, ``crossdomain`` from its other half, which must hold
            another domain.
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
        """Feature maps (B, C, H, W), mixed or unchanged."""
        if not self.training or not self._activated or random.random() > self.p:
            return x
        # Draws in the same order as the reference, so a seed gives the same result.
        own_share = self.beta.sample(torch.Size((len(x), 1, 1, 1))).to(x.device)
        return self.blend(x, self._partners(len(x)).to(x.device), own_share)

    def blend(self, x: Tensor, partners: Tensor, own_share: Tensor) -> Tensor:
        """Mix ``x`` (B, C, H, W), at weight ``own_share`` (B, 1, 1, 1), with ``x[partners]``."""
        raise NotImplementedError

    def _partners(self, batch: int) -> Tensor:
        if self.mix == "random":
            return torch.randperm(batch)
        second, first = torch.arange(batch - 1, -1, -1).chunk(2)
        return torch.cat([second[torch.randperm(len(second))], first[torch.randperm(len(first))]])


@contextlib.contextmanager
def activation(model: nn.Module, kind: type[FeatureMix], status: bool, mix: str | None = None) -> Iterator[None]:
    """Switch every ``kind`` in ``model`` on or off, and back on exit; a change of ``mix`` is permanent."""
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


class MixStyle(FeatureMix):
    """Domain generalization with MixStyle (Zhou et al. 2021, https://arxiv.org/abs/2104.02008).

    With mu and sigma the mean and standard deviation per channel of image i and its partner j, and lambda the share:

        y_i = (lambda sigma_i + (1 - lambda) sigma_j) (x_i - mu_i) / sigma_i + lambda mu_i + (1 - lambda) mu_j
    """

    def blend(self, x: Tensor, partners: Tensor, own_share: Tensor) -> Tensor:
        # No gradient flows through the statistics, as in the paper.
        mean = x.detach().mean(dim=(2, 3), keepdim=True)
        std = (x.detach().var(dim=(2, 3), keepdim=True) + self.eps).sqrt()
        mixed_mean = own_share * mean + (1 - own_share) * mean[partners]
        mixed_std = own_share * std + (1 - own_share) * std[partners]
        return (x - mean) / std * mixed_std + mixed_mean


def activate_mixstyle(module: nn.Module) -> None:
    if isinstance(module, MixStyle):
        module.set_activation_status(True)


def deactivate_mixstyle(module: nn.Module) -> None:
    if isinstance(module, MixStyle):
        module.set_activation_status(False)


def random_mixstyle(module: nn.Module) -> None:
    if isinstance(module, MixStyle):
        module.update_mix_method("random")


def crossdomain_mixstyle(module: nn.Module) -> None:
    if isinstance(module, MixStyle):
        module.update_mix_method("crossdomain")


def run_with_mixstyle(model: nn.Module, mix: str | None = None) -> AbstractContextManager[None]:
    """In this context the model mixes; ``mix``: ``random`` or ``crossdomain``, or None to keep the setting."""
    return activation(model, MixStyle, True, mix)


def run_without_mixstyle(model: nn.Module) -> AbstractContextManager[None]:
    """In this context the model does not mix."""
    return activation(model, MixStyle, False)


class EFDMix(FeatureMix):
    """Exact feature distribution mixing (Zhang et al. 2022, https://arxiv.org/abs/2203.07740).

    Moves the k-th smallest value of a channel towards the partner's k-th smallest, by one minus the image's own share.
    The gradient is that of the identity.
    """

    def blend(self, x: Tensor, partners: Tensor, own_share: Tensor) -> Tensor:
        values, order = x.flatten(2).sort()
        matched = values[partners].gather(-1, order.argsort(-1)).view_as(x)
        return x + (1 - own_share) * (matched - x).detach()


def activate_efdmix(module: nn.Module) -> None:
    if isinstance(module, EFDMix):
        module.set_activation_status(True)


def deactivate_efdmix(module: nn.Module) -> None:
    if isinstance(module, EFDMix):
        module.set_activation_status(False)


def random_efdmix(module: nn.Module) -> None:
    if isinstance(module, EFDMix):
        module.update_mix_method("random")


def crossdomain_efdmix(module: nn.Module) -> None:
    if isinstance(module, EFDMix):
        module.update_mix_method("crossdomain")


def run_with_efdmix(model: nn.Module, mix: str | None = None) -> AbstractContextManager[None]:
    """In this context the model mixes; ``mix``: ``random`` or ``crossdomain``, or None to keep the setting."""
    return activation(model, EFDMix, True, mix)


def run_without_efdmix(model: nn.Module) -> AbstractContextManager[None]:
    """In this context the model does not mix."""
    return activation(model, EFDMix, False)


def mixup(
    x1: Tensor, x2: Tensor, y1: Tensor, y2: Tensor, beta: float, preserve_order: bool = False
) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412): share * first + (1 - share) * second.

    Args:
        x1, x2: images (B, C, H, W).
        y1, y2: label probabilities (B, K).
        beta: each image's share is drawn from Beta(beta, beta).
        preserve_order: weigh the first input by at least one half.

    Returns:
        Mixed images (B, C, H, W) and label probabilities (B, K).
    """
    share = torch.distributions.Beta(beta, beta).sample(torch.Size((len(x1), 1, 1, 1)))
    if preserve_order:
        share = torch.maximum(share, 1 - share)
    share = share.to(x1.device)
    label_share = share[:, :, 0, 0]
    return share * x1 + (1 - share) * x2, label_share * y1 + (1 - label_share) * y2
