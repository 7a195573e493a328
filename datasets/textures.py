"""Twelve textures that fill the frame; three of the words are known from pre-training, as fills of shapes."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._drawn.fields import TEXTURES
from dassl_lite.datasets._drawn.suite import FieldDataset, PerClass


@DATASET_REGISTRY.register()
class Textures(FieldDataset):
    """Two colours mixed by a pattern."""

    dataset_dir = "textures"
    template = "a photo of a {} texture."
    painters = TEXTURES
    per_class = PerClass(test=60)
