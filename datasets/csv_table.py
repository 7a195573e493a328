"""CSV: your own images, listed in a table.

``DATASET.ROOT`` is the table, or a folder with a single ``.csv`` file. Its columns are ``path`` (absolute, or relative
to the table), ``label`` or ``classname`` or both, and optionally ``split`` (train, val or test) and ``classid``.
An image may have several classes: cells like ``cat|dog``, a column ``labels`` or
``classes``, or a column of zeros and ones for each class (dassl_lite/data/layouts/table.py has the rules).
Without splits, 50 % of each class are for training, 20 % for validation and 30 % for testing, as is usual in the field;
the split is kept as ``split_<table>.json``, in the cache unless DATASET.SPLITS_IN says otherwise. A table whose rows
are all for testing is for evaluation.

(The module is not called csv so that it cannot shadow Python's.)
"""

from __future__ import annotations

import os
from pathlib import Path

from yacs.config import CfgNode

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.data.fewshot import group_by_label
from dassl_lite.data.layouts import find_table, list_rows, read_table, split_rows
from dassl_lite.data.layouts.table import TableRow
from dassl_lite.data.own_data import Groups, OwnDataset


@DATASET_REGISTRY.register(name="CSV")
class CSV(OwnDataset):
    """``cfg.DATASET.ROOT`` is the table, or a folder with a single table."""

    table: Path
    rows: list[TableRow]

    def find_root(self, cfg: CfgNode) -> str:
        self.table = table = find_table(super().find_root(cfg))
        self.split_file = f"split_{table.stem}.json"
        self.fewshot_dir = os.path.join("split_fewshot", table.stem)  # a folder may contain several tables
        self.rows = read_table(table)
        self.multi_label = self.rows[0].several
        return str(table.parent)

    @property
    def called(self) -> str:
        return f"table '{self.table}'"

    def list_groups(self) -> dict[str, Groups]:
        items = list_rows(self.rows, Path(self.dataset_dir))
        parts = split_rows(self.rows, items)
        if self.multi_label:
            return {part: [found] for part, found in parts.items()}
        return {part: list(group_by_label(found).values()) for part, found in parts.items()}
