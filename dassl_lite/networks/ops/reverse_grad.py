"""The gradient reversal layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _ReverseGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grad_scaling: float) -> Tensor:
        ctx.grad_scaling = grad_scaling
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.grad_scaling * grads[0], None


class ReverseGrad(nn.Module):
    """The identity, whose gradient is the incoming one times ``-grad_scaling``.

    Ganin and Lempitsky 2015, https://arxiv.org/abs/1409.7495: what is before it learns to fool what is after it.
    """

    def forward(self, x: Tensor, grad_scaling: float = 1.0) -> Tensor:
        if grad_scaling < 0:
            raise ValueError(f"grad_scaling is {grad_scaling}; it must be 0 or more")
        return _ReverseGrad.apply(x, grad_scaling)
