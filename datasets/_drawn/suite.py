"""The base class of the drawn datasets: drawn on first use into ordinary folders, then read like any other.

`<root>/<dataset_dir>/images/<split>/<class>/<number>.png`, `split.json` and `classes.json`; without `DATASET.ROOT` the
root is the folder `datasets` in the cache. A dataset is drawn elsewhere and put in its place whole, so a drawing that
was killed is never taken for one, and of two processes at once one wins, with the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image

from dassl_lite.data import FolderDataset
from dassl_lite.data.splits import write_listing
from dassl_lite.datasets._drawn.classes import ObjectClass, subjects_of
from dassl_lite.datasets._drawn.fields import Painters, paint
from dassl_lite.datasets._drawn.looks import PHOTO, Look, compose
from dassl_lite.datasets._drawn.render import Images, draw
from dassl_lite.datasets._drawn.scene import Ints
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import cache_root

logger = logging.getLogger(__name__)

EDITION = 1  # of the pictures; with another one, what an older version has drawn is drawn anew
SPLITS = ("train", "val", "test")
STAMP_FILE = "drawing.json"
ABANDONED_AFTER = 3600.0  # seconds without a change, after which another process's unfinished drawing is removed


class PerClass(NamedTuple):
    """Pictures per class in each split."""

    train: int = 20
    val: int = 6
    test: int = 30


class DrawnDataset(FolderDataset):
    """A dataset that draws itself. A subclass gives `class_table` and `pictures`."""

    split_file = "split.json"
    classes_file = "classes.json"
    per_class: ClassVar[PerClass] = PerClass()

    def find_root(self, cfg: Any) -> str:
        return super().find_root(cfg) if cfg.DATASET.ROOT else str(cache_root() / "datasets")

    def prepare(self) -> None:
        """Draw the dataset if it is not there, or if another edition of the pictures is."""
        stamp = {"drawn": type(self).__name__, "edition": EDITION}
        place_whole(Path(self.dataset_dir), stamp, self._draw_into)

    def class_table(self) -> Sequence[tuple[str, str]]:
        """Name and id of each class, in label order."""
        raise NotImplementedError

    def pictures(self, split: str, rng: np.random.Generator) -> tuple[Images, Ints]:
        """All pictures (N, S, S, 3) of a split, and their labels (N,)."""
        labels = np.repeat(np.arange(len(self.class_table())), getattr(self.per_class, split))
        return self.draw(labels, rng), labels

    def draw(self, labels: Ints, rng: np.random.Generator) -> Images:
        """One picture for each label."""
        raise NotImplementedError

    def _draw_into(self, folder: Path) -> None:
        logger.info("Drawing %s into %s", type(self).__name__, self.dataset_dir)
        names = [name for name, _ in self.class_table()]
        listing = {split: self._save_split(folder / Path(self.image_dir).name, split, names) for split in SPLITS}
        write_listing(listing, folder / self.split_file)
        table = [{"name": name, "id": identity} for name, identity in self.class_table()]
        (folder / self.classes_file).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")

    def _save_split(self, images_folder: Path, split: str, names: Sequence[str]) -> list[list[str | int]]:
        """Draw and save one split; its rows for the split file."""
        pictures, labels = self.pictures(split, split_rng(type(self).__name__, split))
        folders = [f"{split}/{name.replace(' ', '_')}" for name in names]
        for folder in folders:
            (images_folder / folder).mkdir(parents=True)
        rows: list[list[str | int]] = []
        counts = [0] * len(names)
        for picture, label in zip(pictures, labels.tolist(), strict=True):
            path = f"{folders[label]}/{counts[label]:03d}.png"
            Image.fromarray(picture).save(images_folder / path, compress_level=1)
            counts[label] += 1
            rows.append([path, label, names[label]])
        return rows


class ObjectDataset(DrawnDataset):
    """One object in each picture. A subclass lists its classes and says how the pictures look."""

    object_classes: ClassVar[Sequence[ObjectClass]] = ()
    look: ClassVar[Look] = PHOTO

    def class_table(self) -> Sequence[tuple[str, str]]:
        return [(cls.name, cls.id) for cls in self.object_classes]

    def draw(self, labels: Ints, rng: np.random.Generator) -> Images:
        return draw(compose(subjects_of(self.object_classes, labels, rng), self.look, rng), rng)


class FieldDataset(DrawnDataset):
    """Pictures without an object. A subclass gives one painter for each class name."""

    painters: ClassVar[Painters] = {}

    def class_table(self) -> Sequence[tuple[str, str]]:
        return [(name, "") for name in self.painters]

    def draw(self, labels: Ints, rng: np.random.Generator) -> Images:
        return paint(self.painters, labels, rng)


def split_rng(dataset: str, split: str) -> np.random.Generator:
    """Each split of each dataset has its own stream, so that none depends on how many pictures another has."""
    return np.random.default_rng([EDITION, zlib.crc32(f"{dataset}/{split}".encode())])


def place_whole(folder: Path, stamp: Mapping[str, Any], fill: Callable[[Path], None]) -> None:
    """Make sure that `folder` holds what `fill` puts into an empty folder, under this `stamp`.

    `fill` works in a folder beside it, which takes its name when done; nothing else is ever visible under that name.

    Raises:
        UserError: the folder holds something else, or cannot be made.
    """
    if _holds(folder, stamp):
        return
    try:
        _remove_abandoned(folder)
        drawing = _new_sibling(folder)
        try:
            fill(drawing)
            write_listing(stamp, drawing / STAMP_FILE)
            _put_in_place(drawing, folder, stamp)
        finally:
            shutil.rmtree(drawing, ignore_errors=True)
    except OSError as error:
        where = "set DATASET.ROOT (--root) or DASSL_LITE_CACHE to a folder that can be written to"
        raise UserError(f"cannot draw into '{folder}' ({error.strerror or error}); {where}") from error


def _holds(folder: Path, stamp: Mapping[str, Any]) -> bool:
    """Whether the folder carries this stamp; False if it is not there, empty, or of another edition of ours."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    try:
        found = json.loads((folder / STAMP_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("drawn") != stamp["drawn"]:
        raise UserError(f"'{folder}' holds something that was not drawn here; move it away, or set another --root")
    return found == dict(stamp)


def _new_sibling(folder: Path) -> Path:
    sibling = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.drawing")
    sibling.mkdir(parents=True)
    return sibling


def _put_in_place(drawing: Path, folder: Path, stamp: Mapping[str, Any]) -> None:
    """Rename `drawing` to `folder`, unless another process was first with the same; an older edition gives way."""
    try:
        os.rename(drawing, folder)
    except OSError:
        if not folder.is_dir():
            raise
        if _holds(folder, stamp):
            return
        old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.drawing")
        os.rename(folder, old)
        os.rename(drawing, folder)
        shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes have left beside `folder`."""
    for left in folder.parent.glob(f".{folder.name}.*.drawing"):
        try:
            idle = time.time() - max(path.stat().st_mtime for path in [left, *left.rglob("*")])
        except FileNotFoundError:
            continue  # its process has just finished
        if idle > ABANDONED_AFTER:
            shutil.rmtree(left, ignore_errors=True)
