"""Layouts: how images come on disk, and how that becomes lists of Datums.

Three kinds: a folder of images per class (``class_folders``), a user's CSV table (``table``) and publishers' annotation
files, text lists and MATLAB's .mat (``annotations``). A dataset file calls these from its ``load`` or ``make_split``;
nothing here knows a dataset or draws shots.
"""

from __future__ import annotations

from dassl_lite.data.layouts.annotations import Row, listed_images, parse_lines, parse_mat, split_lists
from dassl_lite.data.layouts.class_folders import (
    ClassFolder,
    find_parts,
    folders_by_wnid,
    list_classes,
    list_folders,
    list_parts,
    name_folders,
    refreshed,
    split_folders,
)
from dassl_lite.data.layouts.table import find_table, list_rows, read_table, split_rows

__all__ = [
    "ClassFolder",
    "Row",
    "find_parts",
    "find_table",
    "folders_by_wnid",
    "list_classes",
    "list_folders",
    "list_parts",
    "list_rows",
    "listed_images",
    "name_folders",
    "parse_lines",
    "parse_mat",
    "read_table",
    "refreshed",
    "split_folders",
    "split_lists",
    "split_rows",
]
