"""A convolution whose kernel depends on the image."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dassl_lite.networks.ops.attention import Attention


class Conv2dDynamic(nn.Module):
    """Dynamic convolution of Sun et al. 2022, https://arxiv.org/abs/2205.13913: a kernel that all images share, and
    four templates (grouped k x k, 1 x 1, k x 1, 1 x k), each weighted by the image's attention a:

        y = W * x + sum_i a_i(x) (T_i * x)

    Args:
        in_channels, out_channels, stride, bias: as in ``nn.Conv2d``.
        kernel_size: k, odd.
        padding: k // 2, so that all templates give maps of one size.
        squeeze: see ``Attention``.
        attention_in_channels: channels of ``attention_x``, where it is not ``x``.
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
                f"kernel_size {kernel_size} and padding {padding}: the kernel must be odd, and the padding half of it"
            )

        def convolution(height: int, width: int, **more: Any) -> nn.Conv2d:
            half = (height // 2, width // 2)
            return nn.Conv2d(in_channels, out_channels, (height, width), stride, half, bias=bias, **more)

        k = kernel_size
        self.conv = convolution(k, k)
        # The names are those in the authors' weights.
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
        """(B, in_channels, H, W) to (B, out_channels, H', W'); ``attention_x`` (B, C', H'', W'') has the say on a."""
        weights = self.attention(x if attention_x is None else attention_x)
        out = self.conv(x)
        for weight, template in zip(weights.unbind(dim=1), self.kernel_templates.values(), strict=True):
            out = out + weight[:, None, None, None] * template(x)
        return out
