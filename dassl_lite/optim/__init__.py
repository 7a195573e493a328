"""Optimisers and learning-rate schedules with Dassl's names and semantics."""

from dassl_lite.optim.lr_scheduler import (
    LR_SCHEDULER_REGISTRY,
    ConstantWarmupScheduler,
    LinearWarmupScheduler,
    WarmupScheduler,
    build_lr_scheduler,
)
from dassl_lite.optim.optimizer import OPTIMIZER_REGISTRY, build_optimizer

__all__ = [
    "LR_SCHEDULER_REGISTRY",
    "OPTIMIZER_REGISTRY",
    "ConstantWarmupScheduler",
    "LinearWarmupScheduler",
    "WarmupScheduler",
    "build_lr_scheduler",
    "build_optimizer",
]
