"""Features: what a CLIP gave for a dataset's images, computed elsewhere; see README.md here for the file's format."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.data.feature_files import FeatureDataset


@DATASET_REGISTRY.register()
class Features(FeatureDataset):
    """``cfg.DATASET.FILE`` is the .npz file; no image and no CLIP is needed."""
