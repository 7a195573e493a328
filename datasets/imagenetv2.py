"""ImageNetV2: new photos of the ImageNet classes (Recht et al., 2019); test set only."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.data.layouts import ClassFolder
from dassl_lite.datasets._by_wnid import ByWnid


@DATASET_REGISTRY.register()
class ImageNetV2(ByWnid):
    """``<root>/imagenetv2/imagenetv2-matched-frequency-format-val/{0..999}/*.jpeg``, ``classnames.txt``."""

    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"
    homepage = "https://github.com/modestyachts/ImageNetV2"

    def class_folders(self, parent: str) -> list[ClassFolder]:
        # A folder's name is its label, the position of its wnid among the sorted ones. As text, 10 would precede 2.
        names, _ = self.names()
        return [ClassFolder(str(label), names[wnid], wnid) for label, wnid in enumerate(sorted(names))]
