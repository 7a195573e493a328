"""Other torchvision models under Dassl's names, without their last linear layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from dassl_lite.networks.backbone.base import Backbone, pretrained_weights
from dassl_lite.networks.build import BACKBONE_REGISTRY
from dassl_lite.utils.lazy import lazy_module

if TYPE_CHECKING:
    import torchvision
else:
    torchvision = lazy_module("torchvision")

_NAMES = {
    "alexnet": "alexnet",
    "vgg16": "vgg16",
    "mobilenetv2": "mobilenet_v2",
    **{f"efficientnet_b{i}": f"efficientnet_b{i}" for i in range(8)},
    **{f"shufflenet_v2_x{width}": f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")},
}


class TorchvisionBackbone(Backbone):
    """A torchvision classifier whose last linear layer is removed.

    Args:
        architecture: torchvision's name.
        pretrained: load torchvision's ImageNet weights.
    """

    def __init__(self, architecture: str, pretrained: bool = True) -> None:
        super().__init__()
        model = torchvision.models.get_model(architecture, weights=None)
        if pretrained:
            model.load_state_dict(pretrained_weights(architecture))
        name, last = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, nn.Identity())
        self._out_features = last.in_features
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def _register(name: str, architecture: str) -> None:
    def build(pretrained: bool = True, **kwargs: object) -> TorchvisionBackbone:
        return TorchvisionBackbone(architecture, pretrained)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"torchvision's {architecture}."
    BACKBONE_REGISTRY.register(build)


for _name, _architecture in _NAMES.items():
    _register(_name, _architecture)
