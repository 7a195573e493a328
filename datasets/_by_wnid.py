"""What ImageNet and its variants share: a folder per class, and ``classnames.txt`` beside them."""

from __future__ import annotations

import logging
from pathlib import Path

from dassl_lite.data import Datum, FolderDataset, Split
from dassl_lite.data.imagenet import imagenet_names, read_classnames
from dassl_lite.data.layouts import ClassFolder, folders_by_wnid, list_classes, list_folders

logger = logging.getLogger(__name__)


class ByWnid(FolderDataset):
    """Folders of test images called by wnid; labels follow the sorted wnids."""

    test_only = True
    lists_files = True

    def load(self) -> Split:
        groups: list[list[Datum]] = list_classes(self.image_dir, self.class_folders(self.image_dir))
        return Split([], [], [item for group in groups for item in group])

    def class_folders(self, place: str) -> list[ClassFolder]:
        """The class folders in ``place`` in label order; folders that are no wnids are passed over."""
        return folders_by_wnid(list_folders(place), *self.names())

    def names(self) -> tuple[dict[str, str], str]:
        """Class name of each wnid, and the file that tells them; the bundled ones where it is not there."""
        path = Path(self.dataset_dir, "classnames.txt")
        if path.is_file():
            return read_classnames(path), f"'{path}'"
        logger.info("No %s: class names are open_clip's", path)
        return imagenet_names(), f"open_clip's table (there is no '{path}')"
