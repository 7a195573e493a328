"""Attention over kernels, by image."""

from __future__ import annotations

from torch import Tensor, nn


class Attention(nn.Module):
    """How much each of several kernels counts for an image (Sun et al. 2022, https://arxiv.org/abs/2205.13913):

        a = softmax(W2 relu(W1 mean(x)))

    Args:
        in_channels: channels C of the feature maps.
        out_features: number of kernels n.
        squeeze: width between the two layers; None: a sixteenth of the channels.
        bias: of both layers.
    """

    def __init__(self, in_channels: int, out_features: int, squeeze: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.squeeze = squeeze or in_channels // 16
        if self.squeeze < 1:
            raise ValueError(f"a sixteenth of {in_channels} channels is less than one; give squeeze")
        self.fc1 = nn.Linear(in_channels, self.squeeze, bias=bias)
        self.fc2 = nn.Linear(self.squeeze, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, C, H, W) to weights (B, n), of sum 1."""
        return self.fc2(self.fc1(x.mean(dim=(2, 3))).relu()).softmax(dim=-1)
