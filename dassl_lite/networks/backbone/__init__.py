"""Backbones under Dassl's names: importing this package registers them, and each can be imported from it by name."""

from __future__ import annotations

from typing import Any

from dassl_lite.networks.backbone import digits, resnet, torchvision_models
from dassl_lite.networks.backbone.base import Backbone
from dassl_lite.networks.build import BACKBONE_REGISTRY, build_backbone

__all__ = ["BACKBONE_REGISTRY", "Backbone", "build_backbone", "digits", "resnet", "torchvision_models"]


def __getattr__(name: str) -> Any:
    """Return the function of a registered backbone: ``from dassl.modeling.backbone import resnet18``."""
    if name in BACKBONE_REGISTRY:
        return BACKBONE_REGISTRY.get(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
