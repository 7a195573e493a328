"""Image networks for Dassl's own trainers: backbones, heads and layers. CLIP is in ``dassl_lite.models``."""

from dassl_lite.networks.backbone import Backbone
from dassl_lite.networks.build import (
    BACKBONE_REGISTRY,
    HEAD_REGISTRY,
    NETWORK_REGISTRY,
    build_backbone,
    build_head,
    build_network,
)
from dassl_lite.networks.head import MLP

__all__ = [
    "BACKBONE_REGISTRY",
    "HEAD_REGISTRY",
    "MLP",
    "NETWORK_REGISTRY",
    "Backbone",
    "build_backbone",
    "build_head",
    "build_network",
]
