"""Tiles: drawn aerial views of 10 kinds of land; the demo model knows neither the words nor the images."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._drawn.fields import TILES
from dassl_lite.datasets._drawn.suite import FieldDataset, PerClass


@DATASET_REGISTRY.register()
class Tiles(FieldDataset):
    """Forests, rivers, roofs and the like."""

    dataset_dir = "tiles"
    template = "a centered satellite photo of {}."
    painters = TILES
    per_class = PerClass(test=60)
