"""OxfordPets: photos of 37 breeds of cats and dogs (Parkhi et al., 2012), with CoOp's split."""

from __future__ import annotations

from pathlib import Path

from dassl_lite.data import DATASET_REGISTRY, FolderDataset, Split
from dassl_lite.data.layouts import Row, split_lists


@DATASET_REGISTRY.register()
class OxfordPets(FolderDataset):
    """``<root>/oxford_pets/images/*.jpg``, ``annotations/{trainval,test}.txt``."""

    dataset_dir = "oxford_pets"
    split_file = "split_zhou_OxfordPets.json"
    template = "a photo of a {}, a type of pet."
    method_templates = (("ProGrad", "a type of pet, a photo of a {}."),)
    homepage = "https://www.robots.ox.ac.uk/~vgg/data/pets/"

    def make_split(self) -> Split:
        lists = Path(self.dataset_dir, "annotations")
        return split_lists(lists / "trainval.txt", lists / "test.txt", self.image_dir, read_row)


def read_row(line: str) -> Row:
    """``Abyssinian_100 1 1 1``: image, label from 1, species, breed within the species."""
    image, label, _species, _breed = line.split(" ")
    return f"{image}.jpg", int(label) - 1, image.rpartition("_")[0].lower()
