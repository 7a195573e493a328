"""Optimisers under Dassl's names, built from the OPTIM node of the config.

A plug-in adds one with ``@OPTIMIZER_REGISTRY.register()`` on a function ``name(params, optim_cfg)``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from dassl_lite.config import CN, cfg_default, completed
from dassl_lite.startup import in_tool
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.registry import Registry
from dassl_lite.utils.torchtools import unwrap

logger = get_logger(__name__)

OPTIMIZER_REGISTRY = Registry("optimizer")

_MANY = 8  # number of parameters from which one call for all is cheaper on a CPU
_SAME_TOGETHER = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop)  # not RAdam

Param = Tensor | tuple[str, Tensor] | dict[str, Any]  # a parameter, a named parameter, or a param group


@OPTIMIZER_REGISTRY.register()
def adam(params: ParamsT, cfg: CN) -> Optimizer:
    """Adam with L2 weight decay, https://arxiv.org/abs/1412.6980."""
    return torch.optim.Adam(params, **_rate_and_decay(cfg), **_adam(cfg))


@OPTIMIZER_REGISTRY.register()
def amsgrad(params: ParamsT, cfg: CN) -> Optimizer:
    """Adam with the maximum of all second moments so far, https://arxiv.org/abs/1904.09237."""
    return torch.optim.Adam(params, **_rate_and_decay(cfg), **_adam(cfg), amsgrad=True)


@OPTIMIZER_REGISTRY.register()
def sgd(params: ParamsT, cfg: CN) -> Optimizer:
    """Stochastic gradient descent with momentum."""
    return torch.optim.SGD(
        params,
        **_rate_and_decay(cfg),
        momentum=cfg.MOMENTUM,
        dampening=cfg.SGD_DAMPNING,
        nesterov=cfg.SGD_NESTEROV,
    )


@OPTIMIZER_REGISTRY.register()
def rmsprop(params: ParamsT, cfg: CN) -> Optimizer:
    """RMSprop with momentum."""
    return torch.optim.RMSprop(params, **_rate_and_decay(cfg), momentum=cfg.MOMENTUM, alpha=cfg.RMSPROP_ALPHA)


@OPTIMIZER_REGISTRY.register()
def radam(params: ParamsT, cfg: CN) -> Optimizer:
    """Rectified Adam, https://arxiv.org/abs/1908.03265."""
    # Decoupled, because the authors' implementation, which Dassl copies, decays the weights themselves.
    return torch.optim.RAdam(params, **_rate_and_decay(cfg), **_adam(cfg), decoupled_weight_decay=True)


@OPTIMIZER_REGISTRY.register()
def adamw(params: ParamsT, cfg: CN) -> Optimizer:
    """Adam with decoupled weight decay, https://arxiv.org/abs/1711.05101."""
    return torch.optim.AdamW(params, **_rate_and_decay(cfg), **_adam(cfg))


# Keys of OPTIM that only some of these optimisers read.
_READ_BY = {
    "MOMENTUM": ("sgd", "rmsprop"),
    "SGD_DAMPNING": ("sgd",),
    "SGD_NESTEROV": ("sgd",),
    "RMSPROP_ALPHA": ("rmsprop",),
    **dict.fromkeys(("ADAM_BETA1", "ADAM_BETA2", "ADAM_EPS"), ("adam", "amsgrad", "radam", "adamw")),
}


def idle_keys(optim_cfg: CN) -> dict[str, str]:
    """Keys of OPTIM that `build_optimizer` does not read with these values, each with the reason."""
    idle = {}
    if optim_cfg.NAME in AVAI_OPTIMS:  # a plug-in's optimiser may read any key
        idle = {key: f"{optim_cfg.NAME} has none" for key, names in _READ_BY.items() if optim_cfg.NAME not in names}
    if not optim_cfg.STAGED_LR:
        idle |= dict.fromkeys(("NEW_LAYERS", "BASE_LR_MULT"), "STAGED_LR is False")
    return idle


AVAI_OPTIMS = OPTIMIZER_REGISTRY.registered_names()  # Dassl's name for the list


def build_optimizer(
    model: nn.Module | Iterable[Param], optim_cfg: CN, param_groups: Iterable[Param] | None = None
) -> Optimizer:
    """Build the optimiser named by ``optim_cfg.NAME``.

    Args:
        model: a module, or parameters (or param groups). Frozen parameters are kept, so that they can be unfrozen
            later.
        optim_cfg: the OPTIM node. With STAGED_LR, the module's NEW_LAYERS train at LR and all others at
            LR * BASE_LR_MULT.
        param_groups: replaces the parameters of ``model``; may set its own rates, so STAGED_LR is ignored.

    Raises:
        UserError: the name is unknown, no parameter requires gradients, or STAGED_LR is set without a module.
    """
    optim_cfg = completed(optim_cfg, cfg_default.OPTIM)
    make = OPTIMIZER_REGISTRY.get(optim_cfg.NAME)
    if param_groups is not None:
        if optim_cfg.STAGED_LR:
            logger.warning("OPTIM.STAGED_LR is ignored: the trainer defines its own parameter groups")
        params = list(param_groups)
    elif optim_cfg.STAGED_LR:
        params = _staged_groups(model, optim_cfg)
    else:
        params = list(model.parameters() if isinstance(model, nn.Module) else model)
    params = [_materialised(item) for item in params]
    _require_trainable(params)
    return _faster_on_a_cpu(make(params, optim_cfg))


def _faster_on_a_cpu(optimizer: Optimizer) -> Optimizer:
    """Have torch update many small parameters with one call per operation.

    On a CPU it would update them one by one, from Python, which takes up to twice as long. The bits are the same in
    single and double precision, but not in half precision. (Its fused CPU kernels are faster still, but SGD's is wrong
    where a gradient's strides differ from the parameter's, and fails where a parameter has no gradient.)
    """
    groups = optimizer.param_groups
    tensors = [parameter for group in groups for parameter in group["params"]]
    same = all(one.device.type == "cpu" and one.dtype in (torch.float32, torch.float64) for one in tensors)
    if type(optimizer) in _SAME_TOGETHER and same and len(tensors) >= _MANY:
        for group in groups:
            if group["foreach"] is None and not group.get("fused"):
                group["foreach"] = True
    return optimizer


def _rate_and_decay(cfg: CN) -> dict[str, Any]:
    return {"lr": cfg.LR, "weight_decay": cfg.WEIGHT_DECAY}


def _adam(cfg: CN) -> dict[str, Any]:
    if cfg.LR > (1 - cfg.ADAM_BETA1) * torch.finfo(torch.float32).max:  # its first step is LR / (1 - ADAM_BETA1)
        raise UserError(f"OPTIM.LR is {cfg.LR:g}; lower it: the first step of {cfg.NAME} would overflow float32")
    return {"betas": (cfg.ADAM_BETA1, cfg.ADAM_BETA2), "eps": cfg.get("ADAM_EPS", 1e-8)}


def _staged_groups(model: nn.Module | Iterable[Param], cfg: CN) -> list[Param]:
    """Two groups: the base layers at the reduced rate, then the new layers at the full rate."""
    if not isinstance(model, nn.Module):
        raise UserError(f"OPTIM.STAGED_LR needs a module with named layers, not a {type(model).__name__}")
    module = unwrap(model)
    new_layers = {cfg.NEW_LAYERS} if isinstance(cfg.NEW_LAYERS, str) else set(cfg.NEW_LAYERS)
    # A layer is a child module or a parameter of the module itself; Dassl never trains the latter.
    layers = dict.fromkeys(name.split(".")[0] for name, _ in module.named_parameters())
    if absent := sorted(new_layers.difference(layers)):
        # Only a warning, because all models of a trainer share one OPTIM node.
        logger.warning(
            f"OPTIM.NEW_LAYERS: {type(module).__name__} has no layer {', '.join(absent)}; it has {', '.join(layers)}"
        )
    groups: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name, parameter in module.named_parameters():
        groups[name.split(".")[0] in new_layers].append(parameter)
    return [{"params": groups[0], "lr": cfg.LR * cfg.BASE_LR_MULT}, {"params": groups[1]}]


def _materialised(item: Param) -> Param:
    """Turn the parameters of a param group into a list: an iterator could be read only once."""
    if not isinstance(item, Mapping):
        return item
    params = item["params"]
    return {**item, "params": [params] if isinstance(params, Tensor) else list(params)}


def _require_trainable(params: Iterable[Param]) -> None:
    tensors = [p for item in params for p in (item["params"] if isinstance(item, Mapping) else [item])]
    if not any(getattr(p[1] if isinstance(p, tuple) else p, "requires_grad", False) for p in tensors):
        raise UserError(f"nothing to train: none of the optimizer's {len(tensors)} parameter(s) requires gradients")


# ---- torch's compiler ---------------------------------------------------------------------------------------------

_COMPILER = "torch._dynamo"


def leave_out_compiler() -> None:
    """Keep torch's optimisers from importing its compiler as long as nothing else does.

    They import it to say where it may not trace them, which takes about as long as importing torch. Until it is
    loaded, nothing is traced; once it is, they say so as usual. Called only in our own processes: it changes torch.
    """
    if _COMPILER in sys.modules:
        return
    for cls in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.RAdam):
        if getattr(vars(cls).get("step"), "__code__", None) is not None and _wrapped(cls.step, "_use_grad"):
            cls.step = _step_without_compiler(cls.step)  # type: ignore[method-assign]
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = getattr(Optimizer, name)
        if _wrapped(method, "inner"):
            _call_without_compiler(method)


def _wrapped(method: Any, name: str) -> bool:
    """Whether a method is wrapped by torch's function with this inner name: it may differ in other versions."""
    return hasattr(method, "__wrapped__") and method.__code__.co_name == name


def _step_without_compiler(step: Any) -> Callable[..., Any]:
    """Do what torch's ``_use_grad_for_differentiable`` does around a step, without the compiler."""

    @functools.wraps(step)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _COMPILER in sys.modules:
            return step(self, *args, **kwargs)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step.__wrapped__(self, *args, **kwargs)

    return call


def _call_without_compiler(method: Any) -> None:
    """Have ``method`` call the function that torch's ``_disable_dynamo`` wrapped and keeps as an attribute."""
    plain = method.__wrapped__

    def call(*args: Any, **kwargs: Any) -> Any:
        if _COMPILER not in sys.modules:
            return plain(*args, **kwargs)
        del plain.__dynamo_disable
        return method(*args, **kwargs)

    plain.__dynamo_disable = call


if in_tool():
    leave_out_compiler()
