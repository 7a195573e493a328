"""EuroSAT: Sentinel-2 satellite images of 10 kinds of land use (Helber et al., 2019), with CoOp's split."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY, FolderDataset, Split, split_folders

NEW_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}


@DATASET_REGISTRY.register()
class EuroSAT(FolderDataset):
    """``<root>/eurosat/2750/<class>/*.jpg``."""

    dataset_dir, image_dir = "eurosat", "2750"
    split_file = "split_zhou_EuroSAT.json"
    template = "a centered satellite photo of {}."
    method_templates = (("TCP input", "{}."),)
    homepage = "https://github.com/phelber/eurosat"

    def make_split(self) -> Split:
        return split_folders(self.image_dir, new_names=NEW_NAMES)
