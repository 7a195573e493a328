"""StanfordCars: photos of 196 car models (Krause et al., 2013), with CoOp's split."""

from __future__ import annotations

from pathlib import Path

from dassl_lite.data import DATASET_REGISTRY, Datum, FolderDataset, Split, split_trainval
from dassl_lite.data.layouts import parse_mat


@DATASET_REGISTRY.register()
class StanfordCars(FolderDataset):
    """``<root>/stanford_cars/{cars_train,cars_test}/*.jpg``, ``devkit``, ``cars_test_annos_withlabels.mat``."""

    dataset_dir, image_dir = "stanford_cars", ""
    split_file = "split_zhou_StanfordCars.json"
    method_templates = (("TCP input", "{}, a type of car"),)
    homepage = "https://ai.stanford.edu/~jkrause/cars/car_dataset.html"

    def make_split(self) -> Split:
        folder, meta = Path(self.dataset_dir), Path(self.dataset_dir, "devkit", "cars_meta.mat")
        # "Audi TTS Coupe 2012" becomes "2012 Audi TTS Coupe".
        names = parse_mat(meta, "class_names", lambda name: " ".join(name.rpartition(" ")[::-2]))

        def read(images: str, file: str) -> list[Datum]:
            rows = parse_mat(folder / file, "annotations", lambda x: (x["fname"], x["class"], names[x["class"] - 1]))
            return [Datum(folder / images / image, int(label) - 1, classname=name) for image, label, name in rows]

        train, val = split_trainval(read("cars_train", "devkit/cars_train_annos.mat"))
        return Split(train, val, read("cars_test", "cars_test_annos_withlabels.mat"))
