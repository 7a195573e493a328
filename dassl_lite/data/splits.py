"""Splits: which images are for training, validation and test; read, made and saved as the field does.

A split file (``split_zhou_*.json``) holds ``{"train": [[path, label, class name], ...], "val": ..., "test": ...}``
with paths relative to the dataset's image folder.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dassl_lite.data.datum import Datum
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.files import atomic_path, read_json

logger = logging.getLogger(__name__)


# What a folder or a table may call its parts.
PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Split(NamedTuple):
    """The three lists of a dataset; ``val`` may be empty."""

    train: list[Datum]
    val: list[Datum]
    test: list[Datum]


def read_split(path: str | os.PathLike[str], image_dir: str) -> Split:
    """Read a split file. Raises UserError naming the file if it is not one."""
    logger.info("Reading split from %s", path)
    content = read_listing(path)
    missing = [name for name in Split._fields if name not in content]
    if missing:
        raise UserError(f"split file '{path}' has no list named {' or '.join(missing)}")
    return Split(*(items_from_rows(content[name], image_dir, path) for name in Split._fields))


def save_split(split: Split, path: str | os.PathLike[str], image_dir: str) -> None:
    """Write a split file that :func:`read_split` and the reference read."""
    write_listing({name: rows_from_items(getattr(split, name), image_dir) for name in Split._fields}, path)
    logger.info("Saved split to %s", path)


def read_listing(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object from a file; UserError if it cannot be read or is something else."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:  # ValueError: neither JSON nor UTF-8
        raise UserError(f"cannot read '{path}' as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' should hold a JSON object, not a {type(content).__name__}")
    return content


def write_listing(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a JSON object whose lists have one element per line; whole or not at all.

    ASCII only, so that file names that are not UTF-8 (which Python holds as lone surrogates) survive.
    """
    lines = []
    for key, value in content.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n    " + ",\n    ".join(json.dumps(element) for element in value) + "\n  ]"
        lines.append(f"  {json.dumps(key)}: {text}")
    with atomic_path(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="ascii")


def items_from_rows(rows: Any, image_dir: str, path: str | os.PathLike[str]) -> list[Datum]:
    """Datums from ``[relative path, label, class name]`` rows of the file ``path``."""
    try:
        return [Datum(_joined(image_dir, relative), int(label), classname=name) for relative, label, name in rows]
    except (TypeError, ValueError) as error:
        raise UserError(f"'{path}': its rows should be [path, label, class name] ({error})") from error


def _joined(image_dir: str, relative: str) -> str:
    path = os.path.join(image_dir, relative)
    return os.path.normpath(path) if ".." in relative else path  # one path, one spelling


def rows_from_items(items: Iterable[Datum], image_dir: str) -> list[list[str | int]]:
    """``[path relative to image_dir, label, class name]`` for each item; paths with forward slashes."""
    prefix = os.path.join(image_dir, "")
    rows: list[list[str | int]] = []
    for item in items:
        inside = item.impath.startswith(prefix)
        relative = item.impath[len(prefix) :] if inside else os.path.relpath(item.impath, image_dir)
        rows.append([relative.replace(os.sep, "/"), item.label, item.classname])
    return rows


def split_trainval(trainval: Sequence[Datum], p_val: float = 0.2) -> tuple[list[Datum], list[Datum]]:
    """Take the fraction ``p_val`` of each class out of ``trainval``, at random, as validation data.

    Draws from Python's global ``random``, classes in the order in which they first appear.

    Raises:
        UserError: a class is too small to give one image.
    """
    logger.info("Splitting trainval into %.0f%% train and %.0f%% val", 100 * (1 - p_val), 100 * p_val)
    of_label: dict[int, list[int]] = {}
    for position, item in enumerate(trainval):
        of_label.setdefault(item.label, []).append(position)
    train, val = [], []
    for positions in of_label.values():
        n_val = round(len(positions) * p_val)
        if n_val == 0:
            name = trainval[positions[0]].classname
            raise UserError(f"class '{name}' has {len(positions)} images: too few to take {p_val:.0%} for validation")
        random.shuffle(positions)
        val += [trainval[position] for position in positions[:n_val]]
        train += [trainval[position] for position in positions[n_val:]]
    return train, val


def split_classes(classes: Iterable[list[Datum]], rng: Any = random, p_train: float = 0.5, p_val: float = 0.2) -> Split:
    """Split each class's images at random with ``rng`` (``random`` or a ``random.Random``); the rest is test.

    Raises:
        UserError: a class is too small for one image in each part.
    """
    p_test = 1 - p_train - p_val
    logger.info("Splitting into %.0f%% train, %.0f%% val, and %.0f%% test", 100 * p_train, 100 * p_val, 100 * p_test)
    split = Split([], [], [])
    for images in classes:
        shuffled = list(images)
        rng.shuffle(shuffled)
        n_train, n_val = round(len(shuffled) * p_train), round(len(shuffled) * p_val)
        if min(n_train, n_val, len(shuffled) - n_train - n_val) < 1:
            where = f"'{images[0].classname}' has {len(images)} images" if images else "one has no image"
            raise UserError(f"class {where}: too few for train, val and test")
        split.train.extend(shuffled[:n_train])
        split.val.extend(shuffled[n_train : n_train + n_val])
        split.test.extend(shuffled[n_train + n_val :])
    return split


def subsample_classes(split: Split, which: str) -> Split:
    """Keep the first half of the classes (``base``: ceil(n/2) of them), the second (``new``) or ``all``.

    Halves are taken of the training items' sorted labels; the kept classes are relabelled from 0.
    """
    if which not in ("all", "base", "new"):
        raise unknown("DATASET.SUBSAMPLE_CLASSES", which, ("all", "base", "new"))
    if which == "all":
        return split
    logger.info("SUBSAMPLE %s CLASSES!", which.upper())
    labels = sorted({item.label for item in split.train})
    half = math.ceil(len(labels) / 2)
    kept = labels[:half] if which == "base" else labels[half:]
    new_label = {label: position for position, label in enumerate(kept)}
    parts = [[item.relabelled(new_label[item.label]) for item in part if item.label in new_label] for part in split]
    return Split(*parts)


def check_labels(split: Split, source: str) -> None:
    """Raise UserError unless training labels run 0..K-1, one name each, and the other lists use no others."""
    names: dict[int, str] = {}
    for item in split.train:
        if names.setdefault(item.label, item.classname) != item.classname:
            raise UserError(f"{source}: label {item.label} is both '{names[item.label]}' and '{item.classname}'")
    gaps = [label for label in range(max(names, default=0) + 1) if label not in names]
    if gaps or min(names, default=0) < 0:
        wrong = f"no training image has label {gaps[0]}" if gaps else f"label {min(names)} is negative"
        raise UserError(f"{source}: labels must run from 0 without a gap, but {wrong}")
    for item in (*split.val, *split.test):
        if item.label not in names:
            raise UserError(f"{source}: '{item.impath}' has label {item.label}, which no training image has")


def check_files(split: Split, source: str, hint: str) -> None:
    """Raise UserError if images are not there (how many, and the first three) or a folder may not be looked into.

    Lists each folder once instead of asking for each file: 100,000 names take a second.
    """
    items = [item for part in split for item in part]
    try:
        missing = find_missing(item.impath for item in items)
    except OSError as error:
        raise UserError(f"{source}: cannot look into '{error.filename}': {error.strerror}") from error
    if missing:
        first = ", ".join(f"'{path}'" for path in missing[:3])
        more = ", ..." if len(missing) > 3 else ""
        total = len({item.impath for item in items})
        raise UserError(f"{source} names {len(missing)} of {total} images that are not there: {first}{more}. {hint}")


def find_missing(paths: Iterable[str]) -> list[str]:
    """Those of ``paths`` that are not there, once each, in order."""
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
