"""Fine-grained: thirty pairs of colour and fill, whatever the shape."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._drawn.classes import PAINTS
from dassl_lite.datasets._drawn.suite import ObjectDataset


@DATASET_REGISTRY.register()
class Paints(ObjectDataset):
    """Colours are hard to name in dim and tinted light."""

    dataset_dir = "paints"
    object_classes = PAINTS
