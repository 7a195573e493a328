"""ImageFolder: your own images, in one folder per class.

``<root>/<class>/*`` is split as is usual in the field, into 50 % training, 20 % validation and 30 % test images of each
class, and the split is kept as ``split_ImageFolder.json``, in the cache unless DATASET.SPLITS_IN says otherwise.
``<root>/{train,val,test}/<class>/*`` keeps its split. A class is called by its folder, by ImageNet's name if the folder
is a wnid, or as ``<root>/classnames.json`` says.
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
    """``cfg.DATASET.ROOT`` is the folder with the class folders."""

    dataset_dir = ""
    image_dir = ""
    split_file = "split_ImageFolder.json"
    own_data = True

    def load(self) -> Split:
        folders = find_split_folders(self.image_dir)
        if folders:
            return list_split_folders(folders, self.class_folders(folders["train"]))
        saved = self.sidecar.find(self.split_file)
        split = super().load()
        return refresh_split(split, self.list_images(), str(saved)) if saved else split

    def make_split(self) -> Split:
        # A generator with a fixed seed: the test images must not depend on the seed of the first run.
        return split_classes(self.list_images(), random.Random(1))

    def class_folders(self, parent: str) -> list[ClassFolder]:
        return name_folders(list_folders(parent), Path(self.dataset_dir, "classnames.json"))

    def list_images(self) -> list[list[Datum]]:
        return list_classes(self.image_dir, self.class_folders(self.image_dir))
