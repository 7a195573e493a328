"""MixStyle, and Dassl's functions that switch it; give those without a context to ``model.apply``."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import Tensor, nn

from dassl_lite.networks.ops._feature_mix import FeatureMix, activation


class MixStyle(FeatureMix):
    """Domain generalization with MixStyle (Zhou et al. 2021, https://arxiv.org/abs/2104.02008).

    mu and sigma are an image's mean and standard deviation per channel, lambda its own share, j its partner:

        y_i = (lambda sigma_i + (1 - lambda) sigma_j) (x_i - mu_i) / sigma_i + lambda mu_i + (1 - lambda) mu_j
    """

    def blend(self, x: Tensor, partners: Tensor, own_share: Tensor) -> Tensor:
        # No gradient goes through the statistics, as in the paper.
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
    """Inside the context the model mixes (``random`` or ``crossdomain``, if given)."""
    return activation(model, MixStyle, True, mix)


def run_without_mixstyle(model: nn.Module) -> AbstractContextManager[None]:
    """Inside the context the model does not mix."""
    return activation(model, MixStyle, False)
