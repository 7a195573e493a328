"""Splits into training, validation and test images: read, made, checked and saved as the field does.

A split file (``split_zhou_*.json``) holds ``{"train": [[path, label, class name], ...], "val": ..., "test": ...}`` with
paths relative to the dataset's image folder. Of an image with several classes, or none, label and class name are lists.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from dassl_lite.data.datum import Datum, of_each_class
from dassl_lite.data.images import count_images
from dassl_lite.utils.errors import UserError, shown, unknown
from dassl_lite.utils.files import PathLike, atomic_path, read_json
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

# Accepted names of the splits, in folders and tables, whatever their case.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
UNSPLIT = ""  # stands for the split of images that come without splits
_SET = re.compile(r"[ _.-]*(set|split|data|images|imgs)$")


class Split(NamedTuple):
    """The training, validation and test images of a dataset; ``val`` may be empty."""

    train: list[Datum]
    val: list[Datum]
    test: list[Datum]


def split_called(name: str) -> str:
    """The split with this name, such as "train" for ``Training`` or ``train_set``; "" for another name."""
    plain = name.strip().lower()
    return SPLIT_NAMES.get(plain) or SPLIT_NAMES.get(_SET.sub("", plain), "")


def read_split(path: PathLike, image_dir: str) -> Split:
    """Read a split file.

    Raises:
        UserError: it cannot be read, or lacks one of the three lists.
    """
    logger.info(f"Reading split from {path}")
    content = read_listing(path)
    missing = [name for name in Split._fields if name not in content]
    if missing:
        raise UserError(f"split file '{path}' lacks the list {' and the list '.join(missing)}")
    return Split(*(items_from_rows(content[name], image_dir, path) for name in Split._fields))


def save_split(split: Split, path: PathLike, image_dir: str) -> None:
    """Write a split file that :func:`read_split` and the CoOp code can read."""
    write_listing({name: rows_from_items(getattr(split, name), image_dir) for name in Split._fields}, path)
    logger.info(f"Saved split to {path}")


def read_listing(path: PathLike) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:  # ValueError: not JSON, or not UTF-8
        raise UserError(f"cannot read '{path}' as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' should hold a JSON object, not a {type(content).__name__}")
    return content


def write_listing(content: Mapping[str, object], path: PathLike) -> None:
    """Write a JSON object atomically, its lists with one element per line.

    ASCII only, so that file names that are not UTF-8 (lone surrogates in Python) survive.
    """
    lines = []
    for key, value in content.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n    " + ",\n    ".join(json.dumps(element) for element in value) + "\n  ]"
        lines.append(f"  {json.dumps(key)}: {text}")
    with atomic_path(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="ascii")


def items_from_rows(rows: Iterable[Sequence[Any]], image_dir: str, path: PathLike) -> list[Datum]:
    """Datums from the rows ``[relative path, label, class name]`` of the file ``path``."""
    try:
        return [_item(_joined(image_dir, relative), label, name) for relative, label, name in rows]
    except (TypeError, ValueError) as error:
        raise UserError(f"'{path}': rows should be [path, label, class name] ({error})") from error


def _item(path: str, label: Any, name: Any) -> Datum:
    """An item with the label and class name, or the lists of them, that a file gives."""
    if not isinstance(label, list):
        return Datum(path, read_label(label), classname=check_name(name))
    if not isinstance(name, list):
        raise ValueError(f"{shown(name)} are not the names of {len(label)} classes")
    pairs = zip(label, name, strict=True)  # strict: ValueError
    return Datum(path, classes=[(read_label(one), check_name(called), "") for one, called in pairs])


MAX_LABEL = 10**9


def read_label(value: object) -> int:
    """The whole number that a file gives as a label: a number, or its digits as a text.

    Raises:
        ValueError: it is something else, or above ``MAX_LABEL``.
    """
    if isinstance(value, str) and len(value) <= 20:  # Python refuses to read 5,000 digits, and they take long
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_LABEL:
        raise ValueError(f"the label {shown(value)} is not a whole number up to {MAX_LABEL:,}")
    return value


def check_path(path: object) -> None:
    """Raise ValueError if a file gives as a path what no file can be called."""
    if not isinstance(path, str) or b"\0" in os.fsencode(path):  # fsencode: ValueError for lone surrogates
        raise ValueError(f"{shown(path)} is not a path")


def check_name(name: object) -> str:
    """A class name or id as a file gives it; raises ValueError if it is not a text that can be encoded."""
    try:
        if isinstance(name, str):
            name.encode()
            return name
    except UnicodeEncodeError:  # lone surrogates, which JSON and numpy allow
        pass
    raise ValueError(f"the class name {shown(name)} is not a text")


def _joined(image_dir: str, relative: str) -> str:
    check_path(relative)
    path = os.path.join(image_dir, relative)
    return os.path.normpath(path) if ".." in relative else path  # one spelling per path


def rows_from_items(items: Iterable[Datum], image_dir: str) -> list[list[Any]]:
    """A row ``[path relative to image_dir, label, class name]`` for each item; paths have forward slashes.

    An item with several classes, or none, has lists of labels and names.
    """
    prefix = os.path.join(image_dir, "")
    rows: list[list[Any]] = []
    for item in items:
        inside = item.impath.startswith(prefix)
        relative = item.impath[len(prefix) :] if inside else os.path.relpath(item.impath, image_dir)
        named: tuple[Any, Any] = (item.label, item.classname)
        if not item.has_one_class:
            named = list(item.labels), [name for _, name, _ in item.classes]
        rows.append([relative.replace(os.sep, "/"), *named])
    return rows


def split_trainval(trainval: Sequence[Datum], p_val: float = 0.2) -> tuple[list[Datum], list[Datum]]:
    """Take a random fraction ``p_val`` of each class in ``trainval`` as validation data.

    Draws from Python's global ``random``, classes in order of first appearance.

    Returns:
        Training and validation images.

    Raises:
        UserError: a class is too small to give one image.
    """
    logger.info(f"Splitting trainval into {1 - p_val:.0%} train and {p_val:.0%} val")
    of_label: dict[int, list[int]] = {}
    for position, item in enumerate(trainval):
        of_label.setdefault(item.label, []).append(position)
    train, val = [], []
    for positions in of_label.values():
        n_val = round(len(positions) * p_val)
        if n_val == 0:
            name = trainval[positions[0]].classname
            raise UserError(
                f"class '{name}' has {count_images(len(positions))}, too few to take {p_val:.0%} for validation"
            )
        random.shuffle(positions)
        val += [trainval[position] for position in positions[:n_val]]
        train += [trainval[position] for position in positions[n_val:]]
    return train, val


def split_classes(
    classes: Iterable[list[Datum]],
    rng: random.Random | ModuleType = random,
    p_train: float = 0.5,
    p_val: float = 0.2,
) -> Split:
    """Split the images of each class at random.

    Args:
        classes: the images of each class.
        rng: a generator, or the module ``random`` for Python's global one.
        p_train, p_val: fractions for training and validation; the rest is for testing.

    Raises:
        UserError: a class is too small for one image in each split.
    """
    logger.info(f"Splitting into {p_train:.0%} train, {p_val:.0%} val, and {1 - p_train - p_val:.0%} test")
    split = Split([], [], [])
    for images in classes:
        shuffled = list(images)
        rng.shuffle(shuffled)
        n_train, n_val = round(len(shuffled) * p_train), round(len(shuffled) * p_val)
        if min(n_train, n_val, len(shuffled) - n_train - n_val) < 1:
            which = (
                f"class '{images[0].classname}' has {count_images(len(images))}" if images else "a class has no images"
            )
            raise UserError(f"{which}, too few for train, val and test")
        split.train.extend(shuffled[:n_train])
        split.val.extend(shuffled[n_train : n_train + n_val])
        split.test.extend(shuffled[n_train + n_val :])
    return split


def split_multi_label(items: Sequence[Datum], rng: random.Random, p_train: float = 0.5, p_val: float = 0.2) -> Split:
    """Split images of several classes each, with each class's images divided as near to the fractions as can be.

    Iterative stratification (https://doi.org/10.1007/978-3-642-23808-6_10): the class with the fewest images left comes
    first; each of its images goes where that class lacks the most, on a tie where images lack the most.

    Args:
        items: the images, each once.
        rng: a generator; it shuffles the images first.
        p_train, p_val: fractions for training and validation; the rest is for testing.

    Raises:
        UserError: a class ends up without a training image.
    """
    fractions = (p_train, p_val, 1 - p_train - p_val)
    logger.info(f"Splitting into {fractions[0]:.0%} train, {fractions[1]:.0%} val, and {fractions[2]:.0%} test")
    left: dict[int, dict[int, None]] = {}  # positions of the images left of each class, in shuffled order
    for position in rng.sample(range(len(items)), len(items)):
        for label in items[position].labels or (-1,):
            left.setdefault(label, {})[position] = None
    lacking = {label: [len(images) * fraction for fraction in fractions] for label, images in left.items()}
    lacking_images = [len(items) * fraction for fraction in fractions]
    places: list[list[int]] = [[], [], []]
    while any(left.values()):
        rarest = min((label for label in left if left[label]), key=lambda label: (len(left[label]), label))
        for position in list(left[rarest]):
            place = max(range(3), key=lambda one: (lacking[rarest][one], lacking_images[one]))
            places[place].append(position)
            lacking_images[place] -= 1
            for label in items[position].labels or (-1,):
                lacking[label][place] -= 1
                del left[label][position]
    split = Split(*([items[position] for position in sorted(place)] for place in places))
    _tell_classes_of_one_side(split)
    return split


def _tell_classes_of_one_side(split: Split) -> None:
    """Raise UserError for a class without a training image; warn of those without a validation or a test image."""
    names = {label: name for part in split for item in part for label, name, _ in item.classes}
    for part, items in split._asdict().items():
        lacking = sorted(names.keys() - {label for item in items for label in item.labels})
        if lacking and part == "train":
            count = sum(lacking[0] in item.labels for part in split for item in part)
            raise UserError(f"class '{names[lacking[0]]}' has {count_images(count)}, too few for train, val and test")
        if lacking:
            first = ", ".join(f"'{names[label]}'" for label in lacking[:3]) + (", ..." if len(lacking) > 3 else "")
            logger.warning(f"Classes without {part} images: {len(lacking)} ({first})")


def subsample_classes(split: Split, which: str) -> Split:
    """Keep the first half of the classes (``base``), the second half (``new``) or ``all`` of them.

    Base classes are the first ceil(K/2) of the sorted training labels. The kept classes are relabelled from 0. An image
    of several classes keeps those that are kept, and stays if it has any.
    """
    if which not in ("all", "base", "new"):
        raise unknown("DATASET.SUBSAMPLE_CLASSES", which, ("all", "base", "new"))
    if which == "all":
        return split
    logger.info(f"SUBSAMPLE {which.upper()} CLASSES!")
    kept = kept_labels(split.train, which)
    new_label = {label: position for position, label in enumerate(kept)}
    parts = [
        [item.mapped(new_label) for item in part if not new_label.keys().isdisjoint(item.labels)] for part in split
    ]
    return Split(*parts)


def kept_labels(train: Iterable[Datum], which: str) -> list[int]:
    """The sorted labels of training images that are in use: all, the first ceil(K/2), or the others."""
    labels = sorted({label for item in of_each_class(train) for label in item.labels})
    half = math.ceil(len(labels) / 2)
    return {"all": labels, "base": labels[:half], "new": labels[half:]}[which]


def check_labels(split: Split, source: str) -> None:
    """Raise UserError unless the training labels are 0 to K - 1 with one name each, and cover val and test."""
    names: dict[int, str] = {}
    for item in of_each_class(split.train):
        for label, name, _ in item.classes:
            if names.setdefault(label, name) != name:
                raise UserError(f"{source}: label {label} is both '{names[label]}' and '{name}'")
    held = [*of_each_class(split.val), *of_each_class(split.test)]
    held_out = {label: name for item in held for label, name, _ in item.classes}

    def called(label: int | None) -> str:
        name = held_out.get(-1 if label is None else label, "")
        return f"label {label}" + (f", class {shown(name)}" if name not in ("", str(label), *names.values()) else "")

    gap = next((label for label in range(len(names)) if label not in names), None)  # whatever the largest label
    if gap is not None or min(names, default=0) < 0:
        wrong = f"label {min(names)} is negative" if min(names) < 0 else f"no training image has {called(gap)}"
        if gap == 0 and sorted(names) == list(range(1, len(names) + 1)):
            wrong += f": they run from 1 to {max(names)}; subtract 1"
        raise UserError(f"{source}: labels must run from 0 without gaps, but {wrong}")
    for item in held:
        for label in item.labels:
            if label not in names:
                raise UserError(f"{source}: '{item.impath}' has {called(label)}, which no training image has")


def check_files(split: Split, source: str, hint: str) -> None:
    """Raise UserError if images are missing (with their number and the first three) or a folder cannot be read.

    Lists each folder once instead of checking each file: 100,000 names take a second.

    Args:
        source: where the split comes from, for the error message.
        hint: what the user can do about it.
    """
    items = [item for part in split for item in part]
    try:
        missing = find_missing(item.impath for item in items)
    except OSError as error:
        raise UserError(f"{source}: cannot read the folder '{error.filename}': {error.strerror}") from error
    if missing:
        first = ", ".join(f"'{path}'" for path in missing[:3])
        more = ", ..." if len(missing) > 3 else ""
        total = len({item.impath for item in items})
        raise UserError(f"{source}: missing {len(missing)} of {count_images(total)}: {first}{more}. {hint}")


def find_missing(paths: Iterable[str]) -> list[str]:
    """The missing files among ``paths``, without duplicates, in order."""
    listing: dict[str, set[str]] = {}
    missing: dict[str, None] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listing:
            try:
                listing[folder] = set(os.listdir(folder))
            except (FileNotFoundError, NotADirectoryError):
                listing[folder] = set()
        if name not in listing[folder]:
            missing[path] = None
    return list(missing)
