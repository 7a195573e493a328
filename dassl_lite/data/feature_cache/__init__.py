"""The feature cache: image features that are computed once and kept on disk.

``FeatureStore`` (``store``) gives the features of any images and computes those that are missing (``extract``),
together with the other processes of a run (``ProcessGroup``). Rows of features are in memory or on disk (``rows``),
where they survive crashes, full disks and damaged files (``shards``), with one writer at a time (``lock``).
``FeatureLoader`` (``loader``) gives batches of them in the order of an image loader.
"""

from dassl_lite.data.feature_cache.extract import Encoder
from dassl_lite.data.feature_cache.loader import FeatureLoader
from dassl_lite.data.feature_cache.store import (
    Features,
    FeatureSpec,
    FeatureStore,
    ProcessGroup,
    StoreSummary,
    describe_stores,
)

__all__ = [
    "Encoder",
    "FeatureLoader",
    "FeatureSpec",
    "FeatureStore",
    "Features",
    "ProcessGroup",
    "StoreSummary",
    "describe_stores",
]
