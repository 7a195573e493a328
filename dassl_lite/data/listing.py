"""Listing a user's own folders: what is an image, what is passed over, what a class is called."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from dassl_lite.data.datum import Datum
from dassl_lite.data.splits import Split
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.files import read_json

logger = logging.getLogger(__name__)

OUR_FOLDERS = ("split_fewshot",)  # what runs leave beside the class folders
_PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_WNID = re.compile(r"n\d{8}")


class ClassNames(NamedTuple):
    """What the prompts call each class folder, and what identifies it."""

    names: dict[str, str]
    ids: dict[str, str]


class Listing(NamedTuple):
    """Image files of a folder, in sorted order, and how many other entries there were."""

    files: list[str]
    passed_over: int


@functools.cache
def image_extensions() -> frozenset[str]:
    """Lower-case endings of the files that the installed PIL reads, with the dot."""
    Image.init()
    return frozenset(ending for ending, kind in Image.EXTENSION.items() if kind in Image.OPEN)


def list_images(folder: str) -> Listing:
    """Images directly in ``folder``, by their endings; hidden files, other files and folders are counted."""
    files, others = [], 0
    with os.scandir(folder) as entries:
        for entry in entries:
            known = os.path.splitext(entry.name)[1].lower() in image_extensions()
            if known and not entry.name.startswith(".") and entry.is_file():
                files.append(entry.path)
            else:
                others += 1
    return Listing(sorted(files), others)


def list_folders(folder: str) -> list[str]:
    """Names of the folders in ``folder``, sorted, without hidden ones and ours."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(set(names) - set(OUR_FOLDERS))


def list_classes(place: str, folders: Sequence[str], names_file: str, may_lack: bool = False) -> list[list[Datum]]:
    """Images of each of the class ``folders`` in ``place``; labels in the order of ``folders``.

    Args:
        names_file: JSON file with the names of the classes, see :func:`read_class_names`; it need not exist.
        may_lack: a class may have no image, or no folder.

    Raises:
        UserError: no class folders, or an empty one.
    """
    if not folders:
        raise UserError(f"'{place}' holds no class folders: images should lie in {place}/<class>/")
    classes = read_class_names(Path(names_file), folders)
    groups, passed_over = [], 0
    for label, folder in enumerate(folders):
        path = os.path.join(place, folder)
        listing = list_images(path) if os.path.isdir(path) else Listing([], 0)
        passed_over += listing.passed_over
        if not listing.files and not may_lack:
            raise UserError(f"class folder '{path}' holds no image")
        name, identity = classes.names[folder], classes.ids[folder]
        groups.append([Datum(file, label, classname=name, classid=identity) for file in listing.files])
    if passed_over:
        logger.info("Passed over %d entries under '%s' that are not images", passed_over, place)
    return groups


def find_parts(root: str) -> dict[str, str]:
    """Folders of the parts of a dataset that comes split: ``{"train": path, ...}``; empty if it does not.

    It does if there is a ``train`` folder and nothing beside it but parts. Without a ``test`` folder ``val`` is
    the test set, and there is none for validation: selection must not see what is tested.
    """
    folders = list_folders(root)
    if "train" not in folders or len(folders) < 2 or not set(folders) <= {*_PARTS, *OUR_FOLDERS}:
        return {}
    parts = {_PARTS[name]: os.path.join(root, name) for name in folders if name in _PARTS}
    if "test" not in parts and "val" in parts:
        logger.info("No test folder in '%s': its val folder is the test set", root)
        parts["test"] = parts.pop("val")
    return parts if "test" in parts else {}


def list_parts(parts: dict[str, str], names_file: str) -> Split:
    """The split that the folders of :func:`find_parts` make; the train folder tells the classes."""
    folders = list_folders(parts["train"])
    listed: dict[str, list[Datum]] = {}
    for part, place in parts.items():
        extra = sorted(set(list_folders(place)) - set(folders))
        if extra:
            raise UserError(f"'{place}' has classes that '{parts['train']}' has not: {', '.join(extra[:3])}")
        groups = list_classes(place, folders, names_file, may_lack=part != "train")
        listed[part] = [item for group in groups for item in group]
    return Split(listed["train"], listed.get("val", []), listed["test"])


def refreshed(split: Split, groups: Iterable[Iterable[Datum]], split_file: str) -> Split:
    """A split read from a file, its items as they are listed now; says how many images came after the split."""
    known = {item.impath: item for group in groups for item in group}
    later = known.keys() - {item.impath for part in split for item in part}
    if later:
        logger.warning(
            "%d images are left out: they came after the split; delete '%s' to split anew", len(later), split_file
        )
    return Split(*([known.get(item.impath, item) for item in part] for part in split))


def read_class_names(path: Path, folders: Sequence[str]) -> ClassNames:
    """Names and ids of the class ``folders``, from the JSON file ``path`` if there is one.

    The file holds ``{folder: name}``, ``{folder: {"name": ..., "id": ...}}``, or a list of names in the order
    of the sorted folders. A folder that it does not mention is called as it is; one called like a wnid
    (``n01440764``) has that for its id.

    Raises:
        UserError: the file is neither, or names a folder that is not there.
    """
    names = {folder: _readable(folder) for folder in folders}
    ids = {folder: folder if _WNID.fullmatch(folder) else "" for folder in folders}
    for folder, entry in _class_entries(path, folders).items():
        if folder not in names:
            raise unknown(f"class folder in '{path}':", folder, folders)
        described = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(described, dict) or not isinstance(described.get("name"), str):
            raise UserError(f"'{path}': the entry of '{folder}' should be a name, or an object with 'name' and 'id'")
        names[folder] = described["name"]
        ids[folder] = described.get("id", ids[folder])
    return ClassNames(names, ids)


def _class_entries(path: Path, folders: Sequence[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read '{path}' as JSON: {error}") from error
    if isinstance(content, list):
        if len(content) != len(folders):
            raise UserError(f"'{path}' lists {len(content)} class names, but there are {len(folders)} class folders")
        return dict(zip(folders, content, strict=True))
    if not isinstance(content, dict):
        raise UserError(f"'{path}' should hold an object from class folder to name, or a list of names")
    return content


def _readable(folder: str) -> str:
    """A folder's name as text: bytes that are not UTF-8 are shown as a replacement sign."""
    return os.fsencode(folder).decode("utf-8", "replace")
