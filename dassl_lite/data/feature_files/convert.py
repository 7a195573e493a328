"""Convert features from the layouts of other laboratories to our feature files. There are two layouts:

a table:   image_features (N, D), labels (N,), suggested_split (N,) with 1 for train, 2 for val and 0 for test
by split:  train16, val, test (N, D) and train16_labels, val_labels, test_labels (N,)

Both have classnames (K,) and text_weights (K, D). If only S of the classes have text weights, they have
text_subset_labels (S,) and text_subset_weights (S, D) instead, and the other classes are left out. A text ``backbone``
is optional.

Shapes: N images, K classes, S classes with text weights, D feature width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np

from dassl_lite.data.feature_files.arrays import Array, Arrays, open_arrays
from dassl_lite.data.feature_files.file import FeatureFile, FeaturePart
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import PathLike
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

_SPLIT_CODES = {"train": 1, "val": 2, "test": 0}
_BY_SPLIT = {"train": "train16", "val": "val", "test": "test"}


def convert_features(path: PathLike) -> FeatureFile:
    """Read a file in one of the layouts above.

    Raises:
        UserError: it has another layout, or an array is invalid.
    """
    with open_arrays(path) as arrays:
        names = arrays.texts("classnames")
        if "image_features" in arrays:
            parts = _from_table(arrays, len(names))
        elif _BY_SPLIT["train"] in arrays:
            parts = {part: _part(arrays, name, f"{name}_labels", len(names)) for part, name in _BY_SPLIT.items()}
        else:
            raise UserError(
                f"feature file {path} cannot be converted: it has neither image_features nor {_BY_SPLIT['train']}; "
                "datasets/README.md shows how to write a feature file"
            )
        backbone = arrays.text("backbone")
        if "text_weights" in arrays:
            weights = arrays.features("text_weights", "(K, D)", 2)
        else:
            names, weights, parts = _classes_with_text(arrays, names, parts)
    source = {"converted": Path(path).name, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}
    note = (json.dumps(source, sort_keys=True),)
    return FeatureFile(parts, names, weights[None], backbone=backbone, provenance=note)


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


def _from_table(arrays: Arrays, classes: int) -> dict[str, FeaturePart]:
    whole = _part(arrays, "image_features", "labels", classes)
    code = arrays.labels("suggested_split", len(whole.labels), len(_SPLIT_CODES), "image_features")
    masks = {part: code == number for part, number in _SPLIT_CODES.items()}
    return {part: _rows(whole, mask) for part, mask in masks.items() if mask.any()}


def _classes_with_text(
    arrays: Arrays, names: tuple[str, ...], parts: dict[str, FeaturePart]
) -> tuple[tuple[str, ...], Array, dict[str, FeaturePart]]:
    """Names, text weights and images of the classes with text weights, relabelled in the order of these."""
    weights = arrays.features("text_subset_weights", "(S, D)", 2)
    subset = arrays.labels("text_subset_labels", len(weights), len(names), "text_subset_weights")
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
