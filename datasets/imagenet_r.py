"""ImageNetR: art, toys and other renditions of 200 ImageNet classes (Hendrycks et al., 2021); test set only."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._by_wnid import ByWnid


@DATASET_REGISTRY.register()
class ImageNetR(ByWnid):
    """``<root>/imagenet-rendition/imagenet-r/<wnid>/*.jpg``, ``classnames.txt``."""

    dataset_dir = "imagenet-rendition"
    image_dir = "imagenet-r"
    homepage = "https://github.com/hendrycks/imagenet-r"
