"""FGVCAircraft: photos of 100 aircraft variants (Maji et al., 2013), with the authors' split."""

from __future__ import annotations

from pathlib import Path

from dassl_lite.data import DATASET_REGISTRY, FolderDataset, Split
from dassl_lite.data.layouts import Row, listed_images, parse_lines


@DATASET_REGISTRY.register()
class FGVCAircraft(FolderDataset):
    """``<root>/fgvc_aircraft/images/*.jpg``, ``variants.txt``, ``images_variant_{train,val,test}.txt``."""

    dataset_dir = "fgvc_aircraft"
    template = "a photo of a {}, a type of aircraft."
    method_templates = (("ProGrad", "a type of aircraft, a photo of a {}."), ("TCP", "a photo of an aircraft {}."))
    homepage = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"

    def load(self) -> Split:
        folder = Path(self.dataset_dir)
        variants = parse_lines(folder / "variants.txt", str)

        def read_row(line: str) -> Row:
            image, _, variant = line.partition(" ")
            return f"{image}.jpg", variants.index(variant), variant

        lists = [folder / f"images_variant_{part}.txt" for part in Split._fields]
        return Split(*(listed_images(path, self.image_dir, read_row) for path in lists))
