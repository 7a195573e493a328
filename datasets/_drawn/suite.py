"""The base class of the drawn datasets, which are drawn into ordinary folders on first use, then read like any other.

A dataset is `<root>/<dataset_dir>/images/<split>/<class>/<number>.png`, `split.json` and `classes.json`; without
`DATASET.ROOT` the root is the folder `datasets` in the cache. It is drawn in a temporary folder, which is renamed when
it is complete. So an interrupted drawing is never used, and if two processes draw at once, one wins, with the same
bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from dassl_lite.data import FolderDataset
from dassl_lite.data.splits import write_listing
from dassl_lite.datasets._drawn.classes import ObjectClass, subjects_of
from dassl_lite.datasets._drawn.fields import Painters, paint
from dassl_lite.datasets._drawn.looks import PHOTO, Look, compose
from dassl_lite.datasets._drawn.render import Images, draw
from dassl_lite.datasets._drawn.scene import Ints
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import cache_root, read_json
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

EDITION = 1  # edition of the pictures; a dataset of another edition is drawn again
SPLITS = ("train", "val", "test")
STAMP_FILE = "drawing.json"
ABANDONED_AFTER = 3600.0  # seconds without a change after which an unfinished drawing is removed


class PerClass(NamedTuple):
    """Pictures per class in each split."""

    train: int = 20
    val: int = 6
    test: int = 30


class DrawnDataset(FolderDataset):
    """A dataset that draws itself. A subclass implements `class_table`, and `draw` or `pictures`."""

    drawn = True
    split_file = "split.json"
    classes_file = "classes.json"
    per_class: ClassVar[PerClass] = PerClass()

    def find_root(self, cfg: CfgNode) -> str:
        return super().find_root(cfg) if cfg.DATASET.ROOT else str(cache_root() / "datasets")

    def prepare(self) -> None:
        """Draw the dataset if it does not exist yet, or exists in another edition."""
        stamp = {"drawn": type(self).__name__, "edition": EDITION}
        fill_folder(Path(self.dataset_dir), stamp, self._draw_into)

    def class_table(self) -> Sequence[tuple[str, str]]:
        """Name and id of each class, in label order."""
        raise NotImplementedError

    def pictures(self, split: str, rng: np.random.Generator) -> tuple[Images, Ints]:
        """All pictures (N, S, S, 3) of a split, and their labels (N,)."""
        labels = np.repeat(np.arange(len(self.class_table())), getattr(self.per_class, split))
        return self.draw(labels, rng), labels

    def draw(self, labels: Ints, rng: np.random.Generator) -> Images:
        """A picture (S, S, 3) for each label."""
        raise NotImplementedError

    def _draw_into(self, folder: Path) -> None:
        logger.info(f"Drawing {type(self).__name__} into {self.dataset_dir}")
        names = [name for name, _ in self.class_table()]
        listing = {split: self._save_split(folder / Path(self.image_dir).name, split, names) for split in SPLITS}
        write_listing(listing, folder / self.split_file)
        table = [{"name": name, "id": identity} for name, identity in self.class_table()]
        (folder / self.classes_file).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")

    def _save_split(self, images_folder: Path, split: str, names: Sequence[str]) -> list[list[str | int]]:
        """Draw and save a split.

        Returns:
            Its rows for the split file.
        """
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
    """Pictures of one object each. A subclass declares its classes and the look of the pictures."""

    object_classes: ClassVar[Sequence[ObjectClass]] = ()
    look: ClassVar[Look] = PHOTO

    def class_table(self) -> Sequence[tuple[str, str]]:
        return [(cls.name, cls.id) for cls in self.object_classes]

    def draw(self, labels: Ints, rng: np.random.Generator) -> Images:
        return draw(compose(subjects_of(self.object_classes, labels, rng), self.look, rng), rng)


class FieldDataset(DrawnDataset):
    """Pictures without an object. A subclass declares a painter for each class name."""

    painters: ClassVar[Painters] = {}

    def class_table(self) -> Sequence[tuple[str, str]]:
        return [(name, "") for name in self.painters]

    def draw(self, labels: Ints, rng: np.random.Generator) -> Images:
        return paint(self.painters, labels, rng)


def split_rng(dataset: str, split: str) -> np.random.Generator:
    """The generator of a split; each has its own, so that no split depends on another's number of pictures."""
    return np.random.default_rng([EDITION, zlib.crc32(f"{dataset}/{split}".encode())])


def fill_folder(folder: Path, stamp: Mapping[str, object], fill: Callable[[Path], None]) -> None:
    """Create `folder` with the files that `fill` writes, unless it exists with the same `stamp`.

    `fill` works in a temporary folder beside it, which is renamed when it is complete.

    Raises:
        UserError: the folder contains something else, or cannot be created.
    """
    if _has_stamp(folder, stamp):
        return
    try:
        _remove_abandoned(folder)
        drawing = _new_sibling(folder)
        try:
            fill(drawing)
            write_listing(stamp, drawing / STAMP_FILE)
            _move_into_place(drawing, folder, stamp)
        finally:
            shutil.rmtree(drawing, ignore_errors=True)
    except OSError as error:
        remedy = "set DATASET.ROOT (--root) or DASSL_LITE_CACHE to a writable folder"
        raise UserError(f"cannot draw into '{folder}' ({error.strerror or error}); {remedy}") from error


def _has_stamp(folder: Path, stamp: Mapping[str, object]) -> bool:
    """Whether the folder has this stamp; False if it does not exist, is empty, or has one of another edition.

    Raises:
        UserError: the folder contains something else.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    try:
        stored = read_json(folder / STAMP_FILE)
    except (OSError, ValueError):
        stored = None
    if not isinstance(stored, dict) or stored.get("drawn") != stamp["drawn"]:
        raise UserError(f"'{folder}' contains files of another origin; move it away, or set another --root")
    return stored == dict(stamp)


def _new_sibling(folder: Path) -> Path:
    sibling = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.drawing")
    sibling.mkdir(parents=True)
    return sibling


def _move_into_place(drawing: Path, folder: Path, stamp: Mapping[str, object]) -> None:
    """Rename `drawing` to `folder`, replacing another edition, unless another process has drawn the same."""
    try:
        os.rename(drawing, folder)
    except OSError:
        if not folder.is_dir():
            raise
        if _has_stamp(folder, stamp):
            return
        old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.drawing")
        os.rename(folder, old)
        os.rename(drawing, folder)
        shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary folders of killed processes beside `folder`."""
    for drawing in folder.parent.glob(f".{folder.name}.*.drawing"):
        try:
            idle = time.time() - max(path.stat().st_mtime for path in [drawing, *drawing.rglob("*")])
        except FileNotFoundError:
            continue  # its process has just finished with it
        if idle > ABANDONED_AFTER:
            shutil.rmtree(drawing, ignore_errors=True)
