"""The feature cache: image features extracted once and kept on disk."""

from dassl_lite.data.feature_cache.extract import Encoder
from dassl_lite.data.feature_cache.store import (
    Features,
    FeatureSpec,
    FeatureStore,
    ProcessGroup,
    StoreSummary,
    describe_stores,
)

__all__ = ["Encoder", "FeatureSpec", "FeatureStore", "Features", "ProcessGroup", "StoreSummary", "describe_stores"]
