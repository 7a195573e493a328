"""ShapesNetSketch: the ShapesNet classes in pencil on paper, like ImageNet-Sketch."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._drawn.classes import SHAPESNET
from dassl_lite.datasets._drawn.looks import PENCIL
from dassl_lite.datasets._drawn.suite import ObjectDataset


@DATASET_REGISTRY.register()
class ShapesNetSketch(ObjectDataset):
    """Outlines and shading, no colour."""

    dataset_dir = "shapesnet-sketch"
    object_classes = SHAPESNET
    look = PENCIL
