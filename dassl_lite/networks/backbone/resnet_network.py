"""The network of `resnet`, in its own module so that backbones can be listed without torchvision.

Shapes: B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models import resnet

from dassl_lite.networks.backbone.base import Backbone


class ResNet(resnet.ResNet, Backbone):
    """He et al. 2016, https://arxiv.org/abs/1512.03385, with the parameter names of torchvision and Dassl.

    Args:
        block, layers: as in torchvision.
        mixer: layer to apply after each of ``mixed_stages``.
        mixed_stages: numbers from 1 to 3.
    """

    def __init__(
        self,
        block: type[resnet.BasicBlock | resnet.Bottleneck],
        layers: list[int],
        mixer: nn.Module | None = None,
        mixed_stages: Sequence[int] = (),
    ) -> None:
        super().__init__(block, layers)
        self._out_features = 512 * block.expansion
        self.fc: nn.Module = nn.Identity()
        self.mixer = mixer
        self.mixed_stages = tuple(mixed_stages)

    def featuremaps(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the feature maps (B, out_features, H / 32, W / 32) of the last stage."""
        for name in ("conv1", "bn1", "relu", "maxpool"):
            x = self.get_submodule(name)(x)
        for number in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{number}")(x)
            if self.mixer is not None and number in self.mixed_stages:
                x = self.mixer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.featuremaps(x).mean(dim=(2, 3))
