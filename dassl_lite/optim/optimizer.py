"""Optimisers under Dassl's names, made from the OPTIM part of the config.

A plug-in adds its own with ``@OPTIMIZER_REGISTRY.register()`` on a function ``name(params, optim_cfg)``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dassl_lite.config import CN
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.registry import Registry
from dassl_lite.utils.torchtools import unwrap

logger = logging.getLogger(__name__)

OPTIMIZER_REGISTRY = Registry("optimizer")

Params = list[Any]  # parameters, or param groups as torch takes them


@OPTIMIZER_REGISTRY.register()
def adam(params: Params, cfg: CN) -> Optimizer:
    """Adam with L2 weight decay, https://arxiv.org/abs/1412.6980."""
    return torch.optim.Adam(params, **_rate_and_decay(cfg), **_adam(cfg))


@OPTIMIZER_REGISTRY.register()
def amsgrad(params: Params, cfg: CN) -> Optimizer:
    """Adam that keeps the largest second moment seen, https://arxiv.org/abs/1904.09237."""
    return torch.optim.Adam(params, **_rate_and_decay(cfg), **_adam(cfg), amsgrad=True)


@OPTIMIZER_REGISTRY.register()
def sgd(params: Params, cfg: CN) -> Optimizer:
    """Stochastic gradient descent with momentum."""
    return torch.optim.SGD(
        params,
        **_rate_and_decay(cfg),
        momentum=cfg.MOMENTUM,
        dampening=cfg.SGD_DAMPNING,
        nesterov=cfg.SGD_NESTEROV,
    )


@OPTIMIZER_REGISTRY.register()
def rmsprop(params: Params, cfg: CN) -> Optimizer:
    """RMSprop with momentum."""
    return torch.optim.RMSprop(params, **_rate_and_decay(cfg), momentum=cfg.MOMENTUM, alpha=cfg.RMSPROP_ALPHA)


@OPTIMIZER_REGISTRY.register()
def radam(params: Params, cfg: CN) -> Optimizer:
    """Rectified Adam, https://arxiv.org/abs/1908.03265."""
    # Decoupled, because the authors' implementation, which Dassl carries, shrinks the weights themselves.
    return torch.optim.RAdam(params, **_rate_and_decay(cfg), **_adam(cfg), decoupled_weight_decay=True)


@OPTIMIZER_REGISTRY.register()
def adamw(params: Params, cfg: CN) -> Optimizer:
    """Adam with decoupled weight decay, https://arxiv.org/abs/1711.05101."""
    return torch.optim.AdamW(params, **_rate_and_decay(cfg), **_adam(cfg))


AVAI_OPTIMS = OPTIMIZER_REGISTRY.registered_names()  # Dassl's name for the list


def build_optimizer(
    model: nn.Module | Iterable[Any], optim_cfg: CN, param_groups: Iterable[Any] | None = None
) -> Optimizer:
    """The optimiser that ``optim_cfg.NAME`` names.

    Args:
        model: a module, or parameters (or param groups). Frozen parameters may be among them: they keep their place,
            so that a layer can be opened later.
        optim_cfg: the OPTIM node. With STAGED_LR, the module's NEW_LAYERS train at LR and all else at
            LR * BASE_LR_MULT.
        param_groups: used instead of ``model``'s parameters; it then carries its own rates, STAGED_LR is ignored.

    Raises:
        UserError: unknown name, nothing that requires gradients, or STAGED_LR without a module.
    """
    make = OPTIMIZER_REGISTRY.get(optim_cfg.NAME)
    if param_groups is not None:
        if optim_cfg.STAGED_LR:
            logger.warning("OPTIM.STAGED_LR is ignored: the trainer gives its own parameter groups")
        params = list(param_groups)
    elif optim_cfg.STAGED_LR:
        params = _staged_groups(model, optim_cfg)
    else:
        params = list(model.parameters() if isinstance(model, nn.Module) else model)
    params = [_materialised(item) for item in params]
    _require_trainable(params)
    return make(params, optim_cfg)


def _rate_and_decay(cfg: CN) -> dict[str, Any]:
    return {"lr": cfg.LR, "weight_decay": cfg.WEIGHT_DECAY}


def _adam(cfg: CN) -> dict[str, Any]:
    if cfg.LR > (1 - cfg.ADAM_BETA1) * torch.finfo(torch.float32).max:  # its first step is LR / (1 - ADAM_BETA1)
        raise UserError(f"OPTIM.LR is {cfg.LR:g}; lower it: {cfg.NAME}'s first step would be too large for a float32")
    return {"betas": (cfg.ADAM_BETA1, cfg.ADAM_BETA2), "eps": cfg.get("ADAM_EPS", 1e-8)}


def _staged_groups(model: nn.Module | Iterable[Any], cfg: CN) -> Params:
    """Two groups: the base layers at the reduced rate, then the new layers at the full one."""
    if not isinstance(model, nn.Module):
        raise UserError(f"OPTIM.STAGED_LR needs a module to look the layers up in, not a {type(model).__name__}")
    module = unwrap(model)
    new_layers = {cfg.NEW_LAYERS} if isinstance(cfg.NEW_LAYERS, str) else set(cfg.NEW_LAYERS)
    # A layer is a child or a parameter that the module holds itself; Dassl leaves the latter out of training.
    layers = dict.fromkeys(name.split(".")[0] for name, _ in module.named_parameters())
    if absent := sorted(new_layers.difference(layers)):
        # Only a warning, since trainers with several models share one OPTIM node among them.
        logger.warning("OPTIM.NEW_LAYERS: no layer %s in %s (%s)", absent, type(module).__name__, ", ".join(layers))
    groups: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name, parameter in module.named_parameters():
        groups[name.split(".")[0] in new_layers].append(parameter)
    return [{"params": groups[0], "lr": cfg.LR * cfg.BASE_LR_MULT}, {"params": groups[1]}]


def _materialised(item: Any) -> Any:
    """A param group whose parameters are a list, so that they can be looked at and still be used."""
    if not isinstance(item, Mapping):
        return item
    params = item["params"]
    return {**item, "params": [params] if isinstance(params, Tensor) else list(params)}


def _require_trainable(params: Params) -> None:
    tensors = [p for item in params for p in (item["params"] if isinstance(item, Mapping) else [item])]
    if not any(getattr(p[1] if isinstance(p, tuple) else p, "requires_grad", False) for p in tensors):
        raise UserError(
            f"nothing to train: none of the {len(tensors)} parameter(s) given to the optimizer is trainable"
        )
