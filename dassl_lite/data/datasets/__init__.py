"""Dassl's import path for what a dataset file needs, ``dassl.data.datasets``: four names, nothing of its own."""

from __future__ import annotations

from dassl_lite.data.dataset import DATASET_REGISTRY, DatasetBase, build_dataset
from dassl_lite.data.datum import Datum

__all__ = ["DATASET_REGISTRY", "DatasetBase", "Datum", "build_dataset"]
