"""What a folder of images is called in prompts, and which class it is."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dassl_lite.data.wnids import WNID, imagenet_names
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.files import read_json

logger = logging.getLogger(__name__)


class ClassFolder(NamedTuple):
    """A folder with one class's images: what prompts call the class, and its id ("" if it has none)."""

    folder: str
    name: str
    classid: str = ""


def folders_by_wnid(wnids: Sequence[str], names: Mapping[str, str], source: str) -> list[ClassFolder]:
    """Folders called by wnid, under the ``names`` of the file ``source``."""
    unnamed = [wnid for wnid in wnids if wnid not in names]
    if unnamed:
        raise UserError(f"{source} names no class for {len(unnamed)} of {len(wnids)} folders: {', '.join(unnamed[:3])}")
    return [ClassFolder(wnid, names[wnid], wnid) for wnid in wnids]


def name_folders(folders: Sequence[str], path: Path) -> list[ClassFolder]:
    """Name a user's class folders, with the JSON file ``path`` if there is one.

    The file holds ``{folder: name}``, ``{folder: {"name": ..., "id": ...}}``, or a list of names in the order
    of the sorted folders. A folder that it does not mention is called as it is; a wnid (``n01440764``) is the
    class's id, and its name is ImageNet's.

    Raises:
        UserError: the file is neither, or names a folder that is not there.
    """
    entries = _entries(path, folders)
    return [_described(path, folder, entries[folder]) if folder in entries else _own(folder) for folder in folders]


def _own(folder: str) -> ClassFolder:
    """A class called as its folder; bytes that are not UTF-8 are shown as a replacement sign."""
    if not WNID.fullmatch(folder):
        return ClassFolder(folder, os.fsencode(folder).decode("utf-8", "replace"))
    if folder not in imagenet_names():
        logger.warning("Class folder '%s' is no wnid of ImageNet-1k: a classnames.json could name it", folder)
    return ClassFolder(folder, imagenet_names().get(folder, folder), folder)


def _described(path: Path, folder: str, entry: Any) -> ClassFolder:
    described = {"name": entry} if isinstance(entry, str) else entry
    fits = isinstance(described, dict) and isinstance(described.get("name"), str)
    if not fits or not isinstance(described.get("id", ""), str):
        raise UserError(f"'{path}': the entry of '{folder}' should be a name, or an object with 'name' and 'id'")
    return ClassFolder(folder, described["name"], described.get("id", folder if WNID.fullmatch(folder) else ""))


def _entries(path: Path, folders: Sequence[str]) -> dict[str, Any]:
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
    absent = next((folder for folder in content if folder not in folders), None)
    if absent is not None:
        raise unknown(f"class folder in '{path}':", absent, folders)
    return content
