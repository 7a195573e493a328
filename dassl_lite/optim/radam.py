"""Optimisers under the names of Dassl's ``optim.radam``, for code that constructs them directly.

They are torch's, with Dassl's defaults. Dassl copies the RAdam authors' file (https://arxiv.org/abs/1908.03265), which
decays the weights themselves; torch calls this decoupled weight decay. ``OPTIM.NAME radam`` and ``adamw`` do not use
this module.
"""

from __future__ import annotations

import torch
from torch.optim.optimizer import ParamsT

from dassl_lite.utils.errors import UserError


class RAdam(torch.optim.RAdam):
    """Rectified Adam. In its first steps, before the variance can be rectified, it follows the mean gradient.

    Args:
        params: parameters or param groups.
        lr, betas, eps, weight_decay: as in Adam.
        degenerated_to_sgd: must be True; False would skip those first steps, which torch does not support.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        degenerated_to_sgd: bool = True,
    ) -> None:
        if not degenerated_to_sgd:
            raise UserError(f"{type(self).__name__}: degenerated_to_sgd=False is not supported; leave it out")
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay=True)


class PlainRAdam(RAdam):
    """The same algorithm; the authors implemented it twice."""


class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay; eps is added to the bias-corrected root, as in the paper.

    Args:
        params: parameters or param groups.
        lr, betas, eps, weight_decay: as in Adam.
        warmup: must be 0; use OPTIM.WARMUP_EPOCH instead.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup: int = 0,
    ) -> None:
        if warmup:
            raise UserError(f"AdamW: warmup={warmup} is not supported; set OPTIM.WARMUP_EPOCH instead")
        super().__init__(params, lr, betas, eps, weight_decay)
