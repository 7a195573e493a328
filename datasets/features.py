"""Features: precomputed image and text features in an .npz file; datasets/README.md describes the format."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.data.feature_files import FeatureDataset


@DATASET_REGISTRY.register()
class Features(FeatureDataset):
    """``cfg.DATASET.FILE`` is the .npz file; neither images nor CLIP are needed."""
