"""The few-shot draw: as the reference makes it, kept as JSON, recognised by its digest.

The draw takes ``num_shots`` images of each class with Python's global ``random``: train first, then val with
at most four per class; classes in the order in which they first appear; without replacement; nothing is drawn
for a class that has too few. Read back from its file it consumes no random numbers, as in the reference.

Dassl's forks keep theirs as pickles, ``split_fewshot/shot_N-seed_S.pkl``. One is taken wherever our JSON is not there
yet, so a folder that the reference has used keeps its shots. Such a file is ``{"train": [...], "val": [...]}`` of Datum
objects, with absolute paths of the machine that wrote it. Of each Datum its four fields are taken; anything else in the
file is refused, and nothing in it is imported or called.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, NamedTuple, NoReturn

import torch

from dassl_lite.data.datum import Datum
from dassl_lite.data.splits import read_listing, rows_from_items, write_listing
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import digest_of
from dassl_lite.utils.safe_load import PICKLE_ERRORS, Inert, InertUnpickler, check_opcodes

logger = logging.getLogger(__name__)

MAX_VAL_SHOTS = 4


class Draw(NamedTuple):
    """Drawn images; ``val`` is empty for a dataset that validates on other images than its own val list."""

    train: list[Datum]
    val: list[Datum]


def group_by_label(items: Iterable[Datum]) -> dict[int, list[Datum]]:
    """Items per label, labels in the order in which they first appear."""
    groups: dict[int, list[Datum]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return groups


def draw_shots(items: Sequence[Datum], num_shots: int, repeat: bool = False) -> list[Datum]:
    """Draw ``num_shots`` images per class.

    Args:
        repeat: draw with replacement where a class has fewer images; else it gives all that it has.
    """
    drawn: list[Datum] = []
    for images in group_by_label(items).values():
        if len(images) >= num_shots:
            drawn += random.sample(images, num_shots)
        elif repeat:
            drawn += random.choices(images, k=num_shots)
        else:
            drawn += images
    return drawn


def warn_of_small_classes(items: Sequence[Datum], num_shots: int) -> None:
    """Name, in one line, the classes that have fewer than ``num_shots`` training images."""
    small = [group for group in group_by_label(items).values() if len(group) < num_shots]
    if small:
        named = ", ".join(f"'{group[0].classname}' ({len(group)})" for group in small[:5])
        logger.warning(
            "Fewer than %d training images, all of them are used: %s%s",
            num_shots,
            named,
            f" and {len(small) - 5} more classes" if len(small) > 5 else "",
        )


def draw_digest(draw: Draw, image_dir: str) -> str:
    """SHA-256 (hex) of a draw: relative paths and labels in order. Equal means the same images."""
    parts = {name: rows_from_items(getattr(draw, name), image_dir) for name in Draw._fields}
    return digest_of({name: [row[:2] for row in rows] for name, rows in parts.items()})


class DrawFile:
    """Reads and writes draws of one dataset as JSON with relative paths.

    Args:
        dataset: registered name of the dataset.
        image_dir: folder that the paths are relative to.
        source: the whole dataset's train and val lists; a draw that names other images is refused.
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
        """Read a draw back, in its order.

        Args:
            expected: what the file must say of itself (``num_shots``, ``seed``), beside the dataset's name.
            remedy: what the user should do with a file that does not fit.

        Raises:
            UserError: corrupt, of another dataset, shot count or seed, or not a draw from this split.
        """
        try:
            content = read_listing(path)
        except UserError as error:
            raise UserError(f"{error}. {remedy}") from error
        for key, wanted in {"dataset": self.dataset, **expected}.items():
            if content.get(key, wanted) != wanted:
                raise UserError(f"few-shot file '{path}' says {key} {content[key]!r}, not {wanted!r}. {remedy}")
        try:
            draw = Draw(*(self._pick(content.get(part), getattr(self.source, part)) for part in Draw._fields))
        except (LookupError, TypeError, ValueError) as error:
            what = f"names '{error.args[0]}'" if isinstance(error, LookupError) else f"is corrupt: {error}"
            raise UserError(f"few-shot file '{path}' does not fit this split: it {what}. {remedy}") from error
        digest = draw_digest(draw, self.image_dir)
        if content.get("digest", digest) != digest:
            raise UserError(f"few-shot file '{path}' was changed: its digest does not fit its images. {remedy}")
        return draw

    def _pick(self, rows: Any, items: Sequence[Datum]) -> list[Datum]:
        """The items that the rows name; LookupError with the first path that is none of them."""
        # By file name first: of ImageNet's 1.3 million images a draw names a few thousand.
        names = {str(relative).rpartition("/")[2] for relative, _, _ in rows}
        near = [item for item in items if os.path.basename(item.impath) in names]
        known = {row[0]: item for row, item in zip(rows_from_items(near, self.image_dir), near, strict=True)}
        picked = []
        for relative, label, _ in rows:
            item = known.get(relative)
            if item is None or item.label != label:
                raise LookupError(relative)
            picked.append(item)
        return picked


def read_pickled_draw(path: Path, image_dir: str, source: Draw) -> Draw:
    """The draw in ``path``, as items of ``source``, the whole dataset.

    A stored path stands for the image whose path below ``image_dir`` it ends in, whatever is before that.

    Raises:
        UserError: no draw, one that holds other objects, or one of images that this dataset has not.
    """
    try:
        stored = _read(path)
        return Draw(*(_match(stored.get(part, []), image_dir, getattr(source, part)) for part in Draw._fields))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except PICKLE_ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"few-shot pickle {path} cannot be used: {reason}. Nothing in it was run; delete it to draw anew."
        ) from error


def _read(path: Path) -> Mapping[str, Any]:
    data = path.read_bytes()
    check_opcodes(data)
    stored = InertUnpickler(io.BytesIO(data), _no_tensors).load()
    if not isinstance(stored, dict) or not isinstance(stored.get("train"), list):
        raise pickle.UnpicklingError("it holds no list of training images")
    return stored


def _no_tensors(dtype: torch.dtype, key: str, numel: int) -> NoReturn:
    raise pickle.UnpicklingError("it holds a tensor")


def _match(stored: Any, image_dir: str, items: Sequence[Datum]) -> list[Datum]:
    wanted = [_fields(entry) for entry in stored]
    names = {_parts(path)[-1] for path, _ in wanted}  # a few of ImageNet's 1.3 million
    near = [item for item in items if os.path.basename(item.impath) in names]
    known = {str(row[0]): item for row, item in zip(rows_from_items(near, image_dir), near, strict=True)}
    return [_item_of(_parts(path), label, known) for path, label in wanted]


def _fields(entry: Any) -> tuple[str, int]:
    """Path and label of an inert Datum."""
    name = entry.name if isinstance(entry, Inert) else type(entry).__name__
    if name.rpartition(".")[2] != "Datum" or not isinstance(entry.state, dict):
        raise pickle.UnpicklingError(f"it holds a {name}, where Datum is expected")
    path, label = entry.state.get("_impath"), entry.state.get("_label")
    if not isinstance(path, str) or not isinstance(label, int) or not _parts(path):
        raise pickle.UnpicklingError("it holds a Datum without path or label")
    return path, label


def _parts(path: str) -> tuple[str, ...]:
    return (PureWindowsPath(path) if "\\" in path else PurePath(path)).parts


def _item_of(parts: Sequence[str], label: int, known: Mapping[str, Datum]) -> Datum:
    for start in range(len(parts)):
        item = known.get("/".join(parts[start:]))
        if item is not None and item.label == label:
            return item
    raise pickle.UnpicklingError(f"this split has no image {os.path.join(*parts[-2:])} with label {label}")
