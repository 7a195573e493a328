"""torchvision's ResNets without the classifier, optionally with MixStyle or EFDMix between the stages.

Shapes: B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models import resnet

from dassl_lite.networks.backbone.base import Backbone, pretrained_weights
from dassl_lite.networks.build import BACKBONE_REGISTRY
from dassl_lite.networks.ops.mixing import EFDMix, FeatureMix, MixStyle

_ARCHITECTURES: dict[str, tuple[type[resnet.BasicBlock | resnet.Bottleneck], list[int]]] = {
    "resnet18": (resnet.BasicBlock, [2, 2, 2, 2]),
    "resnet34": (resnet.BasicBlock, [3, 4, 6, 3]),
    "resnet50": (resnet.Bottleneck, [3, 4, 6, 3]),
    "resnet101": (resnet.Bottleneck, [3, 4, 23, 3]),
    "resnet152": (resnet.Bottleneck, [3, 8, 36, 3]),
}
_MIXED: dict[str, type[FeatureMix]] = {"ms": MixStyle, "efdmix": EFDMix}


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


def _register(name: str, architecture: str, mixer: type[FeatureMix] | None = None, stages: Sequence[int] = ()) -> None:
    def build(pretrained: bool = True, **kwargs: object) -> ResNet:
        block, layers = _ARCHITECTURES[architecture]
        model = ResNet(block, layers, mixer(p=0.5, alpha=0.1) if mixer else None, stages)
        if pretrained:
            weights = pretrained_weights(architecture)
            model.load_state_dict({key: value for key, value in weights.items() if not key.startswith("fc.")})
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{architecture}, {mixer.__name__} after stages {stages}." if mixer else f"{architecture}."
    BACKBONE_REGISTRY.register(build)


for _name in _ARCHITECTURES:
    _register(_name, _name)
# Dassl's names: resnet18_ms_l123 mixes after stages 1, 2 and 3.
for _name in ("resnet18", "resnet50", "resnet101"):
    for _tag, _mixer in _MIXED.items():
        for _stages in ((1,), (1, 2), (1, 2, 3)):
            _register(f"{_name}_{_tag}_l{''.join(map(str, _stages))}", _name, _mixer, _stages)
# Names in Dassl's first version, which older code uses.
for _name in ("resnet18", "resnet50"):
    _register(f"{_name}_ms123", _name, MixStyle, (1, 2, 3))
