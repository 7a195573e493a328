"""Optimisers by the names of Dassl's ``optim.radam``, for code that builds them itself: torch's, with its defaults.

Its file is that of RAdam's authors (https://arxiv.org/abs/1908.03265), who shrink the weights themselves: decoupled
weight decay, as torch calls it. ``OPTIM.NAME radam`` and ``adamw`` need nothing from here.
"""

from __future__ import annotations

from typing import Any

import torch

from dassl_lite.utils.errors import UserError


class RAdam(torch.optim.RAdam):
    """Rectified Adam; while the variance cannot be rectified yet, steps along the mean gradient.

    Args:
        params: as every optimiser takes them.
        lr, betas, eps, weight_decay: as in Adam.
        degenerated_to_sgd: False would skip those first steps, which torch's cannot.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        degenerated_to_sgd: bool = True,
    ) -> None:
        if not degenerated_to_sgd:
            raise UserError(f"{type(self).__name__}: degenerated_to_sgd False is not supported; leave it out")
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay=True)


class PlainRAdam(RAdam):
    """The same, which the authors have written twice."""


class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay; eps is added to the corrected root of the second moment, as in the paper.

    Args:
        params: as every optimiser takes them.
        lr, betas, eps, weight_decay: as in Adam.
        warmup: steps with a rising rate; here OPTIM.WARMUP_EPOCH does that.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup: int = 0,
    ) -> None:
        if warmup:
            raise UserError(f"AdamW: warmup {warmup} is not supported; set OPTIM.WARMUP_EPOCH instead")
        super().__init__(params, lr, betas, eps, weight_decay)
