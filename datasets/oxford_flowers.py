"""OxfordFlowers: photos of 102 kinds of flowers (Nilsback and Zisserman, 2008), with CoOp's split."""

from __future__ import annotations

from pathlib import Path

from dassl_lite.data import DATASET_REGISTRY, Datum, FolderDataset, Split
from dassl_lite.data.fewshot import group_by_label
from dassl_lite.data.layouts import parse_mat
from dassl_lite.data.splits import read_listing, split_classes


@DATASET_REGISTRY.register()
class OxfordFlowers(FolderDataset):
    """``<root>/oxford_flowers/jpg/image_00001.jpg``, ``imagelabels.mat``, ``cat_to_name.json``."""

    dataset_dir, image_dir = "oxford_flowers", "jpg"
    split_file = "split_zhou_OxfordFlowers.json"
    template = "a photo of a {}, a type of flower."
    method_templates = (("ProGrad", "a type of flower, a photo of a {}."),)
    homepage = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"

    def make_split(self) -> Split:
        names = read_listing(Path(self.dataset_dir, "cat_to_name.json"))
        labels = Path(self.dataset_dir, "imagelabels.mat")
        items = [
            Datum(f"{self.image_dir}/image_{number:05}.jpg", int(label) - 1, classname=name)
            for number, (label, name) in enumerate(parse_mat(labels, "labels", lambda x: (x, names[str(x)])), 1)
        ]
        return split_classes(group_by_label(items).values())
