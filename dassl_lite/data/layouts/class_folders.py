"""Folders of images, one per class: what is an image, what prompts call the class, which split they make."""

from __future__ import annotations

import functools
import logging
import os
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from dassl_lite.data.datum import Datum
from dassl_lite.data.imagenet import WNID, imagenet_names
from dassl_lite.data.splits import PARTS, Split, split_classes
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


OUR_FOLDERS = ("split_fewshot",)  # what runs leave beside the class folders


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


def list_classes(place: str, classes: Sequence[ClassFolder], may_lack: bool = False) -> list[list[Datum]]:
    """Images of each of the ``classes`` in ``place``; labels in the order of ``classes``.

    Args:
        may_lack: a class may have no image, or no folder.

    Raises:
        UserError: no class folders, or an empty one.
    """
    if not classes:
        raise UserError(f"'{place}' holds no class folders: images should lie in {place}/<class>/")
    groups, passed_over = [], 0
    for label, (folder, name, classid) in enumerate(classes):
        path = os.path.join(place, folder)
        listing = list_images(path) if os.path.isdir(path) else Listing([], 0)
        passed_over += listing.passed_over
        if not listing.files and not may_lack:
            raise UserError(f"class folder '{path}' {'holds no image' if os.path.isdir(path) else 'is not there'}")
        groups.append([Datum(file, label, classname=name, classid=classid) for file in listing.files])
    if passed_over:
        logger.info("Passed over %d entries under '%s' that are not images", passed_over, place)
    return groups


def split_folders(
    image_dir: str,
    ignored: Collection[str] = (),
    new_names: Mapping[str, str] | None = None,
    p_train: float = 0.5,
    p_val: float = 0.2,
) -> Split:
    """Split ``image_dir/<class>/*`` at random, as the reference does for DTD, EuroSAT, Food101 and Caltech101.

    Labels follow the sorted folder names. ``new_names`` renames folders for the prompt. Draws from Python's
    global ``random``; the reference shuffles an unsorted listing, we deviate: sorted, so that a seed gives
    the same split on every disk.
    """
    new_names = new_names or {}
    folders = [folder for folder in list_folders(image_dir) if folder not in ignored]
    classes = [ClassFolder(folder, new_names.get(folder, folder)) for folder in folders]
    return split_classes(list_classes(image_dir, classes), random, p_train, p_val)


def find_parts(root: str) -> dict[str, str]:
    """Folders of the parts of a dataset that comes split: ``{"train": path, ...}``; empty if it does not.

    It does if there is a ``train`` folder and nothing beside it but parts. Without a ``test`` folder ``val`` is
    the test set, and there is none for validation: selection must not see what is tested.
    """
    folders = list_folders(root)
    if "train" not in folders or len(folders) < 2 or not set(folders) <= {*PARTS, *OUR_FOLDERS}:
        return {}
    parts = {PARTS[name]: os.path.join(root, name) for name in folders if name in PARTS}
    if "test" not in parts and "val" in parts:
        logger.info("No test folder in '%s': its val folder is the test set", root)
        parts["test"] = parts.pop("val")
    return parts if "test" in parts else {}


def list_parts(parts: Mapping[str, str], classes: Sequence[ClassFolder]) -> Split:
    """The split that folders of train, val (if any) and test make.

    Args:
        parts: as :func:`find_parts` gives it.
        classes: those of the train folder; the others may lack some, but not have more.
    """
    known, listed = {folder.folder for folder in classes}, {}
    for part, place in parts.items():
        extra = sorted(set(list_folders(place)) - known)
        if extra:
            raise UserError(f"'{place}' has classes that '{parts['train']}' has not: {', '.join(extra[:3])}")
        groups = list_classes(place, classes, may_lack=part != "train")
        listed[part] = [item for group in groups for item in group]
    return Split(listed["train"], listed.get("val", []), listed["test"])


def refreshed(split: Split, groups: Iterable[Iterable[Datum]], split_file: str) -> Split:
    """A split read from a file, its items as they are listed now; says how many images came after the split.

    An image whose file is gone stays as it was: what to do about it is for :func:`check_files` to say.

    Raises:
        UserError: the split names files that are there, but are listed no more; how many, and the first three.
    """
    known = {item.impath: item for group in groups for item in group}
    named = dict.fromkeys(item.impath for part in split for item in part)
    dropped = [path for path in named if path not in known and os.path.exists(path)]
    if dropped:
        first = ", ".join(f"'{path}'" for path in dropped[:3]) + (", ..." if len(dropped) > 3 else "")
        raise UserError(
            f"split file '{split_file}' names {len(dropped)} images that are not listed any more: {first}. "
            f"Put them back, or delete {split_file} to split anew."
        )
    later = known.keys() - named.keys()
    if later:
        logger.warning(
            "%d images are left out: they came after the split; delete '%s' to split anew", len(later), split_file
        )
    return Split(*([known.get(item.impath, item) for item in part] for part in split))
