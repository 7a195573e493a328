"""Feature files: the features of a dataset's images and classes from a frozen CLIP, as one ``.npz``.

datasets/README.md describes the arrays. All of them are checked on reading, and nothing is ever unpickled.

Shapes: N images, V views, K classes, T templates, D feature width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dassl_lite.data.feature_files.arrays import Array, Arrays, open_arrays
from dassl_lite.data.feature_files.folder import (
    CLASSES,
    MANIFEST,
    RowShards,
    shard_name,
    write_manifest,
    write_shard,
)
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import PathLike, atomic_path
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

PARTS = ("train", "val", "test")
ROWS_OF_SHARD = 131_072
LOGIT_SCALE = 100.0  # of every published CLIP
PLAIN_TEMPLATE = "{}"  # for text weights without a template
_CHECKED, _TOLERANCE = 8, 0.1  # rows of a part whose states are projected; of the largest feature, in any precision
_BY_ROW = ("features", "labels", "plain_features", "states", "plain_states")
_TEXTS = ("dataset", "backbone", "backbone_digest", "precision", "transform", "train_transform")


@dataclass(frozen=True)
class FeaturePart:
    """The images of one split.

    Attributes:
        views: features (V, N, D) from a frozen encoder, not necessarily normalised.
        labels: int64 (N,); of images with several classes bool (N, K), true for the classes of each.
        plain: features (N, D) without augmentation, if ``views`` are augmented.
        states, plain_states: the same before the encoder's last projection, (V, N, W) and (N, W), if the file has them.
    """

    views: Array
    labels: Array
    plain: Array | None = None
    states: Array | None = None
    plain_states: Array | None = None


@dataclass(frozen=True)
class FeatureFile:
    """The content of a feature file.

    Attributes:
        parts: the images of each split, by its name ("train", "val", "test"); only "test" is always there.
        classnames, classids: K each, in label order; the id is "" for a class without one.
        text_weights: text features (T, K, D) for every template and class, not necessarily normalised; T is 0 in a
            file for methods that need none.
        templates: T prompt templates with {} for the class name; the first is the dataset's own.
        ensemble_templates: the templates that the field averages for this dataset (ImageNet's seven).
        logit_scale: factor on cosine similarities: CLIP's exp(logit_scale).
        logit_bias: added to logits under a sigmoid: SigLIP's logit_bias; None if the CLIP has none.
        projection, projection_bias: the image encoder's last linear step, (W, D) and (D,), if the parts have states.
        dataset: registered or other name of the dataset, such as "ImageNet"; "" if the file does not state it.
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
    logit_bias: float | None = None
    projection: Array | None = None
    projection_bias: Array | None = None
    dataset: str = ""
    backbone: str = ""
    backbone_digest: str = ""
    precision: str = ""
    transform: str = ""
    train_transform: str = ""
    provenance: tuple[str, ...] = ()

    @property
    def multi_label(self) -> bool:
        """Whether images have several classes."""
        return self.parts["test"].labels.ndim == 2

    @property
    def width(self) -> int:
        """D."""
        return self.parts["test"].views.shape[2]


def read_feature_file(path: PathLike) -> FeatureFile:
    """Read and check a feature file.

    Raises:
        UserError: it is not a feature file, or an array is missing or has the wrong shape, dtype or values.
    """
    with open_arrays(path) as arrays:
        names = arrays.texts("classnames")
        if not names:
            arrays.refuse("classnames", "is empty")
        if "test_features" not in arrays and ("image_features" in arrays or "test" in arrays):
            converted = "tools/extract.py --convert makes a feature file of it"
            raise UserError(f"feature file {path} lacks the array test_features; {converted}")
        ids = arrays.texts("classids", default=("",) * len(names))
        read = {part: _read_part(arrays, part, len(names)) for part in PARTS}
        parts = {name: part for name, part in read.items() if part is not None}
        width = parts["test"].views.shape[2]
        templates: tuple[str, ...] = ()
        ensemble: tuple[str, ...] = ()
        weights = np.zeros((0, len(names), width), np.float32)
        if "text_weights" in arrays or "templates" in arrays:
            templates = arrays.texts("templates", default=(PLAIN_TEMPLATE,))
            ensemble = arrays.texts("ensemble_templates", default=())
            weights = text_weights(arrays, "text_weights", "(K, D) or (T, K, D)", names)
        _check_classes(arrays, names, ids, templates, ensemble, weights)
        _check_widths(arrays, parts, weights.shape[2])
        if len({part.labels.ndim for part in parts.values()}) > 1:
            one = next(name for name, part in parts.items() if part.labels.ndim != parts["test"].labels.ndim)
            arrays.refuse(f"{one}_labels", "and test_labels differ: one class for each image, or zeros and ones (N, K)")
        projection, projection_bias = _read_projection(arrays, parts)
        file = FeatureFile(
            projection=projection,
            projection_bias=projection_bias,
            parts=parts,
            classnames=names,
            classids=ids,
            text_weights=weights,
            templates=templates,
            ensemble_templates=ensemble,
            logit_scale=arrays.positive("logit_scale", LOGIT_SCALE),
            logit_bias=arrays.number("logit_bias") if "logit_bias" in arrays else None,
            provenance=arrays.texts("provenance", default=()),
            **{name: arrays.text(name) for name in _TEXTS},
        )
        if unused := arrays.unused():
            logger.warning(f"{path}: ignored arrays of unknown names: {', '.join(unused)}")
    return file


def write_feature_file(file: FeatureFile, path: PathLike) -> None:
    """Write, atomically, a file for :func:`read_feature_file`."""
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **arrays_of(file))


def write_feature_folder(file: FeatureFile, path: PathLike, rows: int = ROWS_OF_SHARD) -> None:
    """Write a folder of feature shards for :func:`read_feature_file`; its manifest is written last.

    Args:
        rows: of a shard, at most.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    small = arrays_of(file)
    manifest: dict[str, list[str]] = {}
    for name in [f"{part}_{kind}" for part in PARTS for kind in _BY_ROW if f"{part}_{kind}" in small]:
        array = small.pop(name)
        by_view = array.ndim == 3
        files = manifest[name] = []
        for start in range(0, array.shape[int(by_view)], rows):
            shard = array[:, start : start + rows] if by_view else array[start : start + rows]
            files.append(shard_name(name, len(files)))
            write_shard(folder / files[-1], shard)
    _write_small(folder, small)
    write_manifest(folder, manifest)


def write_classes(file: FeatureFile, folder: Path) -> None:
    """Write what a folder of feature shards has that is not per row."""
    _write_small(folder, arrays_of(dataclasses.replace(file, parts={})))


def _write_small(folder: Path, arrays: Mapping[str, Any]) -> None:
    with atomic_path(folder / CLASSES) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **arrays)


def arrays_of(file: FeatureFile) -> dict[str, Any]:
    """The arrays of a feature file, by name."""
    arrays: dict[str, Any] = {
        "classnames": np.array(file.classnames),
        "classids": np.array(file.classids or ("",) * len(file.classnames)),
        "logit_scale": np.array(file.logit_scale),
        **{name: np.array(getattr(file, name)) for name in _TEXTS},
        **{
            name: np.array(getattr(file, name))
            for name in ("ensemble_templates", "provenance")
            if getattr(file, name)  # an empty array would not have a text dtype
        },
    }
    if file.logit_bias is not None:
        arrays["logit_bias"] = np.array(file.logit_bias)
    if len(file.text_weights):
        arrays["text_weights"] = file.text_weights[0] if len(file.text_weights) == 1 else file.text_weights
        arrays["templates"] = np.array(file.templates)
    for name, part in file.parts.items():
        arrays[f"{name}_features"] = part.views[0] if len(part.views) == 1 else part.views
        arrays[f"{name}_labels"] = part.labels.astype(np.uint8) if part.labels.ndim == 2 else part.labels
        if part.plain is not None:
            arrays[f"{name}_plain_features"] = part.plain
        if part.states is not None:
            arrays[f"{name}_states"] = part.states[0] if len(part.states) == 1 else part.states
        if part.plain_states is not None:
            arrays[f"{name}_plain_states"] = part.plain_states
    for name in ("projection", "projection_bias"):
        if (values := getattr(file, name)) is not None:
            arrays[name] = values
    return arrays


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
    if weights.shape[0] != len(templates):
        arrays.refuse("text_weights", f"has {weights.shape[0]} templates, but the array templates has {len(templates)}")
    for template in templates:
        if template.count("{}") != 1:
            arrays.refuse("templates", f"contains '{template}', which must have {{}} once for the class name")
    for template in ensemble:
        if template not in templates:
            arrays.refuse("ensemble_templates", f"contains '{template}', which is not in templates")


def text_weights(arrays: Arrays, name: str, form: str, classnames: tuple[str, ...]) -> Array:
    """The text features (T, K, D) in the array ``name``, of shape (K, D) or, if ``form`` allows it, (T, K, D).

    Raises:
        UserError: a class has none (only zeros), or two classes of different names have the same.
    """
    weights = arrays.features(name, form, 2, 3 if "T" in form else 2)
    weights = weights[None] if weights.ndim == 2 else weights
    if weights.shape[1] != len(classnames):
        arrays.refuse(name, f"has {weights.shape[1]} classes, but there are {len(classnames)} classnames")
    for of_template in weights:
        if (empty := ~of_template.any(axis=1)).any():
            arrays.refuse(name, f"has only zeros for class '{classnames[int(empty.argmax())]}'")
        first: dict[bytes, str] = {}
        for row, class_ in zip(of_template, classnames, strict=True):
            if (other := first.setdefault(row.tobytes(), class_)) != class_:
                arrays.refuse(name, f"has the same text features for classes '{other}' and '{class_}'")
    return weights


def _read_part(arrays: Arrays, name: str, classes: int) -> FeaturePart | None:
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
        arrays.labels(labels, count, classes, features, several=True),
        arrays.features(plain, "(N, D)", 2) if plain in arrays else None,
    )
    if part.plain is not None and len(part.plain) != count:
        arrays.refuse(plain, f"has {len(part.plain)} rows, but {features} has {count}")
    return dataclasses.replace(part, **_read_states(arrays, name, part))


def _read_states(arrays: Arrays, name: str, part: FeaturePart) -> dict[str, Array]:
    """What the file has of ``states`` and ``plain_states`` of a split."""
    found: dict[str, Array] = {}
    for field, features in (("states", part.views), ("plain_states", part.plain)):
        if (array := f"{name}_{field}") in arrays:
            values = arrays.features(array, "(N, W) or (V, N, W)", 2, 3)
            values = values[None] if values.ndim == 2 and field == "states" else values
            if features is None or values.shape[:-1] != features.shape[:-1]:
                arrays.refuse(array, f"has shape {values.shape}, which is not that of the split's features")
            found[field] = values
    return found


def _read_projection(arrays: Arrays, parts: Mapping[str, FeaturePart]) -> tuple[Array | None, Array | None]:
    """The projection (W, D) and its bias (D,), if the file has any: then all parts have states that it makes features
    of."""
    if "projection" not in arrays:
        if "projection_bias" in arrays or any(part.states is not None for part in parts.values()):
            arrays.refuse("projection", "is missing, without which states are of no use")
        return None, None
    weight = arrays.features("projection", "(W, D)", 2)
    bias = arrays.features("projection_bias", "(D,)", 1) if "projection_bias" in arrays else None
    if bias is not None and bias.shape != weight.shape[1:]:
        arrays.refuse("projection_bias", f"has shape {bias.shape}, but projection has {weight.shape}")
    for name, part in parts.items():
        pairs = [(f"{name}_states", part.states, part.views)]
        if part.plain is not None:
            pairs.append((f"{name}_plain_states", part.plain_states, part.plain))
        for array, states, features in pairs:
            if states is None:
                arrays.refuse(array, "is missing, but the file has a projection")
            if (states.shape[-1], features.shape[-1]) != weight.shape:
                arrays.refuse(array, f"has width {states.shape[-1]}, but projection has shape {weight.shape}")
            some = _first_rows(states) @ weight.astype(np.float64)
            wanted = _first_rows(features)
            if np.abs(some + (0 if bias is None else bias) - wanted).max() > _TOLERANCE * np.abs(wanted).max():
                arrays.refuse(array, "and projection do not give the features of the same rows")
    return weight, bias


def _first_rows(array: Any) -> Array:
    """A few rows (n, D) of an array or of shards, in float64."""
    if isinstance(array, RowShards):
        return array.take(np.arange(min(_CHECKED, array.rows))).astype(np.float64)
    rows: Array = array.reshape(-1, array.shape[-1])[:_CHECKED].astype(np.float64)
    return rows


def _check_widths(arrays: Arrays, parts: Mapping[str, FeaturePart], expected: int) -> None:
    what = "text_weights" if "text_weights" in arrays else "test_features"
    for name, part in parts.items():
        for kind, values in (("features", part.views), ("plain_features", part.plain)):
            if values is not None and values.shape[-1] != expected:
                width = f"has width {values.shape[-1]}, but {what} has {expected}"
                arrays.refuse(f"{name}_{kind}", f"{width}: they come from different backbones")
