"""Layouts: how images are stored on disk, and how that becomes lists of Datums.

There are four kinds: folders with the images of one class each (``class_folders``), a user's folder, whose layout is
detected (``own_folder``), a user's CSV table (``table``), and publishers' annotation files, as text or MATLAB's .mat
(``annotations``). Dataset files call these functions from their ``load`` or ``make_split``. Nothing here knows a
particular dataset or draws shots.
"""

from __future__ import annotations

from dassl_lite.data.layouts.annotations import Row, listed_images, parse_lines, parse_mat, split_lists
from dassl_lite.data.layouts.class_folders import (
    ClassFolder,
    folders_by_wnid,
    list_classes,
    list_folders,
    list_split_folders,
    name_folders,
    refresh_split,
    split_folders,
)
from dassl_lite.data.layouts.own_folder import OwnFolder, read_own_folder
from dassl_lite.data.layouts.table import find_table, list_rows, read_table, split_rows

__all__ = [
    "ClassFolder",
    "OwnFolder",
    "Row",
    "find_table",
    "folders_by_wnid",
    "list_classes",
    "list_folders",
    "list_rows",
    "list_split_folders",
    "listed_images",
    "name_folders",
    "parse_lines",
    "parse_mat",
    "read_own_folder",
    "read_table",
    "refresh_split",
    "split_folders",
    "split_lists",
    "split_rows",
]
