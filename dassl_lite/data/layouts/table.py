"""A user's table of images: a CSV file with the path, class, split and class id of an image in each row.

An image may have several classes. The table then gives them in one of these ways, and is multi-label:

- a cell with separators, ``cat|dog`` or ``cat;dog``, or a list in JSON's or Python's spelling, ``["cat", "dog"]``
- a column called ``labels``, ``classes``, ``classnames`` or ``tags``, with such cells (``cat, dog`` too) or a row for
  each class
- no column of classes, but a column of zeros and ones for each class, called by its name

An empty cell, or a row of zeros, is an image of none of the classes.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dassl_lite.data.datum import Datum
from dassl_lite.data.images import count_images
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
# Headers of the same columns that indicate several classes per cell.
PLURALS = {
    "label": ("labels",),
    "classname": ("classnames", "classes", "class_names", "tags"),
    "classid": ("classids", "class_ids", "wnids"),
}
_CLASS_HEADERS = [name for column in ("label", "classname") for name in (*COLUMNS[column], *PLURALS[column])]
OF_CLASSES = ("label", "classname", "classid")
# Separators of several classes in a cell; the first that occurs is the one. A comma, as in "tench, Tinca tinca", and a
# space may be part of a name: a comma separates in a column of several only.
SEPARATORS = ("|", ";", ",")
_ANY_SEPARATOR = re.compile("[|;,]")
LIST = "[]"  # used instead of a separator: the cells contain lists
_LIST_LIKE = re.compile(r"[\[{].*|\([\"'].*|.*[\]}]", re.DOTALL)  # a list, a part of one, or a set or tuple of Python
_NOTE = re.compile(r"([^\[\]{}\"'][^\[\]{}\"]*[\[{][^\[\]{}\"]*[\]}])+")  # names with a note: seal [animal]
_WORD = re.compile(r"\[[^\[\]\"',]+\]")  # [background]: beside names without brackets it is a name
_NUMPY = re.compile(r"[\d.]+(\s+[\d.]+)+")  # the inside of an array as numpy prints it
_WHOLE = re.compile(r"\d+(\.0*)?", re.ASCII)  # a whole number, as pandas writes it too: 3.0
# Cells of a column that says whether an image has a class.
_TRUTH = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


class TableRow(NamedTuple):
    """An image with a class as the table gives them, "" for columns that the table lacks.

    Attributes:
        where: its place, for error messages.
        several: the table is multi-label: an image has a row for each of its classes, or one without a class.
    """

    where: str
    path: str
    label: str = ""
    classname: str = ""
    split: str = ""
    classid: str = ""
    several: bool = False

    @property
    def key(self) -> str:
        """Identifies the row's class within the table: its label, else its class name; "" for no class."""
        return str(int(self.label)) if self.label else self.classname

    @property
    def has_none(self) -> bool:
        """Whether it is an image without a class in a multi-label table."""
        return self.several and not self.label and not self.classname


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

    If there is no column of class names, labels that are not all whole numbers are the class names. A multi-label table
    gives a row for each class of an image.

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
            names = next(lines, [])
            columns, several = _find_columns(path, names)
            written = list(_parse_rows(path, lines, columns))
    except UserError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # ValueError: not UTF-8
        raise UserError(f"cannot read the table '{path}': {error}") from error
    if not columns.keys() & {"label", "classname"}:
        rows, unused = _from_columns_of_classes(path, names, written, columns)
        columns["classname"] = -1
    else:
        unused = set(range(len(names))) - set(columns.values())
        rows = _single_classes(path, [row for row, _ in written], columns, several)
    for position in sorted(unused):
        meant = nearest(names[position], {name for headers in COLUMNS.values() for name in headers})
        hint = f"; did you mean {meant!r}?" if meant else ""
        logger.info(f"Column '{names[position]}' of '{path}' is not used{hint}")
    if not rows:
        raise UserError(f"the table '{path}' lists no images")
    if "label" in columns and all(_WHOLE.fullmatch(row.label) for row in rows if not row.has_none):
        rows = [row._replace(label=row.label.partition(".")[0]) for row in rows]
    if "classname" not in columns and not all(row.label.isdecimal() for row in rows if not row.has_none):
        rows = [row._replace(classname=row.label, label="") for row in rows]
        columns["classname"] = columns.pop("label")
    for row in rows:
        if row.has_none:
            continue
        if "label" in columns and not _is_label(row.label):
            raise UserError(f"{row.where}: label {shown(row.label)} is not a whole number, 0 to {MAX_LABEL:,}")
        if "classname" in columns and not row.classname:
            raise UserError(f"{row.where} has no class name")
    _warn_of_joined_names(path, {row.classname for row in rows})
    return rows


def _warn_of_joined_names(path: Path, names: set[str]) -> None:
    """Log one line with the classes whose names are those of other classes with separators between them."""
    joined = []
    for name in sorted(names):
        parts = [part.strip() for part in _ANY_SEPARATOR.split(name) if part.strip()]
        if name not in parts and names.issuperset(parts) and parts:
            joined.append(name)
    if joined:
        named = ", ".join(shown(name) for name in joined[:3]) + (", ..." if len(joined) > 3 else "")
        logger.warning(
            f"'{path}' has classes that look like several others: {named}; use one separator, '|', in all its cells"
        )


def _find_columns(path: Path, header: Sequence[str]) -> tuple[dict[str, int], bool]:
    """Position of each known column in the header; and whether its name says that a cell has several classes."""
    headers = [cell.strip().lower() for cell in header]
    one = {name: column for column, names in COLUMNS.items() for name in names}
    several = not any(one.get(cell) in ("label", "classname") for cell in headers)
    known = one | {name: column for column, names in PLURALS.items() for name in names} if several else one
    columns: dict[str, int] = {}
    for position, cell in enumerate(headers):
        column = known.get(cell)
        if column in columns:
            raise UserError(f"the table '{path}' has two columns for '{column}': {', '.join(header)}")
        if column is not None:
            columns[column] = position
    if "path" not in columns:
        raise _lacks_columns(path, header)
    return columns, several


def _lacks_columns(path: Path, header: Sequence[str]) -> UserError:
    return UserError(
        f"the table '{path}' needs a header with path, and label or classname (optionally split and classid), or a "
        f"column of zeros and ones for each class; its first line is: {', '.join(header) or 'empty'}"
    )


def _parse_rows(path: Path, lines: CSVReader, columns: Mapping[str, int]) -> Iterator[tuple[TableRow, Sequence[str]]]:
    """Each line as it is written, with its cells."""
    number = lines.line_num + 1
    for cells in lines:
        where = f"'{path}', line {number}"
        number = lines.line_num + 1  # cells may contain line breaks
        if not any(cells):
            continue
        cut = [column for column, position in columns.items() if position >= len(cells)]
        given: dict[str, Any] = {c: cells[i].strip() for c, i in columns.items() if c not in cut}
        row = TableRow(where, "")._replace(**given)
        check_path(row.path)
        if cut or not row.path:
            raise UserError(f"{where} has no {cut[0] if cut else 'path'}: {', '.join(cells)}")
        yield row, cells


# ---- tables of several classes per image -----------------------------------------------------------------------------


def _from_columns_of_classes(
    path: Path, header: Sequence[str], written: Sequence[tuple[TableRow, Sequence[str]]], columns: Mapping[str, int]
) -> tuple[list[TableRow], set[int]]:
    """The rows of a table with a column of zeros and ones for each class; and the columns that are not used.

    Raises:
        UserError: there are no two such columns.
    """
    others = set(range(len(header))) - set(columns.values())
    named = [position for position in sorted(others) if header[position].strip()]
    values = {position: [_truth(cells, position) for _, cells in written] for position in named}
    marks = {position: found for position, found in values.items() if None not in found}
    if len(marks) < 2 or not written:
        raise _lacks_columns(path, header)
    for position in sorted(others):
        if position in marks:
            _refuse_split(path, header[position].strip())
        elif len({cells[position] for _, cells in written if position < len(cells)}) < len(written):  # values recur
            _refuse_misspelt(path, header[position].strip())
    ones = [[header[position].strip() for position, found in marks.items() if found[i]] for i in range(len(written))]
    several = any(len(names) != 1 for names in ones)
    kind = "multi-label" if several else "of one class per image"
    listed = ", ".join(f"'{header[position].strip()}'" for position in list(marks)[:10])
    listed += ", ..." if len(marks) > 10 else ""
    logger.info(f"'{path}' is {kind}: zeros and ones in {len(marks)} columns, each of a class: {listed}")
    rows = [
        row._replace(classname=name, several=several)
        for (row, _), names in zip(written, ones, strict=True)
        for name in names or [""]
    ]
    return rows, others - marks.keys()


def _refuse_split(path: Path, name: str) -> None:
    """Raise a UserError if a column of zeros and ones gives the split of each row."""
    if split_called(re.sub(r"^is[_ -]?", "", name, flags=re.IGNORECASE)):
        raise UserError(
            f"the table '{path}' has zeros and ones in a column '{name}', which is not a class; name each row's split "
            "in a column 'split'"
        )


def _refuse_misspelt(path: Path, name: str) -> None:
    """Raise a UserError if a column next to those of zeros and ones is named almost like a class column."""
    if meant := nearest(name, _CLASS_HEADERS):
        raise UserError(
            f"the table '{path}' has a column '{name}' (did you mean {meant!r}?) beside columns of zeros and ones; "
            "rename it, or leave it out if each of these is a class"
        )


def _truth(cells: Sequence[str], position: int) -> bool | None:
    """Whether a cell says yes; None if it says neither yes nor no."""
    return _TRUTH.get(cells[position].strip().lower()) if position < len(cells) else None


def _single_classes(path: Path, rows: list[TableRow], columns: Mapping[str, int], several: bool) -> list[TableRow]:
    """A row for each class of each image, if the table is multi-label; otherwise the rows as they are.

    Args:
        several: whether the header says that it is.
    """
    main = "label" if "label" in columns else "classname"
    given = [column for column in OF_CLASSES if column in columns]
    for row in rows:
        for column in given:
            cell = getattr(row, column)
            if _LIST_LIKE.fullmatch(cell) and not _NOTE.fullmatch(cell):
                _read_list(row.where, cell)  # a malformed one must not change how the others are read
    cells = [getattr(row, main) for row in rows]
    separator = _separator_in(cells, several)
    if not several and separator is None:
        return rows
    how = f"separated by '{separator}'" if separator and separator != LIST else "as lists" if separator else "by row"
    logger.info(f"'{path}' is multi-label: an image may have several classes, {how}")
    found = []
    for row in rows:
        parts = {column: _parts(row.where, getattr(row, column), separator) for column in given}
        count = len(parts[main])
        for column, values in parts.items():
            if values and len(values) != count:
                raise UserError(f"{row.where} has {count} in the column of {main}s, but {len(values)} {column}s")
        for i in range(max(count, 1)):
            one = {column: values[i] if values else "" for column, values in parts.items()}
            found.append(row._replace(**one, several=True))
    return found


def _separator_in(cells: Sequence[str], several: bool) -> str | None:
    """What separates the classes in cells; LIST if each has a list; None if each has one class.

    Args:
        several: whether the header says that cells have several.
    """
    filled = {cell for cell in cells if cell}
    if filled and all(map(_is_list, filled)):
        return LIST
    plain = [cell for cell in filled if not _is_list(cell)]
    for separator in SEPARATORS:
        if any(separator in cell for cell in plain):
            parts = {part.strip() for cell in plain for part in cell.split(separator)}
            # A name may have a ";" in it: then there are more parts than names, where classes recur there are fewer.
            if several or separator == "|" or (separator == ";" and len(parts) <= len(filled)):
                return separator
    numbers = [cell.split() for cell in plain]
    if any(len(found) > 1 for found in numbers) and all(part.isdecimal() for found in numbers for part in found):
        return " "
    return LIST if any(_is_list(cell) and not _WORD.fullmatch(cell) for cell in filled) else None


def _is_list(cell: str) -> bool:
    return cell.startswith("[") and cell.endswith("]")


def _parts(where: str, cell: str, separator: str | None) -> list[str]:
    """The classes in a cell.

    Raises:
        UserError: a list that cannot be read.
    """
    if not _is_list(cell):
        split = [cell] if separator in (None, LIST) else cell.split(separator)
        return [part.strip() for part in split if part.strip()]
    return _read_list(where, cell)


def _read_list(where: str, cell: str) -> list[str]:
    """The classes in a cell with a list.

    Raises:
        UserError: the list cannot be read.
    """
    wrong = f"{where}: {shown(cell)} is not a list of classes"
    if not _is_list(cell):
        raise UserError(wrong)
    try:
        listed: Any = json.loads(cell)
    except (ValueError, RecursionError):  # Python's spelling: ['cat', 'dog']
        quote = "'" if "'" in cell else '"'
        try:
            listed = next(csv.reader([cell[1:-1]], quotechar=quote, skipinitialspace=True, strict=True), [])
        except csv.Error as error:
            raise UserError(f"{wrong}: {error}") from error
        if any(_NUMPY.fullmatch(part.strip()) or _LIST_LIKE.fullmatch(part.strip()) for part in listed):
            raise UserError(wrong) from None
    if not all(isinstance(part, str) or type(part) is int for part in listed):
        raise UserError(f"{where}: {shown(cell)} is not a list of names or labels")
    return [str(part).strip() for part in listed if str(part).strip()]


# ---- images and classes ----------------------------------------------------------------------------------------------


def list_rows(rows: Sequence[TableRow], folder: Path) -> list[Datum]:
    """The image of each row, in order; in a multi-label table all rows of an image give the same one.

    Labels are those of the table, or positions among the sorted class names. A ``classnames.json`` in ``folder`` may
    rename classes, or name labels; see :func:`dassl_lite.data.layouts.class_folders.name_folders`.

    Args:
        folder: folder that paths are relative to.

    Raises:
        UserError: two rows have the same image in a table of one class per image, or give a class different names or
            ids.
    """
    classes = _list_classes(rows, folder / "classnames.json")
    first: dict[str, TableRow] = {}
    of_path: dict[str, list[tuple[int, str, str]]] = {}
    paths = [os.path.normpath(folder / row.path) for row in rows]
    for path, row in zip(paths, rows, strict=True):
        if first.setdefault(path, row) is not row and not row.several:
            raise UserError(
                f"{row.where}: '{row.path}' is already listed in {first[path].where}; call the column of classes "
                "'labels' if images have several"
            )
        of_path.setdefault(path, []).extend([] if row.has_none else [classes[row.key]])
    made = {path: Datum(path, classes=found) for path, found in of_path.items()}
    if without := sum(not found for found in of_path.values()):
        logger.info(f"{count_images(without)} with none of the classes")
    return [made[path] for path in paths]


def _list_classes(rows: Sequence[TableRow], names_file: Path) -> dict[str, tuple[int, str, str]]:
    """Label, name and id of each class, by the key of its rows."""
    first: dict[str, TableRow] = {}
    rows = [row for row in rows if not row.has_none]
    if not rows:
        raise UserError("no image of the table has a class")
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
    """The images of each split that the table gives, or all of them under UNSPLIT if it gives none; each image once.

    Raises:
        UserError: a row has an unknown split, none although others have one, or another than its image has elsewhere;
            all rows are for training.
    """
    if not any(row.split for row in rows):
        return {UNSPLIT: list(dict.fromkeys(items))}
    parts: dict[str, list[Datum]] = {}
    part_of: dict[str, str] = {}
    for row, item in zip(rows, items, strict=True):
        part = split_called(row.split)
        if not part:
            raise unknown(f"split in {row.where}:", row.split, Split._fields)
        if item.impath not in part_of:
            parts.setdefault(part, []).append(item)
        elif part_of[item.impath] != part:
            raise UserError(f"{row.where}: '{row.path}' is for {part}, but in another row for {part_of[item.impath]}")
        part_of[item.impath] = part
    if set(parts) == {"train"}:
        raise UserError(f"no row of the table ({rows[0].where} and after) has the split test or val")
    return parts
