"""ShapesNetA: 16 ShapesNet classes in adverse conditions, like ImageNet-A."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._drawn.classes import SHAPESNET_A
from dassl_lite.datasets._drawn.looks import PHOTO_HARD
from dassl_lite.datasets._drawn.suite import ObjectDataset


@DATASET_REGISTRY.register()
class ShapesNetA(ObjectDataset):
    """Small objects with clutter around them and bars in front; labels in alphabetical order."""

    dataset_dir = "shapesnet-a"
    object_classes = SHAPESNET_A
    look = PHOTO_HARD
