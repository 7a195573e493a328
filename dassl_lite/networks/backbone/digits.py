"""A small network for images of digits, 32 x 32 pixels."""

from __future__ import annotations

from torch import Tensor, nn

from dassl_lite.networks.backbone.base import Backbone
from dassl_lite.networks.build import BACKBONE_REGISTRY
from dassl_lite.utils.torchtools import init_network_weights


class DigitNet(Backbone):
    """Four blocks of 3 x 3 convolution, ReLU and max pooling: images (B, 3, 32, 32) to features (B, 4 * width)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (3, width, width, width):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers)
        self._out_features = 4 * width

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (32, 32):
            raise ValueError(f"images must have 32 x 32 pixels, not {tuple(x.shape[2:])}; set INPUT.SIZE (32, 32)")
        return self.layers(x).flatten(1)


@BACKBONE_REGISTRY.register()
def cnn_digitsdg(**kwargs: object) -> DigitNet:
    """The network of Zhou et al. 2020 (https://arxiv.org/abs/2003.06054) for DigitsDG."""
    model = DigitNet()
    init_network_weights(model, init_type="kaiming")
    return model
