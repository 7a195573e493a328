"""Everything between files on disk and batches of tensors.

A dataset lists images as Datums (``datum``, ``dataset``, ``folder``, ``layouts/``), split into training, validation
and test images (``splits``), of which a few per class are drawn (``fewshot``). ``classes`` says which class of one
dataset is which class of another. ``transforms/`` and ``loaders`` turn images into batches, ``feature_cache/`` turns
them into features that are computed once, and ``feature_files/`` reads features computed elsewhere. ``DataManager``
builds all of this from the config. ``doctor`` checks a dataset on disk.

Imports ``utils``, ``config`` and ``downloads`` only; it knows no method and no model.
"""

from __future__ import annotations

from dassl_lite.data.classes import ClassList, ClassMatch, match_classes, normalise_name
from dassl_lite.data.dataset import DATASET_REGISTRY, DatasetBase, build_dataset, published_name
from dassl_lite.data.datum import Datum
from dassl_lite.data.folder import FolderDataset
from dassl_lite.data.imagenet import IMAGENET_TEMPLATES_60, IMAGENET_TEMPLATES_SELECT
from dassl_lite.data.images import UnreadableImageError, read_image
from dassl_lite.data.layouts import split_folders
from dassl_lite.data.loaders import DatasetWrapper, ImageLoader, build_data_loader
from dassl_lite.data.manager import DataManager
from dassl_lite.data.splits import Split, read_split, save_split, split_trainval
from dassl_lite.data.transforms import build_transform, describe, is_random

__all__ = [
    "DATASET_REGISTRY",
    "IMAGENET_TEMPLATES_60",
    "IMAGENET_TEMPLATES_SELECT",
    "ClassList",
    "ClassMatch",
    "DataManager",
    "DatasetBase",
    "DatasetWrapper",
    "Datum",
    "FolderDataset",
    "ImageLoader",
    "Split",
    "UnreadableImageError",
    "build_data_loader",
    "build_dataset",
    "build_transform",
    "describe",
    "is_random",
    "match_classes",
    "normalise_name",
    "published_name",
    "read_image",
    "read_split",
    "save_split",
    "split_folders",
    "split_trainval",
]
