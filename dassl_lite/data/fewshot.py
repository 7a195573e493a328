"""Few-shot draws: made exactly as CoOp makes them, kept as JSON, identified by a digest.

A draw takes ``num_shots`` images of each class with Python's global ``random``: train first, then val with at most four
per class; classes in order of first appearance; without replacement; a class with too few images gives all of them and
consumes no random numbers. Reading a draw from its file consumes no random numbers either, as in CoOp.

Where images have several classes, an image counts for each of them and is drawn once. The class with the fewest images
comes first, and draws as many as it lacks of those that other classes have not drawn. So every class has ``num_shots``
images, or all it has; a class that occurs together with rarer ones may have more. As many images with none of the
classes, or all there are, are drawn last: without them a single class would be trained without negatives. If every
drawn image still has a certain class, as many without it are drawn as well.

CoOp and its forks keep draws as pickles, ``split_fewshot/shot_N-seed_S.pkl``. They are used where our JSON file does
not exist yet, so a folder that CoOp has used keeps its shots. Such a file is ``{"train": [...], "val": [...]}`` of
Datum objects with the absolute paths of the machine that wrote it. Only the fields of each Datum are read; anything
else in the file is refused, and nothing in it is imported or called.

Others publish their draws as lists, with one image per line: ``.jsonl`` with an object that has a path and, optionally,
a label or a class name, or ``.txt`` with a path and, optionally, a label. An image is drawn for the part of the split
that it is in, train or val.
"""

from __future__ import annotations

import json
import os
import pickle
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from dassl_lite.data.datum import Datum, is_multi_label, labels_of
from dassl_lite.data.splits import read_listing, rows_from_items, write_listing
from dassl_lite.utils.errors import UserError, shown
from dassl_lite.utils.files import digest_of, open_file, read_text
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.safe_load import MAX_PICKLE, PICKLE_ERRORS, Inert, unpickle

logger = get_logger(__name__)

MAX_VAL_SHOTS = 4
LISTS = (".jsonl", ".txt")  # extensions of draws in list form
# Keys of the object in a line of published lists, in lower case.
_PATHS = ("impath", "path", "image_path", "img_path", "image", "img", "filename", "file_name", "file")
_LABELS = ("label", "target", "class_id", "class_idx", "label_id", "y")
_CHECK = "Check DATASET.FEWSHOT_FILE."
_NAMES = ("classname", "class_name", "label_name", "class", "category")


class Draw(NamedTuple):
    """Drawn images; ``val`` is empty for a dataset that validates on its test images."""

    train: list[Datum]
    val: list[Datum]


def folds_of(labels: Tensor, most: int, seed: int) -> Tensor:
    """The fold that holds out each image (N,); -1 for the only image of a class.

    A fold holds out its share of each class, but never all of a class.

    Args:
        labels: (N,).
        most: maximum number of folds; at most as many as the largest class has images.
    """
    draw, found = np.random.default_rng(seed), np.full(len(labels), -1)
    of_class, counts = labels.cpu().numpy(), labels.bincount().cpu().numpy()
    folds = min(most, int(counts.max()))
    for label in np.flatnonzero(counts > 1):
        rows = draw.permutation(np.flatnonzero(of_class == label))
        found[rows] = (np.arange(len(rows)) + draw.integers(folds)) % folds
    return torch.from_numpy(found).to(labels.device)


def group_by_label(items: Iterable[Datum]) -> dict[int, list[Datum]]:
    """Images per label, labels in order of first appearance; an image of several classes is listed with each."""
    groups: dict[int, list[Datum]] = {}
    for item in items:
        for label in labels_of(item):
            groups.setdefault(label, []).append(item)
    return groups


def draw_shots(items: Sequence[Datum], num_shots: int, repeat: bool = False) -> list[Datum]:
    """Draw ``num_shots`` images per class and, where images may have several, as many with none.

    Args:
        repeat: draw with replacement from a class with fewer images; otherwise it gives all of its images.
    """
    if is_multi_label(items):
        return _draw_multi_label(items, num_shots, repeat)
    drawn: list[Datum] = []
    for images in group_by_label(items).values():
        if len(images) >= num_shots:
            drawn += random.sample(images, num_shots)
        elif repeat:
            drawn += random.choices(images, k=num_shots)
        else:
            drawn += images
    return drawn


def _draw_multi_label(items: Sequence[Datum], num_shots: int, repeat: bool) -> list[Datum]:
    """`draw_shots` of images that may have several classes."""
    drawn: dict[int, Datum] = {}  # by position
    repeated: list[Datum] = []
    by_label: dict[int, list[int]] = {}
    for position, item in enumerate(items):
        for label in item.labels:
            by_label.setdefault(label, []).append(position)
    for positions in sorted(by_label.values(), key=len):  # stable: on a tie in order of first appearance
        left = [position for position in positions if position not in drawn]
        wanted = num_shots - (len(positions) - len(left))
        picked = random.sample(left, wanted) if 0 < wanted < len(left) else left[: max(wanted, 0)]
        drawn |= {position: items[position] for position in picked}
        if repeat and wanted > len(left):
            repeated += [items[position] for position in random.choices(positions, k=wanted - len(left))]
    without = [item for item in items if not item.labels]
    without = random.sample(without, num_shots) if num_shots < len(without) else without
    found = [*drawn.values(), *repeated, *without]
    for label in by_label:
        if all(label in item.labels for item in found):
            others = [item for item in items if label not in item.labels]  # none of them is drawn
            found += random.sample(others, num_shots) if num_shots < len(others) else others
    return found


def warn_of_small_classes(items: Sequence[Datum], num_shots: int) -> None:
    """Log one line with the classes that have fewer than ``num_shots`` training images."""
    names = {label: name for item in items for label, name, _ in item.classes}
    small = [(names[label], len(group)) for label, group in group_by_label(items).items() if len(group) < num_shots]
    if small:
        named = ", ".join(f"{shown(name)} ({count})" for name, count in small[:5])
        more = f" and {len(small) - 5} more classes" if len(small) > 5 else ""
        logger.warning(f"Classes with fewer than {num_shots} training images, all of which are used: {named}{more}")


def draw_digest(draw: Draw, image_dir: str) -> str:
    """SHA-256 (hex) of the relative paths and labels of a draw, in order: equal digests mean the same images."""
    parts = {name: rows_from_items(getattr(draw, name), image_dir) for name in Draw._fields}
    return digest_of({name: [row[:2] for row in rows] for name, rows in parts.items()})


class DrawFile:
    """Reads and writes the draws of one dataset as JSON with relative paths.

    Args:
        dataset: registered name of the dataset.
        image_dir: folder that paths are relative to.
        source: the full train and val lists; a draw with other images is refused.
    """

    def __init__(self, dataset: str, image_dir: str, source: Draw) -> None:
        self.dataset = dataset
        self.image_dir = image_dir
        self.source = source

    def save(self, draw: Draw, num_shots: int, seed: int, path: Path) -> None:
        content = {
            "dataset": self.dataset,
            "num_shots": num_shots,
            "seed": seed,
            "digest": draw_digest(draw, self.image_dir),
            "train": rows_from_items(draw.train, self.image_dir),
            "val": rows_from_items(draw.val, self.image_dir),
        }
        write_listing(content, path)

    def load(self, path: Path, expected: dict[str, Any], remedy: str) -> Draw:
        """Read a draw, in its order.

        Args:
            expected: values that the file must hold (``num_shots``, ``seed``), besides the dataset's name.
            remedy: what the user can do about a file that does not fit.

        Raises:
            UserError: the file is corrupt, of another dataset, shot count or seed, or not a draw from this split.
        """
        try:
            content = read_listing(path)
        except UserError as error:
            raise UserError(f"{error}. {remedy}") from error
        for key, wanted in {"dataset": self.dataset, **expected}.items():
            if content.get(key, wanted) != wanted:
                raise UserError(f"few-shot file '{path}' has {key} {content[key]!r}, not {wanted!r}. {remedy}")
        try:
            draw = Draw(*(self._pick(content.get(part), getattr(self.source, part)) for part in Draw._fields))
        except (LookupError, TypeError, ValueError) as error:
            what = f"lists '{error.args[0]}'" if isinstance(error, LookupError) else f"is corrupt: {error}"
            raise UserError(f"few-shot file '{path}' does not fit this split: it {what}. {remedy}") from error
        digest = draw_digest(draw, self.image_dir)
        if content.get("digest", digest) != digest:
            raise UserError(f"few-shot file '{path}' was modified: its digest does not match its images. {remedy}")
        return draw

    def _pick(self, rows: Any, items: Sequence[Datum]) -> list[Datum]:
        """The items listed in ``rows``; raises LookupError with the first path that is not among ``items``."""
        # Filter by file name first: a draw has a few thousand of ImageNet's 1.3 million images.
        names = {str(relative).rpartition("/")[2] for relative, _, _ in rows}
        near = [item for item in items if os.path.basename(item.impath) in names]
        listed = zip(rows_from_items(near, self.image_dir), near, strict=True)
        known = {relative: (label, item) for (relative, label, _), item in listed}
        picked = []
        for relative, label, _ in rows:
            expected, item = known.get(relative, (None, None))
            if item is None or label != expected:
                raise LookupError(relative)
            picked.append(item)
        return picked


def read_pickled_draw(path: Path, image_dir: str, source: Draw) -> Draw:
    """Read a draw that CoOp or a fork of it has pickled.

    A stored path matches the image whose path below ``image_dir`` it ends with.

    Args:
        source: the full train and val lists, from which the items of the draw are taken.

    Raises:
        UserError: the file is not a draw, holds other objects, or has images that ``source`` lacks.
    """
    try:
        stored = _unpickle(path)
        return Draw(*(_match(stored.get(part, []), image_dir, getattr(source, part)) for part in Draw._fields))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except PICKLE_ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"few-shot pickle {path} cannot be used: {reason}. None of its code was run; delete it to draw again."
        ) from error


def read_listed_draw(path: Path, image_dir: str, source: Draw, num_shots: int) -> Draw:
    """Read a draw that is a list of images, ``.jsonl`` or ``.txt``.

    A path matches the image whose path below ``image_dir`` it ends with. A class name must be the image's; without one,
    a label must be.

    Args:
        source: the full train and val lists, from which the items of the draw are taken.
        num_shots: the most training images that a class may have; -1 for any number.

    Raises:
        UserError: the file is not such a list, or does not fit the split; the message names the line.
    """
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read few-shot list '{path}': {getattr(error, 'strerror', None) or error}") from error
    parse = _from_json if path.suffix == ".jsonl" else _from_words
    drawn: dict[str, list[Datum]] = {part: [] for part in Draw._fields}
    number = 0
    try:
        rows = {}
        for number, line in enumerate(lines, start=1):
            if line:
                rows[number] = parse(line)
        known = _by_path({_parts(stored)[-1] for stored, _, _ in rows.values()}, image_dir, source)
        seen: set[str] = set()
        for number in rows:
            part, item = _listed(*rows[number], known)
            if item.impath in seen:
                raise ValueError(f"{shown(rows[number][0])} is listed twice")
            seen.add(item.impath)
            drawn[part].append(item)
    except (ValueError, RecursionError) as error:
        raise UserError(f"few-shot list '{path}', line {number}: {error}. {_CHECK}") from None
    by_label = group_by_label(drawn["train"])
    most = max(map(len, by_label.values()), default=0)
    if not most or num_shots not in (-1, most):
        wanted = "" if num_shots < 0 else f", not DATASET.NUM_SHOTS {num_shots}"
        raise UserError(f"few-shot list '{path}' has {most} training images of this split per class{wanted}. {_CHECK}")
    names = {label: name for item in source.train for label, name, _ in item.classes}
    counts = {label: len(by_label.get(label, ())) for label in sorted(names)}
    few = [f"{shown(names[label])} ({count})" for label, count in counts.items() if count < most]
    if few:
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        logger.warning(f"Few-shot list '{path}' has fewer than {most} images of {', '.join(few[:5])}{more}")
    return Draw(**drawn)


def _by_path(names: set[str], image_dir: str, source: Draw) -> dict[str, tuple[str, Datum]]:
    """Part and image by relative path, of the images with these file names; an image of both parts is in train."""
    known: dict[str, tuple[str, Datum]] = {}
    for part in reversed(Draw._fields):
        near = [item for item in getattr(source, part) if os.path.basename(item.impath) in names]
        listed = zip(rows_from_items(near, image_dir), near, strict=True)
        known |= {str(relative): (part, item) for (relative, *_), item in listed}
    return known


def _from_json(line: str) -> tuple[str, int | None, str | None]:
    """Path, label and class name from the JSON object of a line."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"a line should be a JSON object with a path, not {shown(line)}")
    lower = {str(key).lower(): value for key, value in row.items()}

    def first(keys: Sequence[str], kind: type) -> Any:
        return next((lower[key] for key in keys if type(lower.get(key)) is kind), None)

    path = first(_PATHS, str)
    if not path or not _parts(path):
        raise ValueError(f"it has none of the keys {', '.join(_PATHS)} with a path")
    return path, first(_LABELS, int), first(_NAMES, str)


def _from_words(line: str) -> tuple[str, int | None, str | None]:
    """Path and label from a line such as "cat/001.jpg 3"; the path may contain spaces."""
    path, _, last = line.rpartition(" ")
    return (path.strip(), int(last), None) if path and last.isdecimal() else (line, None, None)


def _listed(
    path: str, label: int | None, name: str | None, known: Mapping[str, tuple[str, Datum]]
) -> tuple[str, Datum]:
    """Split part and image for a path; raises if the label or class name differs."""
    parts = _parts(path)
    found = next((one for start in range(len(parts)) if (one := known.get("/".join(parts[start:])))), None)
    if found is None:
        raise ValueError(f"this split has no training or validation image {shown(path)}")
    for _, own, _ in [] if name is None else found[1].classes:
        if _spelled(own) == _spelled(str(name)):
            return found
    if name is not None:
        raise ValueError(f"{shown(path)} is of class {shown(found[1].classname)}, not {shown(name)}")
    if label is not None and label not in found[1].labels:
        raise ValueError(f"{shown(path)} has label {found[1].label}, not {label}")
    return found


def _spelled(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _unpickle(path: Path) -> Mapping[str, Any]:
    with open_file(path, MAX_PICKLE) as file:
        data = file.read()
    stored, _ = unpickle(data, _no_tensors)
    if not isinstance(stored, dict) or not isinstance(stored.get("train"), list):
        raise pickle.UnpicklingError("it has no list of training images")
    return stored


def _no_tensors(dtype: torch.dtype, key: str, numel: int) -> NoReturn:
    raise pickle.UnpicklingError("it contains a tensor")


def _match(stored: Iterable[object], image_dir: str, items: Sequence[Datum]) -> list[Datum]:
    """The items for the stored Datums."""
    wanted = [_path_and_label(entry) for entry in stored]
    names = {_parts(path)[-1] for path, _ in wanted}  # a few of ImageNet's 1.3 million
    near = [item for item in items if os.path.basename(item.impath) in names]
    known = {str(row[0]): item for row, item in zip(rows_from_items(near, image_dir), near, strict=True)}
    return [_find_item(_parts(path), label, known) for path, label in wanted]


def _path_and_label(entry: object) -> tuple[str, int]:
    """Path and label of an inert Datum."""
    name = entry.name if isinstance(entry, Inert) else type(entry).__name__
    if not isinstance(entry, Inert) or name.rpartition(".")[2] != "Datum" or not isinstance(entry.state, dict):
        raise pickle.UnpicklingError(f"it contains a {name}, not a Datum")
    path, label = entry.state.get("_impath"), entry.state.get("_label")
    if not isinstance(path, str) or not isinstance(label, int) or not _parts(path):
        raise pickle.UnpicklingError("it contains a Datum without path or label")
    return path, label


def _parts(path: str) -> tuple[str, ...]:
    return (PureWindowsPath(path) if "\\" in path else PurePath(path)).parts


def _find_item(parts: Sequence[str], label: int, known: Mapping[str, Datum]) -> Datum:
    """The item whose relative path ends the stored path, given as its ``parts``."""
    for start in range(len(parts)):
        item = known.get("/".join(parts[start:]))
        if item is not None and item.labels == (label,):
            return item
    raise pickle.UnpicklingError(f"this split has no image {os.path.join(*parts[-2:])} with label {label}")
