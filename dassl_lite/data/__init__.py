"""Data: what a dataset is, how shots are drawn, how images become batches."""

from __future__ import annotations

from dassl_lite.data.classes import ClassList, ClassMatch, match_classes, normalise_name
from dassl_lite.data.dataset import DATASET_REGISTRY, DatasetBase, build_dataset
from dassl_lite.data.datum import Datum
from dassl_lite.data.folder import FolderDataset
from dassl_lite.data.splits import Split, read_split, save_split, split_folders, split_trainval
from dassl_lite.data.templates import IMAGENET_TEMPLATES_SELECT

__all__ = [
    "DATASET_REGISTRY",
    "IMAGENET_TEMPLATES_SELECT",
    "ClassList",
    "ClassMatch",
    "DatasetBase",
    "Datum",
    "FolderDataset",
    "Split",
    "build_dataset",
    "match_classes",
    "normalise_name",
    "read_split",
    "save_split",
    "split_folders",
    "split_trainval",
]
