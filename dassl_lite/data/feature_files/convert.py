"""Convert features from layouts that others publish to our feature files. There are two layouts:

a table:   image_features (N, D), labels (N,), suggested_split (N,) with 1 for train, 2 for val and 0 for test
by split:  train16, val4, test (N, D) and train16_labels, val4_labels, test_labels (N,), with any or no numbers; the
           largest one is read; only test is required

Both have classnames (K,) and text_weights (K, D). If only S of the classes have text weights, they have
text_subset_labels (S,) and text_subset_weights (S, D) instead, and the other classes are left out. Without either, the
file serves the methods that need no text features. The texts ``backbone`` and ``dataset`` are optional.

Shapes: N images, K classes, S classes with text weights, D feature width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import numpy as np

from dassl_lite.data.feature_files.arrays import Array, Arrays, open_arrays
from dassl_lite.data.feature_files.file import PLAIN_TEMPLATE, FeatureFile, FeaturePart, text_weights
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import PathLike
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

_SPLIT_CODES = {"train": 1, "val": 2, "test": 0}
_SPLIT_NAME = re.compile(r"(train|val|test)_?(\d*)", re.ASCII)


def convert_features(path: PathLike, dataset: str = "") -> FeatureFile:
    """Read a file in one of the layouts above.

    Args:
        path: the file.
        dataset: name of the dataset, such as "ImageNet", if the file does not state it.

    Raises:
        UserError: it has another layout, or an array is invalid.
    """
    with open_arrays(path) as arrays:
        names = arrays.texts("classnames")
        if "image_features" in arrays:
            parts = _from_table(arrays, len(names))
        elif "test" in (by_split := _largest_of_each_split(arrays)):
            parts = {part: _part(arrays, name, f"{name}_labels", len(names)) for part, name in by_split.items()}
        else:
            raise UserError(
                f"feature file {path} cannot be converted: it has neither image_features nor test; "
                "datasets/README.md shows how to write a feature file"
            )
        backbone, dataset = arrays.text("backbone"), dataset or arrays.text("dataset")
        templates: tuple[str, ...] = (PLAIN_TEMPLATE,)
        if "text_weights" in arrays:
            weights = text_weights(arrays, "text_weights", "(K, D)", names)
        elif "text_subset_weights" in arrays or "text_subset_labels" in arrays:
            names, weights, parts = _classes_with_text(arrays, names, parts)
        else:
            logger.warning(f"{path} has no text features: it serves only methods that need none, such as LinearProbe")
            templates, weights = (), np.zeros((0, len(names), parts["test"].views.shape[2]), np.float32)
        if unused := arrays.unused():
            logger.warning(f"{path}: ignored {', '.join(unused)}")
    source = {"converted": Path(path).name, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}
    note = (json.dumps(source, sort_keys=True),)
    return FeatureFile(parts, names, weights, templates=templates, dataset=dataset, backbone=backbone, provenance=note)


def first_of_each_class(file: FeatureFile, count: int) -> FeatureFile:
    """The same file with only the first ``count`` training images of each class."""
    train = file.parts.get("train")
    if train is None:
        raise UserError(f"there are no training features, so the first {count} of each class cannot be kept")
    rows = np.sort(np.concatenate([np.flatnonzero(train.labels == label)[:count] for label in np.unique(train.labels)]))
    plain = None if train.plain is None else train.plain[rows]
    kept = FeaturePart(train.views[:, rows], train.labels[rows], plain)
    return dataclasses.replace(file, parts={**file.parts, "train": kept})


def _part(arrays: Arrays, features: str, labels: str, classes: int) -> FeaturePart:
    values = arrays.features(features, "(N, D)", 2)
    return FeaturePart(values[None], arrays.labels(labels, len(values), classes, features))


def _largest_of_each_split(arrays: Arrays) -> dict[str, str]:
    """The array of each split: of train1, train4 and train16, train16."""
    found: dict[str, tuple[int, str]] = {}
    for name in arrays.names():
        if matched := _SPLIT_NAME.fullmatch(name):
            found[matched[1]] = max(found.get(matched[1], (-1, "")), (int(matched[2] or 0), name))
    return {split: found[split][1] for split in _SPLIT_CODES if split in found}


def _from_table(arrays: Arrays, classes: int) -> dict[str, FeaturePart]:
    whole = _part(arrays, "image_features", "labels", classes)
    code = arrays.labels("suggested_split", len(whole.labels), len(_SPLIT_CODES), "image_features")
    masks = {part: code == number for part, number in _SPLIT_CODES.items()}
    return {part: _rows(whole, mask) for part, mask in masks.items() if mask.any()}


def _classes_with_text(
    arrays: Arrays, names: tuple[str, ...], parts: dict[str, FeaturePart]
) -> tuple[tuple[str, ...], Array, dict[str, FeaturePart]]:
    """Names, text weights and images of the classes with text weights, relabelled in the order of these."""
    count = arrays.features("text_subset_weights", "(S, D)", 2).shape[0]
    subset = arrays.labels("text_subset_labels", count, len(names), "text_subset_weights")
    weights = text_weights(arrays, "text_subset_weights", "(S, D)", tuple(names[label] for label in subset))
    logger.info(f"{len(subset)} of {len(names)} classes have text weights; the others are left out")
    new_label = np.full(len(names), -1)
    new_label[subset] = np.arange(len(subset))
    relabelled = {}
    for name, part in parts.items():
        kept = _rows(part, new_label[part.labels] >= 0)
        relabelled[name] = FeaturePart(kept.views, new_label[kept.labels])
    return tuple(names[label] for label in subset), weights, relabelled


def _rows(part: FeaturePart, mask: Array) -> FeaturePart:
    return FeaturePart(part.views[:, mask], part.labels[mask])
