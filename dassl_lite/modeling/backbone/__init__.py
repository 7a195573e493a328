"""Backbones by Dassl's names; importing this registers them."""

from dassl_lite.modeling.backbone import digits, resnet, torchvision_models
from dassl_lite.modeling.backbone.base import Backbone
from dassl_lite.modeling.build import BACKBONE_REGISTRY, build_backbone

__all__ = ["BACKBONE_REGISTRY", "Backbone", "build_backbone", "digits", "resnet", "torchvision_models"]
