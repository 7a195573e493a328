"""Optimizer steps with float16 gradients, none of which is skipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SCALES_TRIED = 32  # from 2 ** 16 down to 2 ** -15


def scaled_step(scaler: torch.amp.GradScaler, optimizer: Any, loss: Tensor, backward: Callable[[Tensor], None]) -> int:
    """Take one optimizer step with a scaled loss; while gradients overflow, halve the scale and retry.

    A ``GradScaler`` would skip such a step, while the learning-rate schedule moves on.

    Args:
        scaler: scales the loss; its scale is updated.
        loss: unscaled, a scalar or what ``backward`` takes.
        backward: sets the gradients anew from the scaled loss, and keeps its graph.

    Returns:
        How often the step was repeated.

    Raises:
        OverflowError: gradients are infinite or NaN at every scale tried.
    """
    steps: list[Any] = []
    noting = optimizer.register_step_post_hook(lambda *_: steps.append(True))
    try:
        for repeats in range(SCALES_TRIED):
            backward(scaler.scale(loss))
            scaler.step(optimizer)  # unless gradients are infinite; then a smaller scale comes next
            scaler.update()
            if steps:
                return repeats
    finally:
        noting.remove()
    raise OverflowError("gradients are infinite or NaN, whatever they are scaled by")
