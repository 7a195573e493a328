"""EFDMix, and Dassl's functions that switch it; give those without a context to ``model.apply``."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import Tensor, nn

from dassl_lite.networks.ops._feature_mix import FeatureMix, activation


class EFDMix(FeatureMix):
    """Exact feature distribution mixing (Zhang et al. 2022, https://arxiv.org/abs/2203.07740).

    The k-th smallest value of a channel moves towards the partner's k-th smallest, by one minus the own share; the
    gradient passes as if nothing were mixed.
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
    """Inside the context the model mixes (``random`` or ``crossdomain``, if given)."""
    return activation(model, EFDMix, True, mix)


def run_without_efdmix(model: nn.Module) -> AbstractContextManager[None]:
    """Inside the context the model does not mix."""
    return activation(model, EFDMix, False)
