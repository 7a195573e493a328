"""Learning-rate schedules under Dassl's names, built from the OPTIM node of the config.

A schedule takes one step after each epoch. With a warm-up of w epochs, epochs 0 .. w-1 use the warm-up's rate and epoch
w is the schedule's first. WARMUP_RECOUNT sets where the schedule starts: at its epoch 0, so that it never reaches its
end, or at epoch w, as if it had been running during the warm-up.

A plug-in adds one with ``@LR_SCHEDULER_REGISTRY.register()`` on a function ``name(optimizer, optim_cfg)``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from dassl_lite.config import CN, cfg_default, completed
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.registry import Registry
from dassl_lite.utils.safe_load import Inert

logger = get_logger(__name__)

LR_SCHEDULER_REGISTRY = Registry("learning-rate schedule")


class MultiStepLR(lr_scheduler.MultiStepLR):
    """torch's MultiStepLR with plain values as its state; torch's Counter is refused by some safe loaders."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "milestones": dict(self.milestones)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        milestones = state_dict["milestones"]  # an Inert if Dassl pickled it; then keep the config's
        kept = Counter(milestones) if isinstance(milestones, Mapping) else self.milestones
        super().load_state_dict({**state_dict, "milestones": kept})


class WarmupScheduler(LRScheduler):
    """Warms up for ``warmup_epoch`` epochs, then hands over to ``successor``.

    Its state contains the successor's state. Dassl pickles the successor itself; the unpickled copy then steps its own
    copy of the optimiser, so a resumed run continues at a constant rate.

    Args:
        optimizer: its groups' rates are set.
        successor: the schedule after the warm-up, built for the same optimiser.
        warmup_epoch: length of the warm-up in epochs.
        last_epoch: as in torch's schedules.
        verbose: ignored. torch 2.7 removed it, so Dassl's schedules crash there.
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

    def warmup_lr(self, base_lr: float | Tensor) -> float | Tensor:
        """Warm-up rate in epoch ``self.last_epoch`` for a group with the full rate ``base_lr``."""
        raise NotImplementedError

    def get_lr(self) -> list[float | Tensor]:
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
        """Restore a state; the rates themselves come back with the optimiser's state.

        A successor pickled by Dassl works too if ``safe_load`` read the file: its numbers are used.

        Raises:
            UserError: the successor's state cannot be read.
        """
        state = dict(state_dict)
        self.successor.load_state_dict(_successor_state(state.pop("successor"), self.successor))
        super().load_state_dict(state)


def _successor_state(saved: object, successor: LRScheduler) -> dict[str, Any]:
    if isinstance(saved, Mapping):
        return dict(saved)
    if isinstance(saved, Inert) and isinstance(saved.state, Mapping):
        own = successor.state_dict()
        return {**own, **{k: v for k, v in saved.state.items() if k in own and not isinstance(v, Inert)}}
    raise UserError(f"the checkpoint's learning-rate schedule cannot be read: its type is {type(saved).__name__}")


class ConstantWarmupScheduler(WarmupScheduler):
    """All groups at ``cons_lr`` during the warm-up."""

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

    def warmup_lr(self, base_lr: float | Tensor) -> float | Tensor:
        return self.cons_lr


class LinearWarmupScheduler(WarmupScheduler):
    """``min_lr`` in epoch 0, then the full rate times epoch / warmup_epoch."""

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

    def warmup_lr(self, base_lr: float | Tensor) -> float | Tensor:
        return self.min_lr if self.last_epoch == 0 else base_lr * self.last_epoch / self.warmup_epoch


@LR_SCHEDULER_REGISTRY.register()
def single_step(optimizer: Optimizer, cfg: CN) -> LRScheduler:
    """Multiply by GAMMA every STEPSIZE epochs (if several are given, the last; 0 or less: every MAX_EPOCH)."""
    size = cfg.STEPSIZE[-1] if isinstance(cfg.STEPSIZE, Sequence) and cfg.STEPSIZE else cfg.STEPSIZE
    if isinstance(size, bool) or not isinstance(size, int):
        raise UserError(f"OPTIM.STEPSIZE is {cfg.STEPSIZE!r}; single_step needs a whole number of epochs")
    return lr_scheduler.StepLR(optimizer, step_size=size if size > 0 else cfg.MAX_EPOCH, gamma=cfg.GAMMA)


@LR_SCHEDULER_REGISTRY.register()
def multi_step(optimizer: Optimizer, cfg: CN) -> LRScheduler:
    """Multiply by GAMMA at each epoch in STEPSIZE."""
    milestones = cfg.STEPSIZE
    if not isinstance(milestones, tuple | list) or not all(isinstance(epoch, int) for epoch in milestones):
        raise UserError(f"OPTIM.STEPSIZE is {milestones!r}; multi_step needs a list of epochs, like (30, 60)")
    return MultiStepLR(optimizer, milestones=list(milestones), gamma=cfg.GAMMA)


@LR_SCHEDULER_REGISTRY.register()
def cosine(optimizer: Optimizer, cfg: CN) -> LRScheduler:
    """Half a cosine from LR to MIN_LR in MAX_EPOCH epochs (https://arxiv.org/abs/1608.03983, without restarts)."""
    floor = cfg.get("MIN_LR", 0.0)  # a trainer written for Dassl may bring its own OPTIM node
    return lr_scheduler.CosineAnnealingLR(optimizer, T_max=float(cfg.MAX_EPOCH), eta_min=floor)  # type: ignore[arg-type]


def build_lr_scheduler(optimizer: Optimizer, optim_cfg: CN, epoch_steps: int | None = None) -> LRScheduler:
    """Build the schedule and warm-up that ``optim_cfg`` describes.

    Args:
        optimizer: its groups' rates are set.
        optim_cfg: the OPTIM node.
        epoch_steps: calls of ``step()`` per epoch: the number of batches for SCHEDULE_UNIT batch. None: one, at the end
            of the epoch, as in Dassl.

    Raises:
        UserError: an unknown schedule or warm-up, a STEPSIZE that the schedule cannot use, or MAX_EPOCH below 1.
    """
    optim_cfg = completed(optim_cfg, cfg_default.OPTIM)
    make = LR_SCHEDULER_REGISTRY.get(optim_cfg.LR_SCHEDULER)
    if optim_cfg.MAX_EPOCH <= 0:
        raise UserError(f"OPTIM.MAX_EPOCH is {optim_cfg.MAX_EPOCH}; it must be at least 1")
    if epoch_steps is None and optim_cfg.get("SCHEDULE_UNIT") == "batch":
        logger.warning("OPTIM.SCHEDULE_UNIT batch is ignored: this trainer changes its learning rate once per epoch")
    if epoch_steps not in (None, 1):
        optim_cfg = _in_steps(optim_cfg, epoch_steps)
    scheduler = make(optimizer, optim_cfg)
    epochs = optim_cfg.WARMUP_EPOCH
    if epochs <= 0:
        return scheduler
    if not optim_cfg.WARMUP_RECOUNT:
        # Only the epoch counter advances: the recursive formula still starts from the full rate, so cosine differs from
        # its closed form here. Published recipes that set WARMUP_RECOUNT False rely on it.
        scheduler.last_epoch = epochs
    if optim_cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(optimizer, scheduler, epochs, optim_cfg.WARMUP_CONS_LR)
    if optim_cfg.WARMUP_TYPE == "linear":
        return LinearWarmupScheduler(optimizer, scheduler, epochs, optim_cfg.WARMUP_MIN_LR)
    raise unknown("OPTIM.WARMUP_TYPE", optim_cfg.WARMUP_TYPE, ("constant", "linear"))


def _in_steps(cfg: CN, epoch_steps: int) -> CN:
    """A copy of ``cfg`` with the schedule's epochs converted to steps."""
    cfg = cfg.clone()
    cfg.defrost()
    several = isinstance(cfg.STEPSIZE, Sequence)
    cfg.STEPSIZE = tuple(n * epoch_steps for n in cfg.STEPSIZE) if several else cfg.STEPSIZE * epoch_steps
    cfg.MAX_EPOCH, cfg.WARMUP_EPOCH = cfg.MAX_EPOCH * epoch_steps, cfg.WARMUP_EPOCH * epoch_steps
    return cfg


def idle_keys(optim_cfg: CN) -> dict[str, str]:
    """Keys of OPTIM that `build_lr_scheduler` does not read with these values, each with the reason."""
    name = optim_cfg.LR_SCHEDULER
    idle: dict[str, str] = {}
    if name == "cosine":
        idle |= dict.fromkeys(("STEPSIZE", "GAMMA"), "LR_SCHEDULER is cosine")
    elif name in ("single_step", "multi_step"):
        idle["MIN_LR"] = f"LR_SCHEDULER is {name}"
    if optim_cfg.WARMUP_EPOCH <= 0:
        keys = ("WARMUP_TYPE", "WARMUP_CONS_LR", "WARMUP_MIN_LR", "WARMUP_RECOUNT")
        idle |= dict.fromkeys(keys, "there is no warm-up: WARMUP_EPOCH is not set")
    else:
        other = "WARMUP_CONS_LR" if optim_cfg.WARMUP_TYPE == "linear" else "WARMUP_MIN_LR"
        idle[other] = f"WARMUP_TYPE is {optim_cfg.WARMUP_TYPE}"
    if optim_cfg.EPOCHS_BY_SHOTS:
        idle["MAX_EPOCH"] = "EPOCHS_BY_SHOTS sets it"
    return idle


# Dassl's names.
AVAI_SCHEDS = LR_SCHEDULER_REGISTRY.registered_names()
_BaseWarmupScheduler = WarmupScheduler
