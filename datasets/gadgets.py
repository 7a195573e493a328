"""Gadgets: drawings of 12 objects that the demo model has neither seen nor read about."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._drawn.classes import GADGETS
from dassl_lite.datasets._drawn.suite import ObjectDataset, PerClass


@DATASET_REGISTRY.register()
class Gadgets(ObjectDataset):
    """Zero-shot accuracy is at chance, as the demo model does not know the class names; the images can be learned."""

    dataset_dir = "gadgets"
    object_classes = GADGETS
    per_class = PerClass(test=60)
