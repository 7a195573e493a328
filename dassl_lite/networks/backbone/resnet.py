"""torchvision's ResNets without the classifier, optionally with MixStyle or EFDMix between the stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dassl_lite.networks.backbone.base import pretrained_weights
from dassl_lite.networks.build import BACKBONE_REGISTRY
from dassl_lite.networks.ops.mixing import EFDMix, FeatureMix, MixStyle
from dassl_lite.utils.lazy import lazy_module

if TYPE_CHECKING:
    from dassl_lite.networks.backbone import resnet_network as network
else:
    network = lazy_module("dassl_lite.networks.backbone.resnet_network")

_ARCHITECTURES: dict[str, tuple[str, list[int]]] = {
    "resnet18": ("BasicBlock", [2, 2, 2, 2]),
    "resnet34": ("BasicBlock", [3, 4, 6, 3]),
    "resnet50": ("Bottleneck", [3, 4, 6, 3]),
    "resnet101": ("Bottleneck", [3, 4, 23, 3]),
    "resnet152": ("Bottleneck", [3, 8, 36, 3]),
}
_MIXED: dict[str, type[FeatureMix]] = {"ms": MixStyle, "efdmix": EFDMix}


def _register(name: str, architecture: str, mixer: type[FeatureMix] | None = None, stages: Sequence[int] = ()) -> None:
    def build(pretrained: bool = True, **kwargs: object) -> network.ResNet:
        block, layers = _ARCHITECTURES[architecture]
        mixing = mixer(p=0.5, alpha=0.1) if mixer else None
        model = network.ResNet(getattr(network.resnet, block), layers, mixing, stages)
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


def __getattr__(name: str) -> Any:
    """The class of these networks: ``from dassl.modeling.backbone.resnet import ResNet``."""
    if name == "ResNet":
        return network.ResNet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
