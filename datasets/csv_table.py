"""CSV: your own images, listed in a table.

``cfg.DATASET.ROOT`` is the table, or a folder with one ``.csv`` file in it. Its columns: ``path`` (relative to the
table, or absolute), ``label`` or ``classname`` or both, and, if you like, ``split`` (train, val, test) and ``classid``.
Without splits the images are split as the field splits (50 % train, 20 % val, 30 % test of each class), and the
split is kept as ``split_<table>.json``.

(The module is not called csv, so that it never stands in for Python's.)
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

from dassl_lite.data import DATASET_REGISTRY, FolderDataset, Split
from dassl_lite.data.fewshot import group_by_label
from dassl_lite.data.layouts import find_table, list_rows, read_table, refresh_split, split_rows
from dassl_lite.data.splits import split_classes


@DATASET_REGISTRY.register(name="CSV")
class CSV(FolderDataset):
    """``cfg.DATASET.ROOT`` is the table, or the folder that it is alone in."""

    dataset_dir = ""
    image_dir = ""

    def find_root(self, cfg: Any) -> str:
        table = find_table(super().find_root(cfg))
        self.split_file = f"split_{table.stem}.json"
        self.fewshot_dir = os.path.join("split_fewshot", table.stem)  # two tables may lie in one folder
        self.rows = read_table(table)
        return str(table.parent)

    def load(self) -> Split:
        self.items = list_rows(self.rows, Path(self.dataset_dir))
        given = split_rows(self.rows, self.items)
        if given is not None:
            return given
        kept = self.sidecar.find(self.split_file)
        split = super().load()
        return refresh_split(split, [self.items], str(kept)) if kept else split

    def make_split(self) -> Split:
        # Its own generator: which images are for testing must not depend on the seed of the first run.
        return split_classes(group_by_label(self.items).values(), random.Random(1))
