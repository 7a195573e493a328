"""Networks of Dassl's own trainers: backbones, heads and layers. CLIP is in ``dassl_lite.models``."""

from dassl_lite.modeling.backbone import Backbone
from dassl_lite.modeling.build import (
    BACKBONE_REGISTRY,
    HEAD_REGISTRY,
    NETWORK_REGISTRY,
    build_backbone,
    build_head,
    build_network,
)
from dassl_lite.modeling.head import MLP

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
