"""ImageNetSketch: black-and-white drawings of ImageNet's classes (Wang et al., 2019), for testing only."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._by_wnid import ByWnid


@DATASET_REGISTRY.register()
class ImageNetSketch(ByWnid):
    """``<root>/imagenet-sketch/images/<wnid>/*.JPEG``, ``classnames.txt``."""

    dataset_dir = "imagenet-sketch"
    homepage = "https://github.com/HaohanWang/ImageNet-Sketch"
