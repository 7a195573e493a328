"""ImageNetA: photos of 200 ImageNet classes that ResNet-50 misclassifies (Hendrycks et al., 2021); test set only."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets._by_wnid import ByWnid


@DATASET_REGISTRY.register()
class ImageNetA(ByWnid):
    """``<root>/imagenet-adversarial/imagenet-a/<wnid>/*.jpg``, ``classnames.txt``."""

    dataset_dir = "imagenet-adversarial"
    image_dir = "imagenet-a"
    homepage = "https://github.com/hendrycks/natural-adv-examples"
