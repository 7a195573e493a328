"""UCF101: middle frames of videos of 101 actions (Soomro et al., 2012), with CoOp's split of the first list."""

from __future__ import annotations

import re
from pathlib import Path

from dassl_lite.data import DATASET_REGISTRY, FolderDataset, Split
from dassl_lite.data.layouts import Row, parse_lines, split_lists


@DATASET_REGISTRY.register()
class UCF101(FolderDataset):
    """``<root>/ucf101/UCF-101-midframes/Apply_Eye_Makeup/*.jpg``, ``ucfTrainTestlist``."""

    dataset_dir, image_dir = "ucf101", "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"
    template = "a photo of a person doing {}."
    homepage = "https://www.crcv.ucf.edu/data/UCF101.php"

    def make_split(self) -> Split:
        lists = Path(self.dataset_dir, "ucfTrainTestlist")
        numbers = dict(parse_lines(lists / "classInd.txt", lambda line: line.rpartition(" ")[::-2]))

        def read_row(line: str) -> Row:  # "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1"; the test list has no label
            action, video = line.split(" ")[0].split("/")
            name = "_".join(re.findall("[A-Z][^A-Z]*", action))
            return f"{name}/{video.removesuffix('.avi')}.jpg", int(numbers[action]) - 1, name

        return split_lists(lists / "trainlist01.txt", lists / "testlist01.txt", self.image_dir, read_row)
