"""ImageFolder: your own images, a folder per class.

``<root>/<class>/*`` is split as the field splits (50 % train, 20 % val, 30 % test of each class), and the split is
kept as ``split_ImageFolder.json``; ``<root>/{train,val,test}/<class>/*`` is used as it is. Classes are called as
their folders, ImageNet's wnids as ImageNet calls them, or as ``<root>/classnames.json`` says.
"""

from __future__ import annotations

import random
from pathlib import Path

from dassl_lite.data import DATASET_REGISTRY, Datum, FolderDataset, Split
from dassl_lite.data.layouts import (
    ClassFolder,
    find_split_folders,
    list_classes,
    list_folders,
    list_split_folders,
    name_folders,
    refresh_split,
)
from dassl_lite.data.splits import split_classes


@DATASET_REGISTRY.register()
class ImageFolder(FolderDataset):
    """``cfg.DATASET.ROOT`` is the folder itself."""

    dataset_dir = ""
    image_dir = ""
    split_file = "split_ImageFolder.json"

    def load(self) -> Split:
        parts = find_split_folders(self.image_dir)
        if parts:
            return list_split_folders(parts, self.class_folders(parts["train"]))
        kept = self.sidecar.find(self.split_file)
        split = super().load()
        return refresh_split(split, self.list_images(), str(kept)) if kept else split

    def make_split(self) -> Split:
        # Its own generator: which images are for testing must not depend on the seed of the first run.
        return split_classes(self.list_images(), random.Random(1))

    def class_folders(self, place: str) -> list[ClassFolder]:
        return name_folders(list_folders(place), Path(self.dataset_dir, "classnames.json"))

    def list_images(self) -> list[list[Datum]]:
        return list_classes(self.image_dir, self.class_folders(self.image_dir))
