"""CSV: your own images, listed in a table.

``DATASET.ROOT`` is the table, or a folder with a single ``.csv`` file. Its columns are ``path`` (absolute, or relative
to the table), ``label`` or ``classname`` or both, and optionally ``split`` (train, val or test) and ``classid``.
Without splits, 50 % of each class are for training, 20 % for validation and 30 % for testing, as is usual in the field;
the split is kept as ``split_<table>.json``, in the cache unless DATASET.SPLITS_IN says otherwise.

(The module is not called csv so that it cannot shadow Python's.)
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from yacs.config import CfgNode

from dassl_lite.data import DATASET_REGISTRY, Datum, FolderDataset, Split
from dassl_lite.data.fewshot import group_by_label
from dassl_lite.data.layouts import find_table, list_rows, read_table, refresh_split, split_rows
from dassl_lite.data.layouts.table import TableRow
from dassl_lite.data.splits import split_classes


@DATASET_REGISTRY.register(name="CSV")
class CSV(FolderDataset):
    """``cfg.DATASET.ROOT`` is the table, or a folder with a single table."""

    dataset_dir = ""
    image_dir = ""
    own_data = True
    rows: list[TableRow]
    items: list[Datum]

    def find_root(self, cfg: CfgNode) -> str:
        table = find_table(super().find_root(cfg))
        self.split_file = f"split_{table.stem}.json"
        self.fewshot_dir = os.path.join("split_fewshot", table.stem)  # a folder may contain several tables
        self.rows = read_table(table)
        return str(table.parent)

    def load(self) -> Split:
        self.items = list_rows(self.rows, Path(self.dataset_dir))
        given = split_rows(self.rows, self.items)
        if given is not None:
            return given
        saved = self.sidecar.find(self.split_file)
        split = super().load()
        return refresh_split(split, [self.items], str(saved)) if saved else split

    def make_split(self) -> Split:
        # A generator with a fixed seed: the test images must not depend on the seed of the first run.
        return split_classes(group_by_label(self.items).values(), random.Random(1))
