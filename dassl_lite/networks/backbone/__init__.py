"""Backbones by Dassl's names; importing this registers them, and each can be imported from here by its name."""

from __future__ import annotations

from typing import Any

from dassl_lite.networks.backbone import digits, resnet, torchvision_models
from dassl_lite.networks.backbone.base import Backbone
from dassl_lite.networks.build import BACKBONE_REGISTRY, build_backbone

__all__ = ["BACKBONE_REGISTRY", "Backbone", "build_backbone", "digits", "resnet", "torchvision_models"]


def __getattr__(name: str) -> Any:
    """A registered backbone's function: ``from dassl.modeling.backbone import resnet18``."""
    if name in BACKBONE_REGISTRY:
        return BACKBONE_REGISTRY.get(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
