"""WebDataset: images in tar shards, on disk or behind URLs; docs/howto/shards.md describes it."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.data.sharded.dataset import TarDataset


@DATASET_REGISTRY.register()
class WebDataset(TarDataset):
    """``cfg.DATASET.ROOT`` is a folder of .tar files or a pattern; ``DATASET.SHARDS`` may list each split's files."""
