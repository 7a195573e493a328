"""ShapesNet: drawings of 48 kinds of tilted shapes in dim light; the source of the built-in suite, as ImageNet is."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._drawn.classes import SHAPESNET
from dassl_lite.datasets._drawn.suite import ObjectDataset


@DATASET_REGISTRY.register()
class ShapesNet(ObjectDataset):
    """16 shapes with three fills each; the demo model knows the words."""

    dataset_dir = "shapesnet"
    object_classes = SHAPESNET
