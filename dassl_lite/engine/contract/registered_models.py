"""A trainer's models by name, each with its optimiser and schedule, and what happens to all of them alike."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from dassl_lite.engine.parallel import distributed
from dassl_lite.utils.errors import NotFiniteError, unknown


class RegisteredModels:
    """The part of Dassl's contract that concerns models: naming them, their mode, gradients, steps, learning rates."""

    epoch = 0

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, torch.optim.Optimizer | None] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()

    def register_model(
        self,
        name: str = "model",
        model: nn.Module | None = None,
        optim: torch.optim.Optimizer | None = None,
        sched: Any = None,
    ) -> None:
        """Name a model; its folder of checkpoints has the same name. ``optim`` and ``sched`` may be None (frozen)."""
        if "_models" not in self.__dict__:
            raise AttributeError("call super().__init__() before register_model()")
        if name in self._models:
            raise ValueError(f"a model named '{name}' is registered already; names must differ")
        if model is None:
            raise ValueError(f"register_model('{name}') got no model")
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self, names: str | Iterable[str] | None = None) -> list[str]:
        """All registered names, or ``names`` as a list after checking that each is registered."""
        if names is None:
            return list(self._models)
        wanted = [names] if isinstance(names, str) else list(names)
        for name in wanted:
            if name not in self._models:
                raise unknown("registered model", name, self._models)
        return wanted

    def set_model_mode(self, mode: str = "train", names: str | Iterable[str] | None = None) -> None:
        """Put models into "train" or "eval" (also called "test") mode."""
        if mode not in ("train", "eval", "test"):
            raise unknown("model mode", mode, ("train", "eval", "test"))
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def update_lr(self, names: str | Iterable[str] | None = None) -> None:
        """Step the schedules; call it after an epoch's last batch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names: str | Iterable[str] | None = None) -> float:
        """Learning rate of the first parameter group of the first model that has an optimiser."""
        optims = [self._optims[name] for name in self.get_model_names(names)]
        return next((optim.param_groups[0]["lr"] for optim in optims if optim is not None), 0.0)

    def model_zero_grad(self, names: str | Iterable[str] | None = None) -> None:
        """Clear the gradients."""
        for optim in self._optimisers(names):
            optim.zero_grad()

    def model_backward(self, loss: torch.Tensor) -> None:
        """Back-propagate a finite loss."""
        self.detect_anomaly(loss)
        loss.backward()
        distributed.average_gradients(self._models.values())

    def model_update(self, names: str | Iterable[str] | None = None) -> None:
        """Step the optimisers."""
        for optim in self._optimisers(names):
            optim.step()

    def model_backward_and_update(self, loss: torch.Tensor, names: str | Iterable[str] | None = None) -> None:
        """Clear gradients, back-propagate, step."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def detect_anomaly(self, loss: torch.Tensor) -> None:
        """Stop at a loss that is infinite or not a number; what was saved before stays."""
        if not torch.isfinite(loss).all():
            step = f"epoch {self.epoch + 1}, batch {getattr(self, 'batch_idx', 0) + 1}"
            raise self._not_finite(f"the loss is infinite or NaN at {step}")

    def require_finite_weights(self) -> None:
        """Stop at the end of an epoch whose steps made a parameter infinite or not a number, before it is saved: the
        loss does not show it before the next step."""
        for model in self._models.values():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and not torch.isfinite(parameter).all():
                    raise self._not_finite(f"{name} is infinite or NaN after epoch {self.epoch + 1}")

    def _not_finite(self, what: str) -> NotFiniteError:
        return NotFiniteError(
            f"{what}; lower OPTIM.LR (now {self.get_current_lr():g}) or use a wider precision. "
            "Checkpoints written before stay as they are."
        )

    def _optimisers(self, names: str | Iterable[str] | None) -> list[torch.optim.Optimizer]:
        return [optim for name in self.get_model_names(names) if (optim := self._optims[name]) is not None]
