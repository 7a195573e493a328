"""Food101: photos of 101 dishes (Bossard et al., 2014), with CoOp's split."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY, FolderDataset, Split, split_folders


@DATASET_REGISTRY.register()
class Food101(FolderDataset):
    """``<root>/food-101/images/<class>/*.jpg``."""

    dataset_dir = "food-101"
    split_file = "split_zhou_Food101.json"
    template = "a photo of {}, a type of food."
    method_templates = (("ProGrad", "a type of food, a photo of {}."), ("TCP", "a photo of a {}, a type of food."))
    homepage = "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/"

    def make_split(self) -> Split:
        return split_folders(self.image_dir)
