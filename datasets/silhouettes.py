"""Silhouettes: drawings of 20 plain shapes; the demo model knows all of them."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._drawn.classes import SILHOUETTES
from dassl_lite.datasets._drawn.suite import ObjectDataset, PerClass


@DATASET_REGISTRY.register()
class Silhouettes(ObjectDataset):
    """Solid shapes of any colour."""

    dataset_dir = "silhouettes"
    object_classes = SILHOUETTES
    per_class = PerClass(test=40)
