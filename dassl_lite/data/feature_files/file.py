"""Feature files: the features of a dataset's images and classes from a frozen CLIP, as one ``.npz``.

datasets/README.md describes the arrays. All of them are checked on reading, and nothing is ever unpickled.

Shapes: N images, V views, K classes, T templates, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from dassl_lite.data.feature_files.arrays import Array, Arrays, open_arrays
from dassl_lite.utils.files import PathLike, atomic_path
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

PARTS = ("train", "val", "test")
LOGIT_SCALE = 100.0  # of every published CLIP
PLAIN_TEMPLATE = "{}"  # for text weights without a template
_TEXTS = ("backbone", "backbone_digest", "precision", "transform", "train_transform")


@dataclass(frozen=True)
class FeaturePart:
    """The images of one split.

    Attributes:
        views: features (V, N, D) from a frozen encoder, not necessarily normalised.
        labels: int64 (N,).
        plain: features (N, D) without augmentation, if ``views`` are augmented.
    """

    views: Array
    labels: Array
    plain: Array | None = None


@dataclass(frozen=True)
class FeatureFile:
    """The content of a feature file.

    Attributes:
        parts: the images of each split, by its name ("train", "val", "test"); only "test" is always there.
        classnames, classids: K each, in label order; the id is "" for a class without one.
        text_weights: text features (T, K, D) for every template and class, not necessarily normalised.
        templates: T prompt templates with {} for the class name; the first is the dataset's own.
        ensemble_templates: the templates that the field averages for this dataset (ImageNet's seven).
        logit_scale: factor on cosine similarities: CLIP's exp(logit_scale).
        backbone, backbone_digest, precision: identify the CLIP model; "" if unknown.
        transform, train_transform: descriptions of the image transforms.
        provenance: JSON texts, one from each tool that created or changed the file.
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
    provenance: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """D."""
        return self.text_weights.shape[2]


def read_feature_file(path: PathLike) -> FeatureFile:
    """Read and check a feature file.

    Raises:
        UserError: it is not a feature file, or an array is missing or has the wrong shape, dtype or values.
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
            logger.warning(f"{path}: ignored arrays of unknown names: {', '.join(unused)}")
    return file


def write_feature_file(file: FeatureFile, path: PathLike) -> None:
    """Write, atomically, a file for :func:`read_feature_file`."""
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
            if getattr(file, name)  # an empty array would not have a text dtype
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
        arrays.refuse("text_weights", f"has {weights.shape[1]} classes, but there are {len(names)} classnames")
    if weights.shape[0] != len(templates):
        arrays.refuse("text_weights", f"has {weights.shape[0]} templates, but the array templates has {len(templates)}")
    for template in templates:
        if template.count("{}") != 1:
            arrays.refuse("templates", f"contains '{template}', which must have {{}} once for the class name")
    for template in ensemble:
        if template not in templates:
            arrays.refuse("ensemble_templates", f"contains '{template}', which is not in templates")


def _read_part(arrays: Arrays, name: str, classes: int, width: int) -> FeaturePart | None:
    """The images of a split, or None if the file has none of its arrays; the test split is required."""
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
    arrays.refuse(name, f"has width {width}, but text_weights has {expected}: they come from different backbones")
