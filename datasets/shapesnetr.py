"""ShapesNetR: 24 ShapesNet classes as paintings, like ImageNet-R."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._drawn.classes import SHAPESNET_R
from dassl_lite.datasets._drawn.looks import PAINTING
from dassl_lite.datasets._drawn.suite import ObjectDataset


@DATASET_REGISTRY.register()
class ShapesNetR(ObjectDataset):
    """Bold contours, few tones, blotchy backgrounds; labels in alphabetical order."""

    dataset_dir = "shapesnet-r"
    object_classes = SHAPESNET_R
    look = PAINTING
