"""Paints: drawings of 30 combinations of colour and fill, on any shape; fine-grained."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._drawn.classes import PAINTS
from dassl_lite.datasets._drawn.suite import ObjectDataset


@DATASET_REGISTRY.register()
class Paints(ObjectDataset):
    """Dim, tinted light makes the colours hard to name."""

    dataset_dir = "paints"
    object_classes = PAINTS
