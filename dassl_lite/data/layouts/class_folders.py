"""Folders of images, one per class: which files are images, what the classes are called, how they are split."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dassl_lite.data.datum import Datum
from dassl_lite.data.imagenet import WNID, imagenet_names
from dassl_lite.data.images import count_images, describe_kinds, is_folder, is_usual_image, kind_of
from dassl_lite.data.sharded.members import exists
from dassl_lite.data.splits import Split, check_name, split_classes
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.files import read_json
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

OUR_FOLDERS = {"split_fewshot"}  # written beside the class folders by our own runs
# Left by operating systems and archive programs.
JUNK_FOLDERS = {
    *("__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"),
}


class ClassFolder(NamedTuple):
    """A folder with the images of one class: the class's name in prompts, and its id ("" if it has none)."""

    folder: str
    name: str
    classid: str = ""


class Listing(NamedTuple):
    """The image files in a folder, sorted, and the number of its other entries by kind."""

    files: list[str]
    passed: Counter[str]


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
    """A class named by its entry in the JSON file."""
    described = entry if isinstance(entry, dict) else {"name": entry}
    name, classid = described.get("name"), described.get("id", folder if WNID.fullmatch(folder) else "")
    try:
        return ClassFolder(folder, check_name(name), check_name(classid) if classid != "" else "")
    except ValueError as error:
        should = "a name, or an object with 'name' and 'id'"
        raise UserError(f"'{path}': the entry of '{folder}' should be {should} ({error})") from None


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
    """Images directly in ``folder``, recognised by extension; skipped files are counted by kind."""
    files, passed = [], Counter[str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_usual_image(entry):
                files.append(entry.path)
            elif kind := "folders" if is_folder(entry) else kind_of(entry):
                passed[kind] += 1
            else:
                files.append(entry.path)
    return Listing(sorted(files), passed)


def no_images(folder: str, passed: Mapping[str, int]) -> str:
    """The message for a class folder without images, with what it contains instead."""
    instead = f" ({describe_kinds(passed)})" if passed else ""
    return f"class folder '{folder}' {f'contains no images{instead}' if os.path.isdir(folder) else 'is missing'}"


def list_folders(folder: str) -> list[str]:
    """Sorted names of the folders in ``folder`` that may hold images: see :func:`is_ignored`."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_folder(entry) and not is_ignored(entry.name))


def is_ignored(name: str) -> bool:
    """Whether a folder holds no images, by its name: hidden, written by our runs, or left by other programs."""
    return name.startswith(".") or name in OUR_FOLDERS or name.lower() in JUNK_FOLDERS


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
    groups, passed = [], Counter[str]()
    for label, (folder, name, classid) in enumerate(classes):
        path = os.path.join(parent, folder)
        listing = list_images(path) if os.path.isdir(path) else Listing([], Counter())
        passed += listing.passed
        if not listing.files and not allow_empty:
            raise UserError(no_images(path, listing.passed))
        groups.append([Datum(file, label, 0, name, classid) for file in listing.files])
    if passed:
        logger.info(f"Skipped in '{parent}': {describe_kinds(passed)}")
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


def list_split_folders(folders: Mapping[str, str], classes: Sequence[ClassFolder]) -> Split:
    """The split given by folders for train, test and maybe val.

    Args:
        folders: folder of each split, by the split's name.
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
    dropped = [path for path in in_split if path not in listed and exists(path)]
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
