"""Textures: drawings of 12 textures that fill the frame; the demo model knows three of them, as fills of shapes."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._drawn.fields import TEXTURES
from dassl_lite.datasets._drawn.suite import FieldDataset, PerClass


@DATASET_REGISTRY.register()
class Textures(FieldDataset):
    """A pattern of two colours."""

    dataset_dir = "textures"
    template = "a photo of a {} texture."
    painters = TEXTURES
    per_class = PerClass(test=60)
