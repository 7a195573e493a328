"""ImageNetV2: ImageNet's classes photographed anew (Recht et al., 2019), for testing only."""

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

    def class_folders(self, place: str) -> list[ClassFolder]:
        # A folder is called by its label, the position of its wnid among ImageNet's; as text "10" comes before "2".
        names, _ = self.names()
        return [ClassFolder(str(label), names[wnid], wnid) for label, wnid in enumerate(sorted(names))]
