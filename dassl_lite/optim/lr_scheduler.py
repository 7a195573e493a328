"""Learning-rate schedules under Dassl's names, made from the OPTIM part of the config.

One step per epoch, after its last batch. With a warm-up of w epochs, epochs 0 .. w-1 use the warm-up's rate and epoch
w the schedule's first one. WARMUP_RECOUNT says where the schedule starts counting: at its own 0 (so it never gets to
its end), or at w, as if it had run during the warm-up.

A plug-in adds its own with ``@LR_SCHEDULER_REGISTRY.register()`` on a function ``name(optimizer, optim_cfg)``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from dassl_lite.config import CN
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.registry import Registry
from dassl_lite.utils.safe_load import Inert

logger = logging.getLogger(__name__)

LR_SCHEDULER_REGISTRY = Registry("learning-rate schedule")


class MultiStepLR(lr_scheduler.MultiStepLR):
    """torch's, with a state of plain values (torch keeps a Counter, which not every safe loader reads)."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "milestones": dict(self.milestones)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        milestones = state_dict["milestones"]  # inert if Dassl pickled it: the config's own are kept then
        kept = Counter(milestones) if isinstance(milestones, Mapping) else self.milestones
        super().load_state_dict({**state_dict, "milestones": kept})


class WarmupScheduler(LRScheduler):
    """Runs the warm-up's own rates for ``warmup_epoch`` epochs, then hands over to ``successor``.

    The state holds the successor's state, not the successor: Dassl pickles the object, whose copy then steps an
    optimiser that nobody uses, so that a resumed run trains on at a frozen rate.

    Args:
        optimizer: whose groups' rates are set.
        successor: the schedule after the warm-up, made for the same optimiser.
        warmup_epoch: length in epochs.
        verbose: no longer does anything; torch 2.7 has taken it away, on which Dassl's schedulers crash.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def warmup_lr(self, base_lr: Any) -> Any:
        """Rate of a group in the warm-up's epoch ``self.last_epoch``; ``base_lr`` is its full rate."""
        raise NotImplementedError

    def get_lr(self) -> list[Any]:
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        return [self.warmup_lr(base_lr) for base_lr in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch < self.warmup_epoch:
            super().step(epoch)
        else:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; the rates themselves come back with the optimiser's state.

        A successor that Dassl pickled is taken too, if the file was read by ``safe_load``: its numbers are used.

        Raises:
            UserError: the successor's state is neither.
        """
        state = dict(state_dict)
        self.successor.load_state_dict(_successor_state(state.pop("successor"), self.successor))
        super().load_state_dict(state)


def _successor_state(saved: Any, successor: LRScheduler) -> dict[str, Any]:
    if isinstance(saved, Mapping):
        return dict(saved)
    if isinstance(saved, Inert) and isinstance(saved.state, Mapping):
        own = successor.state_dict()
        return {**own, **{k: v for k, v in saved.state.items() if k in own and not isinstance(v, Inert)}}
    raise UserError(f"the learning-rate schedule in the checkpoint cannot be read: found {type(saved).__name__}")


class ConstantWarmupScheduler(WarmupScheduler):
    """Every group at ``cons_lr``."""

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        cons_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self, base_lr: Any) -> Any:
        return self.cons_lr


class LinearWarmupScheduler(WarmupScheduler):
    """Epoch 0 at ``min_lr``, epoch e at e / warmup_epoch of the full rate."""

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        min_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self, base_lr: Any) -> Any:
        return self.min_lr if self.last_epoch == 0 else base_lr * self.last_epoch / self.warmup_epoch


@LR_SCHEDULER_REGISTRY.register()
def single_step(optimizer: Optimizer, cfg: CN) -> LRScheduler:
    """Times GAMMA every STEPSIZE epochs (of several, the last counts; 0 or less: every MAX_EPOCH)."""
    size = cfg.STEPSIZE[-1] if isinstance(cfg.STEPSIZE, Sequence) and cfg.STEPSIZE else cfg.STEPSIZE
    if isinstance(size, bool) or not isinstance(size, int):
        raise UserError(f"OPTIM.STEPSIZE is {cfg.STEPSIZE!r}; single_step needs a whole number of epochs")
    return lr_scheduler.StepLR(optimizer, step_size=size if size > 0 else cfg.MAX_EPOCH, gamma=cfg.GAMMA)


@LR_SCHEDULER_REGISTRY.register()
def multi_step(optimizer: Optimizer, cfg: CN) -> LRScheduler:
    """Times GAMMA at each epoch in STEPSIZE."""
    milestones = cfg.STEPSIZE
    if not isinstance(milestones, tuple | list) or not all(isinstance(epoch, int) for epoch in milestones):
        raise UserError(f"OPTIM.STEPSIZE is {milestones!r}; multi_step needs a list of epochs, like (30, 60)")
    return MultiStepLR(optimizer, milestones=list(milestones), gamma=cfg.GAMMA)


@LR_SCHEDULER_REGISTRY.register()
def cosine(optimizer: Optimizer, cfg: CN) -> LRScheduler:
    """Half a cosine from LR to MIN_LR in MAX_EPOCH epochs, https://arxiv.org/abs/1608.03983 without restarts."""
    floor = cfg.get("MIN_LR", 0.0)  # a trainer written for Dassl may make its own OPTIM node
    return lr_scheduler.CosineAnnealingLR(optimizer, T_max=float(cfg.MAX_EPOCH), eta_min=floor)  # type: ignore[arg-type]


def build_lr_scheduler(optimizer: Optimizer, optim_cfg: CN, epoch_steps: int | None = None) -> LRScheduler:
    """The schedule that ``optim_cfg`` describes, with its warm-up; call ``step()`` at the end of every epoch.

    Args:
        epoch_steps: how often ``step()`` is called in an epoch: its number of batches for SCHEDULE_UNIT batch. None:
            once, as every trainer of Dassl's does.

    Raises:
        UserError: unknown schedule or warm-up, a STEPSIZE that the schedule cannot use, no epochs.
    """
    make = LR_SCHEDULER_REGISTRY.get(optim_cfg.LR_SCHEDULER)
    if optim_cfg.MAX_EPOCH <= 0:
        raise UserError(f"OPTIM.MAX_EPOCH is {optim_cfg.MAX_EPOCH}; it must be at least 1")
    if epoch_steps is None and optim_cfg.get("SCHEDULE_UNIT") == "batch":
        logger.warning("OPTIM.SCHEDULE_UNIT batch is left out: this trainer changes its learning rate by epochs only")
    if epoch_steps not in (None, 1):
        optim_cfg = _in_steps(optim_cfg, epoch_steps)
    scheduler = make(optimizer, optim_cfg)
    epochs = optim_cfg.WARMUP_EPOCH
    if epochs <= 0:
        return scheduler
    if not optim_cfg.WARMUP_RECOUNT:
        # Only the count moves on: the next value is still computed from the full rate by the recursive formula,
        # so cosine differs here from its closed form. Published recipes that switch recounting off rely on it.
        scheduler.last_epoch = epochs
    if optim_cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(optimizer, scheduler, epochs, optim_cfg.WARMUP_CONS_LR)
    if optim_cfg.WARMUP_TYPE == "linear":
        return LinearWarmupScheduler(optimizer, scheduler, epochs, optim_cfg.WARMUP_MIN_LR)
    raise unknown("OPTIM.WARMUP_TYPE", optim_cfg.WARMUP_TYPE, ("constant", "linear"))


def _in_steps(cfg: CN, epoch_steps: int) -> CN:
    """``cfg`` with the epochs that a schedule counts turned into steps."""
    cfg = cfg.clone()
    cfg.defrost()
    several = isinstance(cfg.STEPSIZE, Sequence)
    cfg.STEPSIZE = tuple(n * epoch_steps for n in cfg.STEPSIZE) if several else cfg.STEPSIZE * epoch_steps
    cfg.MAX_EPOCH, cfg.WARMUP_EPOCH = cfg.MAX_EPOCH * epoch_steps, cfg.WARMUP_EPOCH * epoch_steps
    return cfg


# Dassl's names.
AVAI_SCHEDS = LR_SCHEDULER_REGISTRY.registered_names()
_BaseWarmupScheduler = WarmupScheduler
