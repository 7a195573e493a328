"""A dataset of features that were computed elsewhere: no images, no CLIP, the same draws and classes as any other.

An item's path is ``<file>/<split>/<row>``, so that draw files name rows as they name images.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from dassl_lite.data.datum import Datum
from dassl_lite.data.feature_cache import Features
from dassl_lite.data.feature_files.file import PARTS, FeatureFile, read_feature_file
from dassl_lite.data.folder import FolderDataset, SidecarFiles
from dassl_lite.data.splits import Split, check_labels
from dassl_lite.utils.errors import UserError

logger = logging.getLogger(__name__)


class StoredTransform:
    """Stands for the transform that the images went through before their features were computed.

    Args:
        text: what the file says of it.
        deterministic: whether there is but one view of an image.
    """

    def __init__(self, text: str, deterministic: bool) -> None:
        self.text, self.deterministic = text, deterministic

    def __call__(self, image: Any) -> NoReturn:
        raise UserError("a dataset of features has no images to transform")


class FeatureDataset(FolderDataset):
    """The file of features that ``cfg.DATASET.FILE`` names; see :mod:`dassl_lite.data.feature_files.file`.

    Attributes:
        file: what it holds.
        rows: row of ``file.text_weights`` for every class; they differ where classes are subsampled.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        stored = {item.label: self.file.parts[part].labels[row] for item in self.train_x for part, row in [_at(item)]}
        self.rows = np.array([stored[label] for label in sorted(stored)])

    @property
    def text_weights(self) -> torch.Tensor:
        """(T, K, D) for the K classes in use, in label order."""
        return torch.from_numpy(self.file.text_weights[:, self.rows])

    def transform(self, is_train: bool) -> StoredTransform:
        """What stands for the image transform."""
        views = len(self.file.parts["train"].views) if "train" in self.file.parts else 1
        if is_train and views > 1:
            return StoredTransform(self.file.train_transform, deterministic=False)
        return StoredTransform(self.file.transform, deterministic=True)

    def fetch(self, items: Sequence[Datum], augmented: bool) -> Features:
        """Features of ``items``, which are of one split: every view, or if not ``augmented`` the one without that.

        Raises:
            UserError: the file has augmented views only.
        """
        (part,) = {_at(item)[0] for item in items}
        rows = [_at(item)[1] for item in items]
        tensor = torch.from_numpy(self._views(part, augmented)[:, rows])
        return Features(tensor, torch.ones(len(items), dtype=torch.bool))

    def _views(self, part: str, augmented: bool) -> np.ndarray[Any, Any]:
        stored = self.file.parts[part]
        if augmented or len(stored.views) == 1:
            return stored.views
        if stored.plain is None:
            raise UserError(
                f"feature file {self.image_dir} has {len(stored.views)} augmented views of its training images; this "
                f"method needs them without augmentation, in an array {part}_plain_features (N, D)"
            )
        return stored.plain[None]

    # ---- what differs from a folder of images ---------------------------------------------------------------------

    def locate(self, cfg: Any) -> None:
        if not cfg.DATASET.FILE:
            raise UserError(f"dataset {type(self).__name__} needs DATASET.FILE, the .npz file of features")
        path = Path(cfg.DATASET.FILE).expanduser()
        if not path.is_absolute() and not path.is_file() and cfg.DATASET.ROOT:
            path = Path(cfg.DATASET.ROOT).expanduser() / path
        self.image_dir = os.path.abspath(path)
        self.dataset_dir = os.path.splitext(self.image_dir)[0]  # draws are kept there, beside the file
        self.sidecar = SidecarFiles(type(self).__name__, self.dataset_dir)

    def _check_layout(self) -> None:
        """Nothing here: reading the file says what is wrong with it."""

    def _check(self, split: Split, on_error: str) -> None:
        check_labels(split, f"feature file {self.image_dir}")

    def load(self) -> Split:
        self.file = file = read_feature_file(self.image_dir)
        self.template, self.ensemble_templates = file.templates[0], file.ensemble_templates
        self.test_only = "train" not in file.parts
        logger.info("Features of %s, %d wide, from %s", file.backbone or "a backbone", file.width, self.image_dir)
        return Split(*(self._items(part, file) for part in PARTS))

    def _items(self, part: str, file: FeatureFile) -> list[Datum]:
        folder = os.path.join(self.image_dir, part)
        labels = file.parts[part].labels.tolist() if part in file.parts else []
        return [
            Datum(os.path.join(folder, str(row)), label, 0, file.classnames[label], file.classids[label])
            for row, label in enumerate(labels)
        ]


def _at(item: Datum) -> tuple[str, int]:
    """Split and row of an item."""
    folder, row = os.path.split(item.impath)
    return os.path.basename(folder), int(row)
