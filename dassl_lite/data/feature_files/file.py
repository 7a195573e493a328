"""A file of features: what a frozen CLIP gave for a dataset's images and classes, as one ``.npz`` to pass around.

datasets/README.md describes the arrays. A file is checked in full when it is read, and nothing in it is ever
unpickled.

Letters: N images, V views, K classes, T templates, D feature width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dassl_lite.data.feature_files.arrays import Arrays, open_arrays
from dassl_lite.utils.files import atomic_path

logger = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
LOGIT_SCALE = 100.0  # that of every published CLIP
PLAIN_TEMPLATE = "{}"  # stands for the template of class weights that came without one
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class FeaturePart:
    """The images of one split.

    Attributes:
        views: (V, N, D), as a frozen encoder gave them; of any length.
        labels: (N,), int64.
        plain: (N, D) without augmentation, where ``views`` are augmented.
    """

    views: Array
    labels: Array
    plain: Array | None = None


@dataclass(frozen=True)
class FeatureFile:
    """What a file of features holds.

    Attributes:
        parts: by name ("train", "val", "test"); only "test" is always there.
        classnames, classids: K each, in label order; an id is "" where a class has none.
        text_weights: (T, K, D), of any length: a feature for every template and class.
        templates: T prompts with {} for the class name; the first is the dataset's own.
        ensemble_templates: those of them that the field averages for this dataset (ImageNet's seven).
        logit_scale: factor on cosine similarities: CLIP's exp(logit_scale).
        backbone, backbone_digest, precision: which CLIP; "" where the file does not say.
        transform, train_transform: how images were prepared, as text.
        provenance: JSON texts, one for each tool that had a hand in the file.
    """

    parts: Mapping[str, FeaturePart]
    classnames: tuple[str, ...]
    text_weights: Array
    classids: tuple[str, ...] = ()
    templates: tuple[str, ...] = (PLAIN_TEMPLATE,)
    ensemble_templates: tuple[str, ...] = ()
    logit_scale: float = LOGIT_SCALE
    backbone: str = ""
    backbone_digest: str = ""
    precision: str = ""
    transform: str = ""
    train_transform: str = ""
    provenance: tuple[str, ...] = field(default=())

    @property
    def width(self) -> int:
        """D."""
        return self.text_weights.shape[2]


_TEXTS = ("backbone", "backbone_digest", "precision", "transform", "train_transform")


def read_feature_file(path: str | Path) -> FeatureFile:
    """Read and check a file of features.

    Raises:
        UserError: it is none, an array is missing, or has the wrong shape, type or values; names file and array.
    """
    with open_arrays(path) as arrays:
        names = arrays.texts("classnames")
        if not names:
            arrays.refuse("classnames", "is empty")
        ids = arrays.texts("classids", default=("",) * len(names))
        templates = arrays.texts("templates", default=(PLAIN_TEMPLATE,))
        ensemble = arrays.texts("ensemble_templates", default=())
        weights = arrays.features("text_weights", "(K, D) or (T, K, D)", 2, 3)
        weights = weights[None] if weights.ndim == 2 else weights
        _check_classes(arrays, names, ids, templates, ensemble, weights)
        found = {part: _read_part(arrays, part, len(names), weights.shape[2]) for part in PARTS}
        file = FeatureFile(
            parts={name: part for name, part in found.items() if part is not None},
            classnames=names,
            classids=ids,
            text_weights=weights,
            templates=templates,
            ensemble_templates=ensemble,
            logit_scale=arrays.positive("logit_scale", LOGIT_SCALE),
            provenance=arrays.texts("provenance", default=()),
            **{name: arrays.text(name) for name in _TEXTS},
        )
        if unused := arrays.unused():
            logger.warning("%s: these arrays have no meaning here and are not used: %s", path, ", ".join(unused))
    return file


def write_feature_file(file: FeatureFile, path: str | Path) -> None:
    """Write a file that :func:`read_feature_file` reads, whole or not at all."""
    arrays: dict[str, Any] = {
        "classnames": np.array(file.classnames),
        "classids": np.array(file.classids or ("",) * len(file.classnames)),
        "text_weights": file.text_weights[0] if len(file.text_weights) == 1 else file.text_weights,
        "templates": np.array(file.templates),
        "logit_scale": np.array(file.logit_scale),
        **{name: np.array(getattr(file, name)) for name in _TEXTS},
        **{
            name: np.array(getattr(file, name))
            for name in ("ensemble_templates", "provenance")
            if getattr(file, name)  # an empty array has no text type
        },
    }
    for name, part in file.parts.items():
        arrays[f"{name}_features"] = part.views[0] if len(part.views) == 1 else part.views
        arrays[f"{name}_labels"] = part.labels
        if part.plain is not None:
            arrays[f"{name}_plain_features"] = part.plain
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **arrays)


def _check_classes(
    arrays: Arrays,
    names: tuple[str, ...],
    ids: tuple[str, ...],
    templates: tuple[str, ...],
    ensemble: tuple[str, ...],
    weights: Array,
) -> None:
    if len(ids) != len(names):
        arrays.refuse("classids", f"has {len(ids)} entries, but there are {len(names)} classnames")
    if weights.shape[1] != len(names):
        arrays.refuse("text_weights", f"has rows for {weights.shape[1]} classes, but there are {len(names)} classnames")
    if weights.shape[0] != len(templates):
        arrays.refuse("text_weights", f"is for {weights.shape[0]} templates, but there are {len(templates)} templates")
    for template in templates:
        if template.count("{}") != 1:
            arrays.refuse("templates", f"holds '{template}', which does not have {{}} once, for the class name")
    for template in ensemble:
        if template not in templates:
            arrays.refuse("ensemble_templates", f"holds '{template}', which is not among templates")


def _read_part(arrays: Arrays, name: str, classes: int, width: int) -> FeaturePart | None:
    """One split, or None where the file has nothing of it (but the test split must be there)."""
    features, labels, plain = f"{name}_features", f"{name}_labels", f"{name}_plain_features"
    if name != "test" and not any(array in arrays for array in (features, labels, plain)):
        return None
    views = arrays.features(features, "(N, D) or (V, N, D)", 2, 3)
    views = views[None] if views.ndim == 2 else views
    if name != "train" and len(views) > 1:
        arrays.refuse(features, f"has {len(views)} views of each image; only train_features may have several")
    count = views.shape[1]
    part = FeaturePart(
        views,
        arrays.labels(labels, count, classes, features),
        arrays.features(plain, "(N, D)", 2) if plain in arrays else None,
    )
    if part.plain is not None and len(part.plain) != count:
        arrays.refuse(plain, f"has {len(part.plain)} rows, but {features} has {count}")
    for array, values in ((features, views), (plain, part.plain)):
        if values is not None and values.shape[-1] != width:
            _refuse_width(arrays, array, values.shape[-1], width)
    return part


def _refuse_width(arrays: Arrays, name: str, width: int, expected: int) -> NoReturn:
    arrays.refuse(name, f"is {width} wide, but text_weights is {expected} wide: they are of different backbones")
