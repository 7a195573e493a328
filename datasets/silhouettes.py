"""Twenty shapes without a pattern, all known from pre-training."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._drawn.classes import SILHOUETTES
from dassl_lite.datasets._drawn.suite import ObjectDataset, PerClass


@DATASET_REGISTRY.register()
class Silhouettes(ObjectDataset):
    """Solid shapes in any colour."""

    dataset_dir = "silhouettes"
    object_classes = SILHOUETTES
    per_class = PerClass(test=40)
