"""The feature cache: image features extracted once and kept on disk."""

from dassl_lite.data.features.extract import Encoder
from dassl_lite.data.features.store import Features, FeatureSpec, FeatureStore, StoreSummary, describe_stores

__all__ = ["Encoder", "FeatureSpec", "FeatureStore", "Features", "StoreSummary", "describe_stores"]
