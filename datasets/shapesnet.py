"""The source of the drawn suite: 48 kinds of shape, photographed at a tilt."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._drawn.classes import SHAPESNET
from dassl_lite.datasets._drawn.suite import ObjectDataset


@DATASET_REGISTRY.register()
class ShapesNet(ObjectDataset):
    """Three fills for each of sixteen shapes; their words are known from pre-training."""

    dataset_dir = "shapesnet"
    object_classes = SHAPESNET
