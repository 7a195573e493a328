"""ShapesNetV2: new images of the ShapesNet classes in somewhat harder conditions, like ImageNetV2."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._drawn.classes import SHAPESNET
from dassl_lite.datasets._drawn.looks import PHOTO_AGAIN
from dassl_lite.datasets._drawn.suite import ObjectDataset


@DATASET_REGISTRY.register()
class ShapesNetV2(ObjectDataset):
    """Smaller objects and more noise; sometimes there is something beside the object or in front of it."""

    dataset_dir = "shapesnetv2"
    object_classes = SHAPESNET
    look = PHOTO_AGAIN
