"""Layers: dynamic convolution and its attention, gradient reversal, a sequence with several inputs.

Shapes: B images, C channels, H x W pixels, n kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """The weight of each of several kernels for an image (Sun et al. 2022, https://arxiv.org/abs/2205.13913):

        a = softmax(W2 relu(W1 mean(x)))

    Args:
        in_channels: number of channels C of the feature maps.
        out_features: number of kernels n.
        squeeze: hidden width; None: a sixteenth of the channels.
        bias: whether the two layers have a bias.
    """

    def __init__(self, in_channels: int, out_features: int, squeeze: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.squeeze = squeeze or in_channels // 16
        if self.squeeze < 1:
            raise ValueError(f"a sixteenth of {in_channels} channels is less than one; set squeeze")
        self.fc1 = nn.Linear(in_channels, self.squeeze, bias=bias)
        self.fc2 = nn.Linear(self.squeeze, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, C, H, W) to weights (B, n) that sum to 1."""
        return self.fc2(self.fc1(x.mean(dim=(2, 3))).relu()).softmax(dim=-1)


class Conv2dDynamic(nn.Module):
    """Dynamic convolution (Sun et al. 2022, https://arxiv.org/abs/2205.13913): a kernel for all images, plus four
    templates (grouped k x k, 1 x 1, k x 1, 1 x k), each weighted by the image's attention a:

        y = W * x + sum_i a_i(x) (T_i * x)

    Args:
        in_channels, out_channels, stride, bias: as in ``nn.Conv2d``.
        kernel_size: k; must be odd.
        padding: must be k // 2, so that all templates give maps of the same size.
        squeeze: see ``Attention``.
        attention_in_channels: number of channels of ``attention_x``, if they differ from those of ``x``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        padding: int,
        bias: bool = True,
        squeeze: int | None = None,
        attention_in_channels: int | None = None,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0 or padding != kernel_size // 2:
            raise ValueError(
                f"kernel_size {kernel_size} and padding {padding}: the first must be odd, the second half of it"
            )

        def convolution(height: int, width: int, groups: int = 1) -> nn.Conv2d:
            half = (height // 2, width // 2)
            return nn.Conv2d(in_channels, out_channels, (height, width), stride, half, bias=bias, groups=groups)

        k = kernel_size
        self.conv = convolution(k, k)
        # The names match the authors' weights.
        self.kernel_templates = nn.ModuleDict(
            {
                "conv_nn": convolution(k, k, groups=min(in_channels, out_channels)),
                "conv_11": convolution(1, 1),
                "conv_n1": convolution(k, 1),
                "conv_1n": convolution(1, k),
            }
        )
        self.attention = Attention(attention_in_channels or in_channels, len(self.kernel_templates), squeeze, bias)

    def forward(self, x: Tensor, attention_x: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W'); ``attention_x`` (B, C', H'', W'') replaces x in a(x)."""
        weights = self.attention(x if attention_x is None else attention_x)
        out = self.conv(x)
        for weight, template in zip(weights.unbind(dim=1), self.kernel_templates.values(), strict=True):
            out = out + weight[:, None, None, None] * template(x)
        return out


class _ReverseGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grad_scaling: float) -> Tensor:
        ctx.grad_scaling = grad_scaling
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.grad_scaling * grads[0], None


class ReverseGrad(nn.Module):
    """The identity, but its gradient is multiplied by ``-grad_scaling`` (https://arxiv.org/abs/1409.7495).

    The layers before it learn to fool the layers after it.
    """

    def forward(self, x: Tensor, grad_scaling: float = 1.0) -> Tensor:
        if grad_scaling < 0:
            raise ValueError(f"grad_scaling is {grad_scaling}; it must be 0 or more")
        return _ReverseGrad.apply(x, grad_scaling)


class Sequential2(nn.Sequential):
    """Like ``nn.Sequential``, but a tuple that a module returns becomes the arguments of the next one."""

    def forward(self, *inputs: object) -> Any:
        values: Any = inputs
        for module in self:
            values = module(*values) if isinstance(values, tuple) else module(values)
        return values
