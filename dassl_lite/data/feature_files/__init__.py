"""Feature files: the image and text features of a dataset as one ``.npz``, to train on without images or CLIP.

``file`` defines the format, and reads and writes it; ``arrays`` checks each array on reading. ``convert`` reads
layouts that others publish. ``dataset`` makes a feature file a dataset with the same draws and classes as any other.
"""

from dassl_lite.data.feature_files.convert import convert_features, first_of_each_class
from dassl_lite.data.feature_files.dataset import FeatureDataset, PrecomputedTransform
from dassl_lite.data.feature_files.file import (
    FeatureFile,
    FeaturePart,
    read_feature_file,
    write_feature_file,
    write_feature_folder,
)

__all__ = [
    "FeatureDataset",
    "FeatureFile",
    "FeaturePart",
    "PrecomputedTransform",
    "convert_features",
    "first_of_each_class",
    "read_feature_file",
    "write_feature_file",
    "write_feature_folder",
]
