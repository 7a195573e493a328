"""Folders of images, one per class: which files are images, what the classes are called, how they are split."""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dassl_lite.data.datum import Datum
from dassl_lite.data.imagenet import WNID, imagenet_names
from dassl_lite.data.images import count_images, image_extensions
from dassl_lite.data.splits import SPLIT_NAMES, Split, split_classes
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.files import read_json
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

OUR_FOLDERS = ("split_fewshot",)  # written beside the class folders by our own runs


class ClassFolder(NamedTuple):
    """A folder with the images of one class: the class's name in prompts, and its id ("" if it has none)."""

    folder: str
    name: str
    classid: str = ""


class Listing(NamedTuple):
    """The image files in a folder, sorted, and the number of its other entries."""

    files: list[str]
    skipped: int


# ---- names of the classes --------------------------------------------------------------------------------------------


def folders_by_wnid(wnids: Sequence[str], names: Mapping[str, str], source: str) -> list[ClassFolder]:
    """Class folders called by wnid, with the class ``names`` that come from ``source``."""
    unnamed = [wnid for wnid in wnids if wnid not in names]
    if unnamed:
        raise UserError(
            f"{source} has no class name for {len(unnamed)} of {len(wnids)} folders: {', '.join(unnamed[:3])}"
        )
    return [ClassFolder(wnid, names[wnid], wnid) for wnid in wnids]


def name_folders(folders: Sequence[str], path: Path) -> list[ClassFolder]:
    """Name a user's class folders, with the JSON file ``path`` if it exists.

    The file contains ``{folder: name}``, ``{folder: {"name": ..., "id": ...}}``, or a list of names in the order of the
    sorted folders. A class that it does not mention is called by its folder. A folder called by a wnid (``n01440764``)
    has that as the class id, and ImageNet's name for it.

    Raises:
        UserError: the file has another format, or mentions a folder that does not exist.
    """
    entries = _read_entries(path, folders)
    return [
        _from_entry(path, folder, entries[folder]) if folder in entries else _from_folder_name(folder)
        for folder in folders
    ]


def _from_folder_name(folder: str) -> ClassFolder:
    """A class called by its folder; bytes that are not UTF-8 become replacement characters."""
    if not WNID.fullmatch(folder):
        return ClassFolder(folder, os.fsencode(folder).decode("utf-8", "replace"))
    if folder not in imagenet_names():
        logger.warning(f"Class folder '{folder}' is not a wnid of ImageNet-1k; name its class in a classnames.json")
    return ClassFolder(folder, imagenet_names().get(folder, folder), folder)


def _from_entry(path: Path, folder: str, entry: object) -> ClassFolder:
    """A class called as its entry in the JSON file says."""
    described = entry if isinstance(entry, dict) else {"name": entry}
    name, classid = described.get("name"), described.get("id", folder if WNID.fullmatch(folder) else "")
    if not isinstance(name, str) or not isinstance(classid, str):
        raise UserError(f"'{path}': the entry of '{folder}' should be a name, or an object with 'name' and 'id'")
    return ClassFolder(folder, name, classid)


def _read_entries(path: Path, folders: Sequence[str]) -> Mapping[str, object]:
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
        raise UserError(f"'{path}' should contain an object that maps folders to class names, or a list of names")
    absent = next((folder for folder in content if folder not in folders), None)
    if absent is not None:
        raise unknown(f"class folder in '{path}':", absent, folders)
    return content


# ---- listing ---------------------------------------------------------------------------------------------------------


def list_images(folder: str) -> Listing:
    """Images directly in ``folder``, recognised by extension; hidden files, other files and folders are counted."""
    files, skipped = [], 0
    with os.scandir(folder) as entries:
        for entry in entries:
            is_image = os.path.splitext(entry.name)[1].lower() in image_extensions()
            if is_image and not entry.name.startswith(".") and entry.is_file():
                files.append(entry.path)
            else:
                skipped += 1
    return Listing(sorted(files), skipped)


def list_folders(folder: str) -> list[str]:
    """Sorted names of the folders in ``folder``, without hidden ones and those that runs write."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(set(names) - set(OUR_FOLDERS))


def list_classes(parent: str, classes: Sequence[ClassFolder], allow_empty: bool = False) -> list[list[Datum]]:
    """List the images of each class, labelled in the order of ``classes``.

    Args:
        parent: folder that contains the class folders.
        allow_empty: accept a class without images or without a folder.

    Raises:
        UserError: there are no class folders, or one is empty.
    """
    if not classes:
        raise UserError(f"'{parent}' contains no class folders; images should be in {parent}/<class>/")
    groups, skipped = [], 0
    for label, (folder, name, classid) in enumerate(classes):
        path = os.path.join(parent, folder)
        listing = list_images(path) if os.path.isdir(path) else Listing([], 0)
        skipped += listing.skipped
        if not listing.files and not allow_empty:
            raise UserError(f"class folder '{path}' {'contains no images' if os.path.isdir(path) else 'is missing'}")
        groups.append([Datum(file, label, classname=name, classid=classid) for file in listing.files])
    if skipped:
        logger.info(f"Skipped entries under '{parent}' that are not images: {skipped}")
    return groups


# ---- splits ----------------------------------------------------------------------------------------------------------


def split_folders(
    image_dir: str,
    ignored: Collection[str] = (),
    new_names: Mapping[str, str] | None = None,
    p_train: float = 0.5,
    p_val: float = 0.2,
) -> Split:
    """Split ``image_dir/<class>/*`` at random, as CoOp does for DTD, EuroSAT, Food101 and Caltech101.

    Draws from Python's global ``random``. CoOp shuffles an unsorted listing; here it is sorted, so that a seed gives
    the same split on every disk. Labels follow the sorted folder names.

    Args:
        ignored: folders to leave out.
        new_names: class names for prompts, of folders that should not be called by their own names.
        p_train, p_val: fractions for training and validation; the rest is for testing.
    """
    new_names = new_names or {}
    folders = [folder for folder in list_folders(image_dir) if folder not in ignored]
    classes = [ClassFolder(folder, new_names.get(folder, folder)) for folder in folders]
    return split_classes(list_classes(image_dir, classes), random, p_train, p_val)


def find_split_folders(root: str) -> dict[str, str]:
    """Folders of a dataset that comes split, ``{"train": path, ...}``; empty if it does not.

    It comes split if it has a ``train`` folder and all other folders are splits too. Without a ``test`` folder ``val``
    becomes the test set and there is no validation set: model selection must not see the test images.
    """
    folders = list_folders(root)
    if "train" not in folders or len(folders) < 2 or not set(folders) <= {*SPLIT_NAMES, *OUR_FOLDERS}:
        return {}
    found = {SPLIT_NAMES[name]: os.path.join(root, name) for name in folders if name in SPLIT_NAMES}
    if "test" not in found and "val" in found:
        logger.info(f"There is no test folder in '{root}': val is the test set, and there is no validation set")
        found["test"] = found.pop("val")
    return found if "test" in found else {}


def list_split_folders(folders: Mapping[str, str], classes: Sequence[ClassFolder]) -> Split:
    """The split given by folders for train, test and maybe val.

    Args:
        folders: folder of each split, as :func:`find_split_folders` returns them.
        classes: the classes in the train folder; the other folders may lack some but not have others.

    Raises:
        UserError: a class folder is not among ``classes``, or a training class is empty.
    """
    known, listed = {entry.folder for entry in classes}, {}
    for name, folder in folders.items():
        extra = sorted(set(list_folders(folder)) - known)
        if extra:
            raise UserError(f"'{folder}' has classes that '{folders['train']}' lacks: {', '.join(extra[:3])}")
        groups = list_classes(folder, classes, allow_empty=name != "train")
        listed[name] = [item for group in groups for item in group]
    return Split(listed["train"], listed.get("val", []), listed["test"])


def refresh_split(split: Split, groups: Iterable[Iterable[Datum]], split_file: str) -> Split:
    """A split that was read from a file, with labels and class names as the images are listed now.

    Warns of images that were added after the split was made. An image whose file is gone keeps its item:
    :func:`dassl_lite.data.splits.check_files` reports it.

    Raises:
        UserError: the split has images that exist but are no longer listed.
    """
    listed = {item.impath: item for group in groups for item in group}
    in_split = dict.fromkeys(item.impath for part in split for item in part)
    dropped = [path for path in in_split if path not in listed and os.path.exists(path)]
    if dropped:
        first = ", ".join(f"'{path}'" for path in dropped[:3]) + (", ..." if len(dropped) > 3 else "")
        raise UserError(
            f"split file '{split_file}' has {count_images(len(dropped))} no longer listed: {first}. "
            f"Put them back, or delete {split_file} to split again."
        )
    added = listed.keys() - in_split.keys()
    if added:
        logger.warning(
            f"Ignored {count_images(len(added))} added after the split; delete '{split_file}' to split again"
        )
    return Split(*([listed.get(item.impath, item) for item in part] for part in split))
