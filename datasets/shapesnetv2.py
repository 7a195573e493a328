"""ShapesNet's classes in new pictures, taken in somewhat harder conditions (as ImageNetV2)."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._drawn.classes import SHAPESNET
from dassl_lite.datasets._drawn.looks import PHOTO_AGAIN
from dassl_lite.datasets._drawn.suite import ObjectDataset


@DATASET_REGISTRY.register()
class ShapesNetV2(ObjectDataset):
    """Smaller objects, more noise, now and then something beside or in front."""

    dataset_dir = "shapesnetv2"
    object_classes = SHAPESNET
    look = PHOTO_AGAIN
