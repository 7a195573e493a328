"""A user's table of images: a CSV file with the path, class, split and class id of an image in each row."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dassl_lite.data.datum import Datum
from dassl_lite.data.layouts.class_folders import ClassFolder, name_folders
from dassl_lite.data.splits import MAX_LABEL, UNSPLIT, Split, check_path, split_called
from dassl_lite.utils.errors import UserError, nearest, shown, unknown
from dassl_lite.utils.files import open_text
from dassl_lite.utils.logger import get_logger

if TYPE_CHECKING:
    from _csv import Reader as CSVReader  # the type of csv.reader

logger = get_logger(__name__)

MAX_HEADER = 1 << 16  # characters

# Column -> its accepted headers, whatever their case.
COLUMNS = {
    "path": ("path", "impath", "image", "file", "filename", "filepath"),
    "label": ("label",),
    "classname": ("classname", "class", "class_name", "name"),
    "split": ("split", "part", "set"),
    "classid": ("classid", "class_id", "wnid"),
}


class TableRow(NamedTuple):
    """A row as it is written, "" for columns that the table lacks. ``where`` locates it in error messages."""

    where: str
    path: str
    label: str = ""
    classname: str = ""
    split: str = ""
    classid: str = ""

    @property
    def key(self) -> str:
        """Identifies the row's class within the table: its label, else its class name."""
        return str(int(self.label)) if self.label else self.classname


def _is_label(text: str) -> bool:
    """Whether a cell is a whole number that can be a label; Python refuses to read one of 5,000 digits."""
    return text.isdecimal() and len(text) <= 20 and int(text) <= MAX_LABEL


def find_table(path: str | Path) -> Path:
    """The table at ``path``: the file itself, or the only .csv or .tsv file in that folder."""
    path = Path(path)
    if not path.is_dir():
        return path
    tables = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in (".csv", ".tsv"))
    if len(tables) != 1:
        found = f"has {len(tables)}: {', '.join(table.name for table in tables[:3])}" if tables else "has none"
        raise UserError(f"dataset CSV: set the root to the table's file; the folder '{path}' {found}")
    return tables[0]


def read_table(path: Path) -> list[TableRow]:
    """Read a CSV file with a header; columns are separated by commas, semicolons or tabs, as in its first line.

    If there is no column of class names, labels that are not all whole numbers are the class names.

    Raises:
        UserError: the table cannot be read, lacks a column, or has an incomplete row.
    """
    try:
        with open_text(path, newline="") as file:
            header = file.readline(MAX_HEADER)
            if len(header) == MAX_HEADER:
                raise UserError(f"the table '{path}' has no header: its first line has over {MAX_HEADER:,} characters")
            file.seek(0)
            lines = csv.reader(file, delimiter=max(",;\t", key=header.count), strict=True)
            columns = _find_columns(path, next(lines, []))
            rows = list(_parse_rows(path, lines, columns))
    except UserError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # ValueError: not UTF-8
        raise UserError(f"cannot read the table '{path}': {error}") from error
    if not rows:
        raise UserError(f"the table '{path}' lists no images")
    if "classname" not in columns and not all(row.label.isdecimal() for row in rows):
        rows = [row._replace(classname=row.label, label="") for row in rows]
        columns["classname"] = columns.pop("label")
    for row in rows:
        if "label" in columns and not _is_label(row.label):
            raise UserError(f"{row.where}: label {shown(row.label)} is not a whole number, 0 to {MAX_LABEL:,}")
        if "classname" in columns and not row.classname:
            raise UserError(f"{row.where} has no class name")
    return rows


def _find_columns(path: Path, header: Sequence[str]) -> dict[str, int]:
    """Position of each known column in the header."""
    columns: dict[str, int] = {}
    known = {name: column for column, names in COLUMNS.items() for name in names}
    for position, cell in enumerate(header):
        column = known.get(cell.strip().lower())
        if column is None:
            meant = nearest(cell, known)
            logger.info(f"Column '{cell}' of '{path}' is not used{f'; did you mean {meant!r}?' if meant else ''}")
        elif column in columns:
            raise UserError(f"the table '{path}' has two columns for '{column}': {', '.join(header)}")
        else:
            columns[column] = position
    if "path" not in columns or not columns.keys() & {"label", "classname"}:
        raise UserError(
            f"the table '{path}' needs a header with path, and label or classname (optionally split and classid); "
            f"its first line is: {', '.join(header) or 'empty'}"
        )
    return columns


def _parse_rows(path: Path, lines: CSVReader, columns: Mapping[str, int]) -> Iterator[TableRow]:
    number = lines.line_num + 1
    for cells in lines:
        where = f"'{path}', line {number}"
        number = lines.line_num + 1  # cells may contain line breaks
        if not any(cells):
            continue
        cut = [column for column, position in columns.items() if position >= len(cells)]
        row = TableRow(where, **{"path": "", **{c: cells[i].strip() for c, i in columns.items() if c not in cut}})
        check_path(row.path)
        if cut or not row.path:
            raise UserError(f"{where} has no {cut[0] if cut else 'path'}: {', '.join(cells)}")
        yield row


def list_rows(rows: Sequence[TableRow], folder: Path) -> list[Datum]:
    """The image of each row, in order.

    Labels are those of the table, or positions among the sorted class names. A ``classnames.json`` in ``folder`` may
    rename classes, or name labels; see :func:`dassl_lite.data.layouts.class_folders.name_folders`.

    Args:
        folder: folder that paths are relative to.

    Raises:
        UserError: two rows have the same image, or give a class different names or ids.
    """
    classes = _list_classes(rows, folder / "classnames.json")
    first: dict[str, TableRow] = {}
    items = []
    for row in rows:
        path = os.path.normpath(folder / row.path)
        if first.setdefault(path, row) is not row:
            raise UserError(f"{row.where}: '{row.path}' is already listed in {first[path].where}")
        label, name, classid = classes[row.key]
        items.append(Datum(path, label, classname=name, classid=classid))
    return items


def _list_classes(rows: Sequence[TableRow], names_file: Path) -> dict[str, tuple[int, str, str]]:
    """Label, name and id of each class, by the key of its rows."""
    first: dict[str, TableRow] = {}
    for row in rows:
        same = first.setdefault(row.key, row)
        if (row.classname, row.classid) != (same.classname, same.classid):
            raise UserError(f"{row.where}: class '{row.key}' has a different name or id in {same.where}")
    keys = sorted(first, key=lambda key: (int(key), key) if _is_label(key) else (MAX_LABEL + 1, key))
    numbered, named = bool(rows[0].label), bool(rows[0].classname)
    if numbered and named:
        folders = [ClassFolder(key, first[key].classname) for key in keys]
    else:
        folders = name_folders(keys, names_file)
    if numbered and not named and not names_file.is_file():
        logger.warning(f"The classes have no names, so prompts use their labels; name them in '{names_file}'")
    return {
        key: (int(key) if numbered else position, folder.name, first[key].classid or folder.classid)
        for position, (key, folder) in enumerate(zip(keys, folders, strict=True))
    }


def split_rows(rows: Sequence[TableRow], items: Sequence[Datum]) -> dict[str, list[Datum]]:
    """The images of each split that the table gives, or all of them under UNSPLIT if it gives none.

    Raises:
        UserError: a row has an unknown split, or none although others have one; all rows are for training.
    """
    if not any(row.split for row in rows):
        return {UNSPLIT: list(items)}
    parts: dict[str, list[Datum]] = {}
    for row, item in zip(rows, items, strict=True):
        part = split_called(row.split)
        if not part:
            raise unknown(f"split in {row.where}:", row.split, Split._fields)
        parts.setdefault(part, []).append(item)
    if set(parts) == {"train"}:
        raise UserError(f"no row of the table ({rows[0].where} and after) has the split test or val")
    return parts
