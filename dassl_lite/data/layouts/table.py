"""A user's table of images: path, class, split and class id in each row of a CSV file."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dassl_lite.data.datum import Datum
from dassl_lite.data.layouts.class_folders import ClassFolder, name_folders
from dassl_lite.data.splits import PARTS, Split
from dassl_lite.utils.errors import UserError, nearest, unknown

logger = logging.getLogger(__name__)

# Column -> what its header may be, in upper or lower case.
COLUMNS = {
    "path": ("path", "impath", "image", "file", "filename", "filepath"),
    "label": ("label",),
    "classname": ("classname", "class", "class_name", "name"),
    "split": ("split", "part", "set"),
    "classid": ("classid", "class_id", "wnid"),
}


class TableRow(NamedTuple):
    """A row as it is written; a column that the table lacks is empty. ``where`` is for error messages."""

    where: str
    path: str
    label: str = ""
    classname: str = ""
    split: str = ""
    classid: str = ""

    @property
    def key(self) -> str:
        """What stands for the row's class: its label, else its name."""
        return str(int(self.label)) if self.label else self.classname


def find_table(place: str) -> Path:
    """The table at ``place``: the file itself, or the only .csv or .tsv file in that folder."""
    path = Path(place)
    if not path.is_dir():
        return path
    tables = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in (".csv", ".tsv"))
    if len(tables) != 1:
        found = f"has {len(tables)}: {', '.join(table.name for table in tables[:3])}" if tables else "has none"
        raise UserError(f"dataset CSV: give the table's file as root; the folder '{path}' {found}")
    return tables[0]


def read_table(path: Path) -> list[TableRow]:
    """The rows of a CSV file with a header; comma, semicolon or tab between the columns, as its first line has it.

    A column of labels that are not all whole numbers, without one of names beside it, holds the class names.

    Raises:
        UserError: cannot be read, lacks a column, or names the row that lacks something.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            lines = csv.reader(file, delimiter=max(",;\t", key=header.count), strict=True)
            places = _columns(path, next(lines, []))
            rows = list(_rows(path, lines, places))
    except UserError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # ValueError: not UTF-8
        raise UserError(f"cannot read the table '{path}': {error}") from error
    if not rows:
        raise UserError(f"the table '{path}' lists no image")
    if "classname" not in places and not all(row.label.isdecimal() for row in rows):
        rows = [row._replace(classname=row.label, label="") for row in rows]
        places["classname"] = places.pop("label")
    for row in rows:
        if "label" in places and not row.label.isdecimal():
            raise UserError(f"{row.where}: label '{row.label}' is not a whole number, 0 or more")
        if "classname" in places and not row.classname:
            raise UserError(f"{row.where} has no class name")
    return rows


def _columns(path: Path, header: Sequence[str]) -> dict[str, int]:
    """Position of each column that is there."""
    places: dict[str, int] = {}
    known = {called: column for column, names in COLUMNS.items() for called in names}
    for position, cell in enumerate(header):
        column = known.get(cell.strip().lower())
        if column is None:
            meant = nearest(cell, known)
            logger.info("Column '%s' of '%s' is not used%s", cell, path, f"; did you mean '{meant}'?" if meant else "")
        elif column in places:
            raise UserError(f"the table '{path}' has two columns of the kind '{column}': {', '.join(header)}")
        else:
            places[column] = position
    if "path" not in places or not places.keys() & {"label", "classname"}:
        raise UserError(
            f"the table '{path}' needs a header with path, and label or classname (split and classid if you like); "
            f"its first line is: {', '.join(header) or 'empty'}"
        )
    return places


def _rows(path: Path, lines: Any, places: dict[str, int]) -> Iterator[TableRow]:
    number = lines.line_num + 1
    for cells in lines:
        where = f"'{path}', line {number}"
        number = lines.line_num + 1  # a cell may have line breaks in it
        if not any(cells):
            continue
        cut = [column for column, position in places.items() if position >= len(cells)]
        row = TableRow(where, **{"path": "", **{c: cells[i].strip() for c, i in places.items() if c not in cut}})
        if cut or not row.path:
            raise UserError(f"{where} has no {cut[0] if cut else 'path'}: {', '.join(cells)}")
        yield row


def list_rows(rows: Sequence[TableRow], folder: Path) -> list[Datum]:
    """The image of each row, in order.

    Labels are those of the table, else the positions of the sorted class names. A label without a name, and a
    class name, is called as a ``classnames.json`` in ``folder`` says; see
    :func:`dassl_lite.data.layouts.class_folders.name_folders`.

    Args:
        folder: what paths are relative to.

    Raises:
        UserError: names the row.
    """
    classes = _classes(rows, folder / "classnames.json")
    first: dict[str, TableRow] = {}
    items = []
    for row in rows:
        path = os.path.normpath(folder / row.path)
        if first.setdefault(path, row) is not row:
            raise UserError(f"{row.where}: '{row.path}' is there a second time, after {first[path].where}")
        label, name, classid = classes[row.key]
        items.append(Datum(path, label, classname=name, classid=classid))
    return items


def _classes(rows: Sequence[TableRow], names_file: Path) -> dict[str, tuple[int, str, str]]:
    """Label, name and id of each class, by the key of its rows."""
    first: dict[str, TableRow] = {}
    for row in rows:
        like = first.setdefault(row.key, row)
        if (row.classname, row.classid) != (like.classname, like.classid):
            raise UserError(f"{row.where}: class '{row.key}' has another name or id than in {like.where}")
    keys = sorted(first, key=lambda key: (int(key), key) if key.isdecimal() else (len(first), key))
    numbered, named = bool(rows[0].label), bool(rows[0].classname)
    if numbered and named:
        folders = [ClassFolder(key, first[key].classname) for key in keys]
    else:
        folders = name_folders(keys, names_file)
    if numbered and not named and not names_file.is_file():
        logger.warning("The classes have no names: prompts call them by their labels (see '%s')", names_file)
    return {
        key: (int(key) if numbered else position, folder.name, first[key].classid or folder.classid)
        for position, (key, folder) in enumerate(zip(keys, folders, strict=True))
    }


def split_rows(rows: Sequence[TableRow], items: Sequence[Datum]) -> Split | None:
    """The split that the table gives, None if it gives none.

    Without a test part ``val`` is the test set, and there is none for validation: selection must not see what
    is tested.

    Raises:
        UserError: a row with a wrong split, or with none where others have one; no training or test images.
    """
    if not any(row.split for row in rows):
        return None
    parts: dict[str, list[Datum]] = {part: [] for part in Split._fields}
    for row, item in zip(rows, items, strict=True):
        if row.split.lower() not in PARTS:
            raise unknown(f"split in {row.where}:", row.split, PARTS)
        parts[PARTS[row.split.lower()]].append(item)
    if not parts["test"]:
        logger.info("No row of the table is for testing: those for validation are the test set")
        parts["test"], parts["val"] = parts["val"], []
    if not parts["train"] or not parts["test"]:
        lacking = "train" if not parts["train"] else "test or val"
        raise UserError(f"no row of the table ({rows[0].where} and after) has the split {lacking}")
    return Split(**parts)
