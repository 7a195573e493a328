"""Caltech101: photos of 100 kinds of objects (Fei-Fei et al., 2004), with CoOp's split."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY, FolderDataset, Split, split_folders


@DATASET_REGISTRY.register()
class Caltech101(FolderDataset):
    """``<root>/caltech-101/101_ObjectCategories/<class>/*.jpg``."""

    dataset_dir = "caltech-101"
    image_dir = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"
    homepage = "https://data.caltech.edu/records/mzrjq-6wc02"

    def make_split(self) -> Split:
        return split_folders(
            self.image_dir,
            ignored=("BACKGROUND_Google", "Faces_easy"),
            new_names={
                "airplanes": "airplane",
                "Faces": "face",
                "Leopards": "leopard",
                "Motorbikes": "motorbike",
            },
        )
