"""The feature cache: image features extracted once and kept on disk."""

from dassl_lite.data.feature_cache.extract import Encoder
from dassl_lite.data.feature_cache.listing import StoreSummary, describe_stores
from dassl_lite.data.feature_cache.process_group import ProcessGroup
from dassl_lite.data.feature_cache.store import Features, FeatureSpec, FeatureStore

__all__ = ["Encoder", "FeatureSpec", "FeatureStore", "Features", "ProcessGroup", "StoreSummary", "describe_stores"]
