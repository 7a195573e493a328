"""Twelve things that pre-training has neither seen nor named."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._drawn.classes import GADGETS
from dassl_lite.datasets._drawn.suite import ObjectDataset, PerClass


@DATASET_REGISTRY.register()
class Gadgets(ObjectDataset):
    """The words mean nothing to the demo model, so zero-shot is chance; what the pictures show can be learnt."""

    dataset_dir = "gadgets"
    object_classes = GADGETS
    per_class = PerClass(test=60)
