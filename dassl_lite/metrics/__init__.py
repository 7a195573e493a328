"""Metrics of a batch: accuracy and distances."""

from dassl_lite.metrics.accuracy import compute_accuracy
from dassl_lite.metrics.distance import compute_distance_matrix, cosine_distance, euclidean_squared_distance

__all__ = ["compute_accuracy", "compute_distance_matrix", "cosine_distance", "euclidean_squared_distance"]
