"""The doctor checks whether a dataset on disk is complete, and whether all of its files can be read.

It lists each folder once and looks at the size and permissions of the files. It decodes no image and writes nothing.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from yacs.config import CfgNode

from dassl_lite.data.dataset import DATASET_REGISTRY, DatasetBase
from dassl_lite.data.datum import Datum, classes_of, labels_of
from dassl_lite.data.folder import FolderDataset, SidecarFiles
from dassl_lite.data.images import count_images
from dassl_lite.data.sharded.members import exists, split_path
from dassl_lite.data.splits import Split
from dassl_lite.downloads.sources import SOURCES, Source
from dassl_lite.utils.errors import UserError

T = TypeVar("T")

COLUMNS = ("dataset", "split", "expected", "found", "missing", "unreadable", "classes", "split file")
MISSING = "missing"
EXAMPLES = 3  # files named for each kind of problem


@dataclass
class PartReport:
    """Numbers of images of one split; all but the first are None if the split could not be read.

    Attributes:
        expected: how many the split should have.
        found: images of the split that exist and can be opened.
        missing: images of the split that do not exist.
        unreadable: images of the split that exist but are empty or not readable.
    """

    expected: int
    found: int | None = None
    missing: int | None = None
    unreadable: int | None = None


@dataclass
class Report:
    """The result of checking a dataset, which is complete if there are no ``problems``.

    Attributes:
        dataset: registered name.
        split_file: whether the split file exists, for the table.
        classes: number of classes with images, for the table.
        parts: the counts of each split.
        problems: one line for each kind of problem.
        notes: remarks that are not problems.
    """

    dataset: str
    split_file: str = "-"
    classes: str = ""
    parts: dict[str, PartReport] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[list[str | int | None]]:
        """Rows of a table with ``COLUMNS``, one for each split."""
        rows: list[list[str | int | None]] = [
            ["", name, part.expected, part.found, part.missing, part.unreadable, "", ""]
            for name, part in self.parts.items()
        ]
        rows = rows or [["", "", "", "", "", "", "", ""]]
        rows[0][0], rows[0][-2:] = self.dataset, [self.classes, self.split_file]
        return rows


def examine(name: str, cfg: CfgNode, sources: Mapping[str, Source] = SOURCES) -> Report:
    """Check the dataset with this registered name under ``cfg.DATASET.ROOT``.

    Args:
        sources: the numbers of images and classes of known datasets.

    Returns:
        The report, with everything that is wrong on disk.

    Raises:
        UserError: the dataset is unknown, or the config does not say where it is.
    """
    dataset_class = DATASET_REGISTRY.get(name)
    source = sources.get(name)
    report = Report(name)
    if not issubclass(dataset_class, FolderDataset):
        return _check(report, _build_and_list(dataset_class, cfg, report), source)
    dataset = dataset_class.__new__(dataset_class)  # not built: that would generate, split, draw and raise
    dataset.locate(cfg)
    dataset.sidecar = _ReadOnlySidecarFiles(name, dataset.dataset_dir)
    if dataset.checks_itself:
        _call(dataset.prepare, report)
        if report.problems:
            return report
    if not os.path.isdir(dataset.image_dir) and generates_itself(name, sources):
        report.notes.append("does not exist yet; it is generated on first use")
        return report
    if not os.path.isdir(dataset.image_dir):
        report.problems.append(f"there is no folder '{dataset.image_dir}'")
        expected = zip(Split._fields, source.images if source else (), strict=False)
        report.parts = {part: PartReport(count, 0, count, 0) for part, count in expected if count is not None}
        return report
    report.split_file = _find_split_file(dataset, source, report)
    split = _call(dataset.load, report)
    if split and dataset.test_only:
        split = Split([], [], split.test)
    elif split and dataset.val_is_test:
        split = Split(split.train, [], split.test)
    return _check(report, split, source)


def generates_itself(name: str, sources: Mapping[str, Source] = SOURCES) -> bool:
    """Whether the dataset with this registered name generates (or downloads) itself on first use."""
    dataset_class = DATASET_REGISTRY.get(name)
    prepares = issubclass(dataset_class, FolderDataset) and dataset_class.prepare is not FolderDataset.prepare
    return prepares and name not in sources


def find_unreadable(paths: Iterable[str]) -> dict[str, str]:
    """The files among ``paths`` that cannot be read, with the reason: "missing", "empty", "no permission", ..."""
    names_in: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for path in dict.fromkeys(paths):
        if split_path(path):
            if not exists(path):
                reasons[path] = MISSING
            continue
        folder, name = os.path.split(path)
        names_in.setdefault(folder, []).append(name)
    for folder, names in names_in.items():
        try:
            with os.scandir(folder) as entries:
                found = {entry.name: entry for entry in entries}
        except OSError as error:
            reason = "no permission" if isinstance(error, PermissionError) else MISSING
            reasons |= {os.path.join(folder, name): reason for name in names}
            continue
        for name in names:
            reason = _why_unreadable(found[name]) if name in found else MISSING
            if reason:
                reasons[os.path.join(folder, name)] = reason
    return reasons


def _why_unreadable(entry: os.DirEntry[str]) -> str:
    """Why an existing file cannot be read, judged without opening it; "" if it can."""
    try:
        status = entry.stat()
    except OSError:  # a dangling link
        return MISSING
    if not stat.S_ISREG(status.st_mode):
        return "not a file"
    if status.st_size == 0:
        return "empty"
    return "" if os.access(entry.path, os.R_OK) else "no permission"


def _check(report: Report, split: Split | None, source: Source | None) -> Report:
    """Compare the split with the files on disk and with the known numbers."""
    known = dict(zip(Split._fields, source.images if source else (None, None, None), strict=True))
    items_of: dict[str, list[Datum]] = split._asdict() if split else {name: [] for name in Split._fields}
    unreadable = find_unreadable(item.impath for items in items_of.values() for item in items)
    for name, items in items_of.items():
        expected = known[name]
        if not items and expected is None:
            continue
        part = report.parts[name] = PartReport(len(items) if expected is None else expected)
        if split is None:
            continue
        reasons = Counter(unreadable[item.impath] for item in items if item.impath in unreadable)
        part.missing = reasons[MISSING]
        part.unreadable = sum(reasons.values()) - part.missing
        part.found = len(items) - part.missing - part.unreadable
        if len(items) != part.expected:
            report.problems.append(f"{name} has {count_images(len(items))}, but should have {part.expected:,}")
    for reason in dict.fromkeys(unreadable.values()):
        paths = [path for path, why in unreadable.items() if why == reason]
        report.problems.append(f"{reason}: {_count_with_examples(paths)}")
    if split:
        _check_classes(report, [item for items in items_of.values() for item in items], unreadable, source)
    return report


def _check_classes(report: Report, items: list[Datum], unreadable: Mapping[str, str], source: Source | None) -> None:
    names = {label: name for item in items for label, name, _ in classes_of(item)}
    seen = {label for item in items if item.impath not in unreadable for label in labels_of(item)}
    expected = source.classes if source else len(names)
    report.classes = f"{len(seen)} of {expected}"
    empty = [name for label, name in sorted(names.items()) if label not in seen]
    if empty:
        report.problems.append(f"classes without images: {_count_with_examples(empty)}")
    if len(names) != expected:
        report.problems.append(f"{expected} classes expected, found {len(names)}")


def _count_with_examples(texts: list[str]) -> str:
    """The number of texts and the first few: ``12 ('a', 'b', 'c', ...)``."""
    examples = ", ".join(repr(text) for text in texts[:EXAMPLES])
    return f"{len(texts):,} ({examples}{', ...' if len(texts) > EXAMPLES else ''})"


def _find_split_file(dataset: FolderDataset, source: Source | None, report: Report) -> str:
    """Where the split file is, for the table."""
    if not dataset.split_file:
        return "-"
    kept = dataset.sidecar.find(dataset.split_file)
    if kept is not None:
        return "present" if kept.parent == Path(dataset.dataset_dir) else "in the cache"
    if source and any(file.name == dataset.split_file for file in source.files):
        report.problems.append(f"no split file '{os.path.join(dataset.dataset_dir, dataset.split_file)}'")
        return "missing"
    return "none yet"  # the first run creates it


def _build_and_list(dataset_class: Callable[[CfgNode], DatasetBase], cfg: CfgNode, report: Report) -> Split | None:
    """The lists of a dataset that is not a FolderDataset and has to be built."""
    dataset = _call(lambda: dataset_class(cfg), report)
    return None if dataset is None else Split(dataset.train_x, dataset.val or [], dataset.test or [])


def _call(function: Callable[[], T], report: Report) -> T | None:
    """The result of ``function``; None if it raises a user's or a system error, which is added to the report."""
    try:
        return function()
    except (UserError, OSError) as error:
        report.problems.append(str(error))
        return None


class _ReadOnlySidecarFiles(SidecarFiles):
    """Finds saved files but never saves any."""

    def write(self, name: str, writer: Callable[[Path], None]) -> Path | None:
        return None
