"""ImageNet: photos of 1000 classes (ILSVRC 2012; Deng et al., 2009); validation and testing use its val set."""

from __future__ import annotations

import os

from dassl_lite.data import DATASET_REGISTRY, IMAGENET_TEMPLATES_SELECT, Split
from dassl_lite.data.layouts import list_split_folders
from dassl_lite.datasets._by_wnid import ByWnid


@DATASET_REGISTRY.register()
class ImageNet(ByWnid):
    """``<root>/imagenet/images/{train,val}/<wnid>/*.JPEG``, ``classnames.txt``."""

    dataset_dir = "imagenet"
    ensemble_templates = IMAGENET_TEMPLATES_SELECT
    homepage = "https://image-net.org/"
    test_only = False
    val_is_test = True

    def load(self) -> Split:
        parts = {"train": os.path.join(self.image_dir, "train"), "test": os.path.join(self.image_dir, "val")}
        train, _, test = list_split_folders(parts, self.class_folders(parts["train"]))
        return Split(train, test, test)
