"""Steps of an optimizer whose gradients are in float16: none is left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SCALES_TRIED = 32  # from 2 ** 16 down to 2 ** -15


def scaled_step(scaler: torch.amp.GradScaler, optimizer: Any, loss: Tensor, backward: Callable[[Tensor], None]) -> int:
    """One step of an optimizer with a scaled loss, repeated with half the scale as long as gradients overflow.

    A ``GradScaler`` leaves such a step out instead, while the learning-rate schedule moves on.

    Args:
        scaler: of the gradients; its scale is updated.
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
