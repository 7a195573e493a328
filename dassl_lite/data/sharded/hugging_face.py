"""Tables of images through Hugging Face's library ``datasets``: Parquet and Arrow files, and the hub.

The rows of a split are read once, in a stream, and their images are put one after the other into a file of the cache,
where they are read by their place as a shard's are. An image's key is the column that the user names, or a digest of
its content, so the order of the rows and of the files does not matter.

The library has the same name as this repository's folder ``datasets``; :func:`hugging_face` loads it nevertheless.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from dassl_lite.data.sharded.members import (
    OF_SHARD,
    Index,
    Record,
    Shard,
    content_digest,
    folder_of,
    shards_root,
    write_index,
)
from dassl_lite.data.sharded.remote import found_in
from dassl_lite.data.sharded.tar import Columns, plain_label
from dassl_lite.data.splits import UNSPLIT, split_called
from dassl_lite.utils.errors import UserError, printable, shown
from dassl_lite.utils.files import atomic_path, digest_of
from dassl_lite.utils.lazy import install_line

_NAME = "datasets"
_FORMATS = {".parquet": "parquet", ".arrow": "arrow"}
_IMAGES = ("image", "img", "jpg", "jpeg", "png", "pixel_values", "picture")
_LABELS = ("label", "labels", "cls", "class", "classname", "class_name", "fine_label", "target", "category")
_loaded: dict[str, ModuleType] = {}  # the library's modules, while they are not in sys.modules


class Table(NamedTuple):
    """The rows of a split: the file with their images, the class names if the table has them, and what is wrong."""

    shard: Shard
    classnames: tuple[str, ...]
    problems: list[str]


@contextlib.contextmanager
def hugging_face() -> Iterator[ModuleType]:
    """The library ``datasets`` within the block, also where a folder of this name comes first on the path.

    Raises:
        UserError: it is not installed.
    """
    try:
        place = Path(str(importlib.metadata.distribution(_NAME).locate_file(_NAME)))
        spec = importlib.util.spec_from_file_location(
            _NAME, place / "__init__.py", submodule_search_locations=[str(place)]
        )
    except importlib.metadata.PackageNotFoundError:
        spec = None
    if spec is None or spec.loader is None:
        raise UserError(f"HFDataset needs datasets: {install_line('shards')}")
    before = sys.modules.get(_NAME)
    if before is not None and Path(getattr(before, "__file__", None) or "").parent == place:
        yield before  # the user's own program has imported it
        return
    others = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_part(name)}
    try:
        sys.modules.update(_loaded)
        if _NAME not in sys.modules:
            sys.modules[_NAME] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(sys.modules[_NAME])
            except ImportError as error:
                raise UserError(f"HFDataset needs {error.name or _NAME}: {install_line('shards')}") from error
        yield sys.modules[_NAME]
    finally:
        if others or not _is_found_at(place):  # the name is another's
            taken = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_part(name)}
            if hasattr(taken.get(_NAME), "load_dataset"):
                _loaded.update(taken)
            sys.modules.update(others)


def _is_found_at(place: Path) -> bool:
    """Whether ``import datasets`` is this library, not another folder of the name."""
    found = importlib.machinery.PathFinder.find_spec(_NAME)
    return found is not None and Path(found.origin or "").parent == place


def _is_part(name: str) -> bool:
    return name == _NAME or name.startswith(f"{_NAME}.")


def tables_of(root: str, columns: Columns) -> dict[str, Table]:
    """The tables of a folder or a hub id, by split: "train", "val", "test" or UNSPLIT.

    Args:
        root: a folder with .parquet or .arrow files, one such file, or an id of the hub, ``name/of_it`` or
            ``name/of_it:config``.
        columns: the names of the columns of image, label and key; "" to find them.

    Raises:
        UserError: there is no such table, it cannot be read, or a column is not found.
    """
    local = os.path.abspath(os.path.expanduser(root))
    if os.path.exists(local):
        files = _files_of(local)
        state = {
            part: [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
            for part, paths in files.items()
        }
        return {
            part: _table(
                f"{os.path.basename(local)}, {part or 'all'}", [local, part, state[part], columns], columns, paths
            )
            for part, paths in files.items()
        }
    if root.startswith((".", "/", "~")) or root.count("/") > 1:
        raise UserError(f"HFDataset: there is no folder '{printable(root)}'")
    name, _, config = root.partition(":")
    with hugging_face() as library, _told(root):
        names = {part: split_called(part) for part in library.get_dataset_split_names(name, config or None)}
    parts = {part: given for given, part in reversed(list(names.items())) if part} or dict.fromkeys(
        [UNSPLIT], next(iter(names), "")
    )
    return {
        part: _table(f"{root}, {given}", [root, given, columns], columns, (name, config or None, given))
        for part, given in parts.items()
    }


def _files_of(root: str) -> dict[str, list[str]]:
    """The files of each split: by their own name's first word, or a folder's."""
    endings = tuple(_FORMATS)
    if os.path.isfile(root):
        return {UNSPLIT: [root]}
    found: dict[str, list[str]] = {}
    for name in found_in(root, endings):
        words = (*Path(name).parts[:-1], Path(name).name.partition(".")[0].partition("-")[0].partition("_")[0])
        part = next((part for word in words if (part := split_called(word))), UNSPLIT)
        found.setdefault(part, []).append(os.path.join(root, name))
    if not found:
        raise UserError(f"HFDataset: '{printable(root)}' has no .parquet or .arrow files")
    if len(found) > 1 and UNSPLIT in found:
        raise UserError(
            f"HFDataset: '{printable(found[UNSPLIT][0])}' belongs to no split; name it train-, val- or test-"
        )
    if len({os.path.splitext(path)[1] for paths in found.values() for path in paths}) > 1:
        raise UserError(f"HFDataset: '{printable(root)}' has .parquet and .arrow files; keep one kind")
    return found


@contextlib.contextmanager
def _told(source: str) -> Iterator[None]:
    """The library's errors as the user's, in one line; what it logs of them besides is not shown."""
    logger = logging.getLogger(_NAME)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # it raises those of Arrow, of the network and many of its own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error.__cause__ or error.__context__, OSError) and not str(error):
            reason = str(error.__cause__ or error.__context__)
        raise UserError(f"cannot read '{printable(source)}': {printable(reason)}") from error
    finally:
        logger.setLevel(level)


def _table(source: str, identity: list[Any], columns: Columns, place: Any) -> Table:
    """The index of a split's rows, made now if there is none."""
    made_of = digest_of(["table", 1, *identity])
    note = folder_of(made_of)
    try:
        index = Index(note)
        try:
            shard = index.shards[0]
            if os.path.isfile(shard.file):
                return Table(shard, tuple(index.about["classnames"]), list(index.about["problems"]))
        finally:
            index.close()
    except OSError:
        pass
    pack = shards_root() / "files" / f"{made_of[:16]}.images"
    problems: list[str] = []
    with hugging_face() as library, _told(source):
        rows, features = _stream(library, place)
        image, label, names = _columns(library, rows, features, columns, source)
        with atomic_path(pack) as temporary, open(temporary, "wb") as file:
            records = list(_records(rows, image, label, columns.key, file, source, problems, names))
    status = os.stat(pack)
    shard = Shard(content_digest(pack), str(pack), status.st_size, status.st_mtime_ns, source)
    about = {"classnames": names, "problems": problems}
    for folder in (folder_of(shard.digest), note):
        write_index(folder, [shard], ((0, one) for one in records), about)
    return Table(shard, tuple(names), problems)


def _stream(library: ModuleType, place: Any) -> tuple[Any, Mapping[str, Any]]:
    """The rows and the types of their columns; images are not decoded."""
    if isinstance(place, list):
        kind = _FORMATS[os.path.splitext(place[0])[1]]
        rows = library.load_dataset(kind, data_files={"rows": place}, split="rows", streaming=True)
    else:
        rows = library.load_dataset(place[0], place[1], split=place[2], streaming=True)
    features = dict(rows.features or {})
    for name, kind in features.items():
        if isinstance(kind, library.Image):
            rows = rows.cast_column(name, library.Image(decode=False))
    return rows, features


def _columns(
    library: ModuleType, rows: Any, features: Mapping[str, Any], named: Columns, source: str
) -> tuple[str, str, list[str]]:
    """The columns of image and label, and the class names."""
    known = list(features) or list(next(iter(rows), {}))
    for column in named:
        if column and column not in known:
            raise UserError(f"'{printable(source)}' has no column '{printable(column)}', only {', '.join(known)}")
    lower = {name.lower(): name for name in reversed(known)}
    of_type = [name for name in known if isinstance(features.get(name), library.Image)]
    image = named.image or next(iter(of_type), "") or next((lower[name] for name in _IMAGES if name in lower), "")
    classes = [name for name in known if isinstance(features.get(name), library.ClassLabel)]
    label = named.label or (classes[0] if len(classes) == 1 else "")
    label = label or next((lower[name] for name in _LABELS if name in lower), "") or next(iter(classes), "")
    for column, what in ((image, "IMAGE"), (label, "LABEL")):
        if not column:
            columns = ", ".join(known)
            raise UserError(
                f"'{printable(source)}': no column of {what.lower()}s found; DATASET.SHARDS.{what} names it: {columns}"
            )
    return image, label, list(getattr(features.get(label), "names", None) or [])


def _records(
    rows: Any, image: str, label: str, key: str, file: Any, source: str, problems: list[str], names: list[str]
) -> Iterator[Record]:
    """Put the images into the file; a record for each."""
    seen: set[str] = set()
    for number, row in enumerate(rows):
        where = f"'{source}', row {number}"
        cell = row[image]
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes) or not data:
            problems.append(f"{where}: there is no image in column '{image}'")
            continue
        found = row[label]
        found = None if names and found == -1 else plain_label(found)  # -1: the hub's test rows without labels
        if found is None:
            problems.append(f"{where}: column '{label}' has no label, but {shown(row[label])}")
            continue
        called = str(row[key]) if key else hashlib.sha256(data).hexdigest()[:24]
        if called in seen:
            problems.append(f"{where}: the {'key' if key else 'image'} {shown(called)} is there twice")
            continue
        seen.add(called)
        safe = called if _plain(called) else digest_of(called)[:24]
        start = file.tell()
        file.write(data)
        yield Record(f"{OF_SHARD}/{safe}", start, len(data), called, json.dumps(found))


def _plain(key: str) -> bool:
    return bool(key) and all(one.isalnum() or one in "-_." for one in key) and not key.startswith(".")
