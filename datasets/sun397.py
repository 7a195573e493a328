"""SUN397: photos of 397 kinds of scenes (Xiao et al., 2010), with CoOp's split of the first partition."""

from __future__ import annotations

from pathlib import Path

from dassl_lite.data import DATASET_REGISTRY, FolderDataset, Split
from dassl_lite.data.layouts import Row, parse_lines, split_lists


@DATASET_REGISTRY.register()
class SUN397(FolderDataset):
    """``<root>/sun397/SUN397/a/abbey/*.jpg``, ``ClassName.txt``, ``{Training,Testing}_01.txt``."""

    dataset_dir, image_dir = "sun397", "SUN397"
    split_file = "split_zhou_SUN397.json"
    homepage = "https://vision.princeton.edu/projects/2010/SUN/"

    def make_split(self) -> Split:
        folder = Path(self.dataset_dir)
        labels = {name: label for label, name in enumerate(parse_lines(folder / "ClassName.txt", str))}

        def read_row(line: str) -> Row:  # "/a/airplane_cabin/x.jpg", "/a/apartment_building/outdoor/y.jpg"
            place = line.rpartition("/")[0]
            _, _letter, *words = place.split("/")
            return line[1:], labels[place], " ".join(reversed(words))  # "outdoor apartment_building"

        return split_lists(folder / "Training_01.txt", folder / "Testing_01.txt", self.image_dir, read_row)
