"""A dataset of precomputed features: no images and no CLIP, but the same draws and classes as any other dataset.

The path of an item is ``<file>/<split>/<row>``, so that files of few-shot draws list rows as they list images.

Shapes: V views, N images, T templates, K classes, D feature width.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import torch
from PIL import Image
from yacs.config import CfgNode

from dassl_lite.data.dataset import DATASET_REGISTRY
from dassl_lite.data.datum import Datum, Rows
from dassl_lite.data.feature_cache import Features
from dassl_lite.data.feature_files.arrays import Array, open_arrays
from dassl_lite.data.feature_files.file import PARTS, PLAIN_TEMPLATE, FeatureFile, FeaturePart, read_feature_file
from dassl_lite.data.feature_files.folder import RowShards, files_of
from dassl_lite.data.folder import FolderDataset
from dassl_lite.data.splits import Split, check_labels, kept_labels
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.sharing import is_shared, is_unwritten, shared, stamp

logger = get_logger(__name__)


_Read = tuple[FeatureFile, dict[int, torch.Tensor]]  # tensors over its arrays, by address


class PrecomputedTransform:
    """Stand-in for the transform of the images whose features are in a file.

    Args:
        text: the file's description of the transform.
        deterministic: False if there are several views of an image.
    """

    def __init__(self, text: str, deterministic: bool) -> None:
        self.text, self.deterministic = text, deterministic

    def __call__(self, image: Image.Image) -> NoReturn:
        raise UserError("a dataset of features has no images to transform")


class FeatureDataset(FolderDataset):
    """The feature file ``cfg.DATASET.FILE``; see :mod:`dassl_lite.data.feature_files.file`.

    Attributes:
        file: content of the file.
        rows: (K,), the row of ``file.text_weights`` for each class in use; not 0 to K - 1 if classes are subsampled.
    """

    own_data = True
    file: FeatureFile
    rows: Array
    _tensors: dict[int, torch.Tensor]
    _all_training: list[Datum]  # the images that define the classes, before a draw

    @classmethod
    def stated_name(cls, cfg: CfgNode) -> str:
        """Name of the dataset whose features these are, as the file states it; "" if it does not, or cannot be read."""
        try:
            with open_arrays(file_of(cfg)) as arrays:
                return registered_name(arrays.text("dataset"))
        except UserError:  # reported where the dataset is built
            return ""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        self.rows = np.array(kept_labels(self._all_training, cfg.DATASET.SUBSAMPLE_CLASSES))

    @property
    def text_weights(self) -> torch.Tensor:
        """Text features (T, K, D) of the classes in use, in label order."""
        return torch.from_numpy(self.file.text_weights[:, self.rows])

    def transform(self, is_train: bool) -> PrecomputedTransform:
        """Stand-in for the transform of training or test images."""
        views = len(self.file.parts["train"].views) if "train" in self.file.parts else 1
        if is_train and views > 1:
            return PrecomputedTransform(self.file.train_transform, deterministic=False)
        return PrecomputedTransform(self.file.transform, deterministic=True)

    def fetch(self, items: Sequence[Datum], augmented: bool, states: bool = False) -> Features:
        """Features, or states before the projection, of ``items``, all of the same split.

        Args:
            augmented: whether to return all views, or only the one without augmentation.

        Raises:
            UserError: ``augmented`` is False, but the file has augmented views only.
        """
        stored, rows = self.stored(items, augmented, states)
        found = self._whole(stored) if _is_whole(stored, rows) else torch.from_numpy(stored[:, rows])
        return Features(found, torch.ones(len(items), dtype=torch.bool))

    def _whole(self, stored: Array) -> torch.Tensor:
        """A tensor over an array, the same one at every call, so that its version shows writes."""
        where = stored.__array_interface__["data"][0]
        return self._tensors.setdefault(where, torch.from_numpy(stored))

    def holds(self, items: Sequence[Datum], augmented: bool, states: bool = False) -> bool:
        """Whether the result of `fetch` is already in memory, so that nothing is copied."""
        return _is_whole(*self.stored(items, augmented, states))

    def stored(self, items: Sequence[Datum], augmented: bool, states: bool = False) -> tuple[Any, Any]:
        """The stored features (V, N, D) of the split of ``items``, and the numbers (n,) of their rows."""
        part, _ = _split_and_row(items[0])
        folder = os.path.join(self.image_dir, part, "")
        whole = isinstance(items, Rows)
        rows = np.arange(len(items)) if whole else np.array([int(one.impath.removeprefix(folder)) for one in items])
        return self._views(part, augmented, states), rows

    @property
    def streams(self) -> bool:
        """Whether rows are read on demand, because they may not fit in memory."""
        return isinstance(self.file.parts["test"].views, RowShards)

    def _views(self, part: str, augmented: bool, states: bool) -> Array:
        stored = self.file.parts[part]
        if states:
            assert stored.states is not None, "a file with a projection has the states of all its parts"
            stored = FeaturePart(stored.states, stored.labels, stored.plain_states)
        if augmented or len(stored.views) == 1:
            return stored.views
        if stored.plain is None:
            raise UserError(
                f"feature file {self.image_dir} has {len(stored.views)} augmented views of its training images, but "
                f"this method needs them without augmentation, in an array {part}_plain_features (N, D)"
            )
        return stored.plain[None]

    # What differs from a folder of images.

    def locate(self, cfg: CfgNode) -> None:
        self.image_dir = file_of(cfg)
        self.dataset_dir = os.path.splitext(self.image_dir)[0]  # where few-shot draws would lie beside the file
        self.sidecar = self.sidecar_files(cfg)

    def _check_layout(self) -> None:
        """Nothing to check: reading the file reports what is wrong with it."""

    def check_split(self, split: Split, on_error: str) -> None:
        check_labels(split, f"feature file {self.image_dir}")

    def load(self) -> Split:
        def read_file() -> _Read:
            return read_feature_file(self.image_dir), {}

        files = files_of(self.image_dir) if is_shared("feature file") else ()
        source = tuple((path, stamp(path)) for path in files)
        read, self._tensors = shared("feature file", source, read_file, _is_intact)
        self.file = file = with_templates_of_dataset(read)
        self.template, self.ensemble_templates = (*file.templates, PLAIN_TEMPLATE)[0], file.ensemble_templates
        self.test_only, self.multi_label = "train" not in file.parts, file.multi_label
        logger.info(f"Features of {file.backbone or 'an unnamed backbone'}, width {file.width}, from {self.image_dir}")
        split = Split(*(self._items(part, file) for part in PARTS))
        self._all_training = split.test if self.test_only else split.train
        return split

    def _items(self, part: str, file: FeatureFile) -> list[Datum]:
        if part not in file.parts:
            return []
        folder, labels = os.path.join(self.image_dir, part, ""), file.parts[part].labels
        if not file.multi_label:
            return cast("list[Datum]", Rows(folder, labels, file.classnames, file.classids))
        classes = list(zip(range(len(file.classnames)), file.classnames, file.classids, strict=True))
        return [
            Datum(f"{folder}{row}", classes=[one for one, has in zip(classes, marks, strict=True) if has])
            for row, marks in enumerate(labels.tolist())
        ]


def _is_intact(read: _Read) -> bool:
    return all(map(is_unwritten, read[1].values()))


def file_of(cfg: CfgNode) -> str:
    """Absolute path of ``cfg.DATASET.FILE``; a relative one may start from ``cfg.DATASET.ROOT``.

    Raises:
        UserError: none is given.
    """
    if not cfg.DATASET.FILE:
        raise UserError(
            f"dataset {cfg.DATASET.NAME} needs DATASET.FILE, the path of an .npz file or a folder of features"
        )
    path = Path(cfg.DATASET.FILE).expanduser()
    if not path.is_absolute() and not path.exists() and cfg.DATASET.ROOT:
        path = Path(cfg.DATASET.ROOT).expanduser() / path
    return os.path.abspath(path)


def registered_name(name: str) -> str:
    """The registered dataset that ``name`` means, whatever its capitals and ``_``; else ``name`` itself."""
    plain = {registered.lower(): registered for registered in DATASET_REGISTRY}
    return plain.get(name.lower().replace("_", ""), name)


def with_templates_of_dataset(file: FeatureFile) -> FeatureFile:
    """A file without templates, but of a known dataset, with that dataset's own one."""
    name = registered_name(file.dataset)
    if file.templates != (PLAIN_TEMPLATE,) or name not in DATASET_REGISTRY:
        return file
    return dataclasses.replace(file, templates=(DATASET_REGISTRY.get(name).template,))


def _is_whole(stored: Any, rows: Array) -> bool:
    """Whether these rows are an array in memory as it is."""
    return not isinstance(stored, RowShards) and np.array_equal(rows, np.arange(stored.shape[1]))


def _split_and_row(item: Datum) -> tuple[str, int]:
    """Split and row of an item, from its path."""
    folder, row = os.path.split(item.impath)
    return os.path.basename(folder), int(row)
