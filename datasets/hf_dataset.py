"""HFDataset: images in Parquet or Arrow files, or on Hugging Face's hub; docs/howto/shards.md describes it."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.data.sharded.dataset import HuggingFaceDataset


@DATASET_REGISTRY.register()
class HFDataset(HuggingFaceDataset):
    """``cfg.DATASET.ROOT`` is a folder of .parquet or .arrow files, or a hub id."""
