"""Labels, passed with images or taken from a folder, a table or a dataset, and the classes that they define.

Shapes: N images, K classes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dassl_lite.classifier.images import (
    GIVEN,
    Given,
    Training,
    hugging_face_labels,
    is_hugging_face,
    is_path,
    read_images,
    require,
    spool,
)
from dassl_lite.classifier.quiet import alone
from dassl_lite.classifier.values import label_array, listed_values, texts
from dassl_lite.data import build_dataset
from dassl_lite.data.classes import ClassList, match_classes
from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands.arguments import nested, own_data
from dassl_lite.utils.errors import UserError, nearest, shown
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class Labelled:
    """Images to learn from.

    Attributes:
        flags: config keys that say where the images are.
        labels: (K,) sorted labels of the classes; None for the names of the dataset's classes, once it is built.
        training: the images, if they are not on disk in a form that the engine reads.
    """

    flags: dict[str, Any]
    labels: NDArray[Any] | None = None
    training: Training | None = None


def to_learn(X: Any, y: Any, classes: Any) -> Labelled:
    """The training images and labels passed to `FewShotClassifier.fit`.

    Args:
        classes: the parameter, which names the labels for prompts; None if labels are names already.

    Raises:
        UserError: a fit does not take such images and labels.
    """
    if y is None and is_path(X):
        require(os.path.expanduser(X))
        return Labelled(own_data(os.fspath(X)))
    if y is None:
        if not is_hugging_face(X):
            raise UserError("fit needs labels, y, unless X is a folder, a table, a feature file or a dataset")
        y = hugging_face_labels(X)
    given = read_images(X)
    if given.features is not None:
        raise UserError(
            "fit takes features from a feature file (.npz), which has text features beside them; see datasets/README.md"
        )
    if given.total is None:
        given = Given(items := list(given.items), len(items))
    listed = listed_values(y)
    if len(listed) != given.total:
        raise UserError(f"X has {given.total:,} images, but y has {len(listed):,} labels")
    if not listed:
        raise UserError("there are no images to learn from")
    labels, names = _classes_of(listed, classes)
    numbers = {label: number for number, label in enumerate(labels.tolist())}
    training = Training(ClassList(tuple(names)), given.items, [numbers[label] for label in listed])  # type: ignore[arg-type]
    return Labelled(flags_of(given.are_paths), labels, training)


def flags_of(keeps_features: bool) -> dict[str, Any]:
    """Config keys for training images passed by a program.

    Args:
        keeps_features: keep features in the feature cache, not in the temporary folder of in-memory images.
    """
    flags = {"DATASET.NAME": GIVEN, "TEST.NO_TEST": True}
    return flags if keeps_features else {**flags, "DATASET.FEATURES.DIR": str(spool().folder / "features")}


def _classes_of(listed: list[Any], classes: Any) -> tuple[NDArray[Any], list[str]]:
    """The distinct labels, sorted, and the name that prompts use for each."""
    if wrong := [entry for entry in listed if not isinstance(entry, str | int | bool)]:
        raise UserError(f"y has {shown(wrong[0])}, which is not a label; labels are text, integers or booleans")
    if any(isinstance(entry, str) and not entry.strip() for entry in listed):
        raise UserError("y has an empty label; a class needs a name")
    label_array(listed)  # refuses mixed types, which cannot be sorted
    labels = label_array(sorted(set(listed)))
    if classes is None:
        if labels.dtype.kind != "U":
            logger.warning(
                f"Prompts name the classes by their labels, such as {shown(str(listed[0]))}: pass classes, a dict from "
                "label to name, if these say nothing"
            )
        return labels, [str(label) for label in labels.tolist()]
    known = names_by_label(classes, as_text=labels.dtype.kind == "U")
    if missing := [label for label in labels.tolist() if label not in known]:
        how = (
            ""
            if isinstance(classes, Mapping)
            else "; a list names text, or labels from 0: pass a dict from label to name"
        )
        raise UserError(f"classes has no name for label {shown(missing[0])} of y{how}")
    return labels, [str(known[label]) for label in labels.tolist()]


def names_by_label(classes: Any, *, as_text: bool) -> dict[Any, Any]:
    """The parameter ``classes`` as a dict from label (text or number) to name."""
    if classes is None:
        return {}
    if isinstance(classes, Mapping):
        return dict(zip(listed_values(list(classes)), texts(list(classes.values())), strict=True))
    names = texts(classes)
    return {name: name for name in names} if as_text else dict(enumerate(names))


def to_tell_apart(classes: Any) -> tuple[NDArray[Any], list[str]]:
    """The labels (K,) of a classifier without a fit, and their names.

    Args:
        classes: the parameter, which is not None.

    Raises:
        UserError: it is empty, or a name occurs twice.
    """
    names = texts(list(classes.values()) if isinstance(classes, Mapping) else classes)
    if not names:
        raise UserError("classes is empty; name the classes to distinguish")
    if len(set(names)) < len(names):
        raise UserError(f"classes has {shown(Counter(names).most_common(1)[0][0])} twice")
    return label_array(listed_values(list(classes)) if isinstance(classes, Mapping) else names), names


def to_test(
    X: Any, y: Any, labels: NDArray[Any], classes: ClassList, messages: list[str] | None, *, verbose: bool
) -> tuple[Any, NDArray[Any]]:
    """Labelled test images for a classifier, and their class numbers (N,), int64.

    Args:
        X, y: as `FewShotClassifier.score` takes them.
        labels: (K,) labels of the classifier.
        classes: its class names, to which a folder's classes are matched.
        messages: list to which the engine's warnings are appended.
        verbose: show the engine's log messages.

    Raises:
        UserError: there are no labels, or one is not a class of the classifier.
    """
    if y is None and is_path(X):
        with alone(messages, verbose=verbose):
            return _at_path(os.path.expanduser(X), classes)
    if y is None:
        if not is_hugging_face(X):
            raise UserError("labels, y, are missing; only a folder, a table or a dataset brings its own")
        y = hugging_face_labels(X)
    if not hasattr(X, "__len__") and isinstance(X, Iterator):
        X = list(X)
    numbers = {label: number for number, label in enumerate(labels.tolist())}
    listed = listed_values(y)
    if missing := [label for label in listed if not isinstance(label, Hashable) or label not in numbers]:
        likely = nearest(str(missing[0]), map(str, numbers))
        raise UserError(
            f"label {shown(missing[0])} is not a class of this classifier"
            + (f"; did you mean {shown(likely)}?" if likely else f"; it has {shown(list(numbers))}")
        )
    return X, np.array([numbers[label] for label in listed], dtype=np.int64)


def _at_path(path: str, own: ClassList) -> tuple[Any, NDArray[Any]]:
    """The test images in a folder, a table or a feature file; all images if there are no splits."""
    require(path)
    flags = {**own_data(path), "DATASET.TEST_ONLY": True, "DATASET.NUM_SHOTS": -1, "VERBOSE": False}
    data: Any = build_dataset(make_config(flags=nested(flags), source="FewShotClassifier"))
    if data.multi_label:
        raise UserError(f"'{path}' has images of several classes each")
    rows = match_classes(own, data.classes).rows if own != data.classes else tuple(range(len(own)))
    used = {item.label for item in data.test}
    lacking = [name for label, name in enumerate(data.classnames) if rows[label] < 0 and label in used]
    if lacking:
        raise UserError(
            f"'{path}' has a class {shown(lacking[0])} that this classifier lacks; it has {shown(list(own.names))}"
        )
    truth = np.array([rows[item.label] for item in data.test], dtype=np.int64)
    return (path if path.endswith(".npz") else [item.impath for item in data.test]), truth
