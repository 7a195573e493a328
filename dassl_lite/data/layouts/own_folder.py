"""A user's folder of images: which of its folders are splits, which are classes, and what is skipped.

Images are found at any depth below a class, and splits by their usual names in any case::

    <class>/**/<image>            not split
    <split>/<class>/**/<image>    split
    <class>/<split>/**/<image>    split

If a folder only contains one other folder, as after unpacking an archive, the inner one is used.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dassl_lite.data.datum import Datum
from dassl_lite.data.images import count_images, describe_kinds, is_folder, is_usual_image, kind_of
from dassl_lite.data.layouts.class_folders import ClassFolder, is_ignored, name_folders, no_images
from dassl_lite.data.splits import UNSPLIT, split_called
from dassl_lite.utils.errors import UserError, nearest

MAX_DEPTH = 64

Part = dict[str, "Folder"]  # class folders by their names


@dataclass
class Folder:
    """A folder with what it contains.

    Attributes:
        path: of the folder.
        files: image files directly in it, sorted.
        folders: its folders by name, sorted, without hidden ones and junk.
        passed: number of the other files directly in it, by kind.
    """

    path: str
    files: list[str] = field(default_factory=list)
    folders: dict[str, Folder] = field(default_factory=dict)
    passed: Counter[str] = field(default_factory=Counter)

    def walk(self) -> Iterator[Folder]:
        """This folder and all below it."""
        yield self
        for folder in self.folders.values():
            yield from folder.walk()

    @property
    def images(self) -> list[str]:
        """All images at any depth, sorted."""
        return sorted(path for folder in self.walk() for path in folder.files)

    @property
    def has_images(self) -> bool:
        return any(folder.files for folder in self.walk())

    @property
    def all_passed(self) -> Counter[str]:
        """Skipped files at any depth."""
        return sum((folder.passed for folder in self.walk()), Counter())


@dataclass
class OwnFolder:
    """The interpretation of the folders below a user's folder.

    Attributes:
        base: contains the class or split folders: the user's folder, or the only folder in it.
        layout: "<class>", "<split>/<class>" or "<class>/<split>".
        parts: class folders of each split: "train", "val" and "test", or UNSPLIT.
        root: the user's folder.
        called: the folder's own name for each split.
        notes: on images and folders that are not used.
    """

    base: Folder
    layout: str
    parts: dict[str, Part]
    root: str = ""
    called: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """Sorted names of the class folders: those for training or, if there are none, for testing."""
        first = next(part for part in (UNSPLIT, "train", "test", "val") if part in self.parts)
        return sorted(self.parts[first])

    @property
    def passed(self) -> Counter[str]:
        """Skipped files below the class folders, by kind."""
        return sum((folder.all_passed for part in self.parts.values() for folder in part.values()), Counter())

    def named(self, *, in_any_split: bool = False) -> list[ClassFolder]:
        """The classes with their names, from a ``classnames.json`` in the user's folder or beside the class folders.

        Args:
            in_any_split: those of all splits, not of the training images alone.
        """
        files = [Path(place, "classnames.json") for place in (self.root, self.base.path)]
        classes = sorted(set().union(*self.parts.values())) if in_any_split else self.classes
        return name_folders(classes, next((file for file in files if file.is_file()), files[0]))

    def describe(self) -> str:
        """The interpretation in one line."""
        counts = []
        for part, folders in self.parts.items():
            count = count_images(sum(len(folder.images) for folder in folders.values()))
            counts.append(f"{count} for {part} from '{self.called[part]}'" if part else f"{count}, not split")
        return f"'{self.base.path}' is read as {self.layout}/<image>: {len(self.classes)} classes, {', '.join(counts)}"

    def remarks(self) -> list[str]:
        """Unused files and folders, one line each."""
        passed = self.passed
        skipped = [f"Skipped in '{self.base.path}': {describe_kinds(passed)}"] if passed else []
        return self.notes + skipped

    def groups(self, part: str, classes: Sequence[ClassFolder], *, allow_empty: bool = False) -> list[list[Datum]]:
        """The images of each class in one split, labelled in the order of ``classes``.

        Raises:
            UserError: a class has no images, or the split has a class that ``classes`` lacks.
        """
        folders, known = self.parts[part], [entry.folder for entry in classes]
        extra = sorted(set(folders) - set(known))
        if extra:
            likely = nearest(extra[0], known)
            here, train = (os.path.join(self.base.path, self.called[name]) for name in (part, "train"))
            raise UserError(
                f"'{here}' has classes that '{train}' lacks: {', '.join(extra[:3])}"
                + (f"; did you mean {likely}?" if likely else "")
            )
        groups = []
        for label, (name, classname, classid) in enumerate(classes):
            images = folders[name].images if name in folders else []
            if not images and not allow_empty:
                raise UserError(no_images(folders[name].path, folders[name].all_passed))
            groups.append([Datum(path, label, 0, classname, classid) for path in images])
        return groups


def read_own_folder(root: str) -> OwnFolder:
    """Detect the layout of the folders below ``root``.

    Raises:
        UserError: there are no class folders, or the folders mean two things at a time.
        OSError: a folder cannot be read.
    """
    base = _read(root, frozenset(), set())
    notes = []
    while not base.files and len(base.folders) == 1:
        (name,) = base.folders
        only = base.folders[name]
        if split_called(name) or not any(folder.has_images for folder in only.folders.values()):
            break
        base = only
    if base.files:
        notes.append(f"Not used: {count_images(len(base.files))} beside the class folders in '{base.path}'")
    if not base.folders:
        unused = describe_kinds(base.passed + Counter({"images": len(base.files)} if base.files else {}))
        raise UserError(
            f"'{base.path}' contains no class folders; images should be in {base.path}/<class>/"
            + (f" (it contains {unused})" if unused else "")
        )
    found = _splits_first(base) or _splits_last(base) or OwnFolder(base, "<class>", {UNSPLIT: base.folders})
    found.root, found.notes = root, notes + found.notes
    if found.layout == "<class>":
        found.notes += _domains(found.base)
    return found


def _read(path: str, above: frozenset[tuple[int, int]], linked: set[tuple[int, int]]) -> Folder:
    """The tree below a folder.

    Args:
        above: device and inode of the folders above, which a link must not lead back to.
        linked: those of the folders that links have led to: each is entered once.
    """
    if len(above) > MAX_DEPTH:
        raise UserError(f"'{path}' lies more than {MAX_DEPTH} folders deep")
    folder = Folder(path)
    with os.scandir(path) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    status = os.stat(path)
    above |= {(status.st_dev, status.st_ino)}
    for entry in entries:
        if is_usual_image(entry):
            folder.files.append(entry.path)
        elif is_folder(entry):
            if is_ignored(entry.name):
                continue
            if entry.is_symlink():
                status = entry.stat()
                identity = (status.st_dev, status.st_ino)
                if identity in above or identity in linked:
                    folder.passed["links to a folder that is read already"] += 1
                    continue
                linked.add(identity)
            folder.folders[entry.name] = _read(entry.path, above, linked)
        elif kind := kind_of(entry):
            folder.passed[kind] += 1
        else:
            folder.files.append(entry.path)
    return folder


def _domains(base: Folder) -> list[str]:
    """A note if the folders taken for classes look like domains: all contain the same folders, which may be classes."""
    inside = [{name for name, sub in folder.folders.items() if sub.has_images} for folder in base.folders.values()]
    if len(inside) < 2 or len(inside[0]) < 2 or any(names != inside[0] for names in inside):
        return []
    first = next(iter(base.folders.values()))
    named = ", ".join(sorted(inside[0])[:3])
    return [
        f"All class folders contain the same folders ({named} ...): if those are the classes, name one: {first.path}"
    ]


def _splits_first(base: Folder) -> OwnFolder | None:
    """Split folders that contain class folders; None if there are none."""
    filled = {name: folder for name, folder in base.folders.items() if folder.has_images}
    called = _splits_among(base, filled)
    others = sorted(set(filled) - set(called.values()))
    if not called or (len(called) == 1 and others):  # a class may be called train
        return None
    flat = [name for name in called.values() if not any(f.has_images for f in filled[name].folders.values())]
    if len(flat) == len(called) and (others or len(called) == 1):
        return None  # classes named like splits
    if flat:
        raise UserError(
            f"'{filled[flat[0]].path}' contains images but no class folders; images should be in "
            f"{filled[flat[0]].path}/<class>/"
        )
    notes = [f"Not used: the folder '{base.folders[name].path}', which is not a split" for name in others]
    for name in called.values():
        if filled[name].files:
            count = count_images(len(filled[name].files))
            notes.append(f"Not used: {count} beside the class folders in '{filled[name].path}'")
    if set(called) == {"train"}:  # to be split
        return OwnFolder(filled[called["train"]], "<class>", {UNSPLIT: filled[called["train"]].folders}, notes=notes)
    order: list[str] = [part for part in ("train", "val", "test") if part in called]
    parts = {part: filled[called[part]].folders for part in order}
    return OwnFolder(base, "<split>/<class>", parts, called={part: called[part] for part in order}, notes=notes)


def _splits_last(base: Folder) -> OwnFolder | None:
    """Class folders that contain split folders; None if there are none."""
    called: dict[str, str] = {}
    parts: dict[str, Part] = {"train": {}, "val": {}, "test": {}}
    whole = []  # classes that are not split
    for name, folder in base.folders.items():
        filled = {sub: inside for sub, inside in folder.folders.items() if inside.has_images}
        splits = _splits_among(folder, filled)
        if folder.has_images and (folder.files or len(splits) < len(filled)):
            whole.append(name)
        for part, sub in splits.items():
            called.setdefault(part, sub)
            parts[part][name] = filled[sub]
    if len(called) < 2 or not any(len(_splits_among(f, f.folders)) > 1 for f in base.folders.values()):
        return None
    if whole:
        raise UserError(
            f"class folders in '{base.path}' are split by folders called {' and '.join(sorted(called.values()))}, but "
            f"'{base.folders[whole[0]].path}' is not"
        )
    for part in called:  # a class may lack a split
        for name, folder in base.folders.items():
            parts[part].setdefault(name, Folder(os.path.join(folder.path, called[part])))
    return OwnFolder(base, "<class>/<split>", {part: parts[part] for part in parts if part in called}, called=called)


def _splits_among(parent: Folder, folders: dict[str, Folder]) -> dict[str, str]:
    """The folders named like splits, by split.

    Raises:
        UserError: two of them are the same split.
    """
    called: dict[str, str] = {}
    for name in folders:
        part = split_called(name)
        if part and called.setdefault(part, name) != name:
            raise UserError(f"'{parent.path}' has two folders for {part}: '{called[part]}' and '{name}'")
    return called
