"""ImageNetSketch: black-and-white sketches of the ImageNet classes (Wang et al., 2019); test set only."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._by_wnid import ByWnid


@DATASET_REGISTRY.register()
class ImageNetSketch(ByWnid):
    """``<root>/imagenet-sketch/images/<wnid>/*.JPEG``, ``classnames.txt``."""

    dataset_dir = "imagenet-sketch"
    homepage = "https://github.com/HaohanWang/ImageNet-Sketch"
