"""The shared layout of ImageNet and its variants: a folder per class, named by wnid, and a ``classnames.txt``."""

from __future__ import annotations

from pathlib import Path

from dassl_lite.data import Datum, FolderDataset, Split
from dassl_lite.data.imagenet import imagenet_names, read_classnames
from dassl_lite.data.layouts import ClassFolder, folders_by_wnid, list_classes, list_folders
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)


class ByWnid(FolderDataset):
    """Test images in folders named by wnid; labels follow the sorted wnids."""

    test_only = True
    lists_files = True

    def load(self) -> Split:
        groups: list[list[Datum]] = list_classes(self.image_dir, self.class_folders(self.image_dir))
        return Split([], [], [item for group in groups for item in group])

    def class_folders(self, parent: str) -> list[ClassFolder]:
        """The class folders in ``parent``, in label order."""
        return folders_by_wnid(list_folders(parent), *self.names())

    def names(self) -> tuple[dict[str, str], str]:
        """Class name of each wnid, and where they come from: ``classnames.txt``, or open_clip if there is none."""
        path = Path(self.dataset_dir, "classnames.txt")
        if path.is_file():
            return read_classnames(path), f"'{path}'"
        logger.info(f"There is no '{path}': using open_clip's class names")
        return imagenet_names(), f"open_clip's table (there is no '{path}')"
