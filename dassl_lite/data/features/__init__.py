"""The feature cache: image features extracted once and kept on disk."""

from dassl_lite.data.features.extract import Encoder
from dassl_lite.data.features.listing import StoreSummary, describe_stores
from dassl_lite.data.features.store import Features, FeatureSpec, FeatureStore
from dassl_lite.data.features.team import Team

__all__ = ["Encoder", "FeatureSpec", "FeatureStore", "Features", "StoreSummary", "Team", "describe_stores"]
