"""Whether a dataset on disk is whole: every image that its split names, looked at from outside.

Folders are listed once and files asked for their size and permissions; nothing is decoded, and nothing written.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dassl_lite.data.dataset import DATASET_REGISTRY
from dassl_lite.data.datum import Datum
from dassl_lite.data.folder import FolderDataset, SidecarFiles
from dassl_lite.data.splits import Split
from dassl_lite.downloads.sources import SOURCES, Source
from dassl_lite.utils.errors import UserError

MISSING = "missing"
SHOWN = 3  # examples of each kind of trouble
COLUMNS = ("dataset", "split", "expected", "found", "missing", "unreadable", "classes", "split file")


@dataclass
class PartReport:
    """Images of one split; None where the lists could not be had, so that nobody knows.

    Args:
        expected: how many there should be.
        found: of those that the split names, how many are there and can be opened.
        missing: how many are not there.
        unreadable: how many are there, but empty or closed to us.
    """

    expected: int
    found: int | None = None
    missing: int | None = None
    unreadable: int | None = None


@dataclass
class Report:
    """What the doctor says of a dataset; in order if there are no ``problems``."""

    dataset: str
    split_file: str = "-"
    classes: str = ""
    parts: dict[str, PartReport] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what is as it should be, but worth saying

    def rows(self) -> list[list[str | int | None]]:
        """Rows under ``COLUMNS``, one for each split."""
        rows: list[list[str | int | None]] = [
            ["", name, part.expected, part.found, part.missing, part.unreadable, "", ""]
            for name, part in self.parts.items()
        ]
        rows = rows or [["", "", "", "", "", "", "", ""]]
        rows[0][0], rows[0][-2:] = self.dataset, [self.classes, self.split_file]
        return rows


def examine(name: str, cfg: Any, sources: Mapping[str, Source] = SOURCES) -> Report:
    """Look at the dataset with this registered name, under ``cfg.DATASET.ROOT``.

    Args:
        sources: what is known of the field's datasets: how many images and classes there should be.

    Raises:
        UserError: there is no such dataset, or it cannot be looked for. What is wrong on disk is in the report.
    """
    dataset_class = DATASET_REGISTRY.get(name)
    source = sources.get(name)
    report = Report(name)
    if not issubclass(dataset_class, FolderDataset):
        return _judge(report, _lists_of(dataset_class, cfg, report), source)
    dataset = dataset_class.__new__(dataset_class)  # looked at, not built: building would draw, split, complain
    dataset.locate(cfg)
    dataset.sidecar = _ReadOnlySidecarFiles(name, dataset.dataset_dir)
    if not os.path.isdir(dataset.image_dir) and makes_itself(name, sources):
        report.notes.append("not there yet; it is made on first use")
        return report
    if not os.path.isdir(dataset.image_dir):
        report.problems.append(f"there is no folder '{dataset.image_dir}'")
        expected = zip(Split._fields, source.images if source else (), strict=False)
        report.parts = {part: PartReport(count, 0, count, 0) for part, count in expected if count is not None}
        return report
    report.split_file = _find_split_file(dataset, source, report)
    split = _told(dataset.load, report)
    if split and dataset.test_only:
        split = Split([], [], split.test)
    elif split and dataset.val_is_test:
        split = Split(split.train, [], split.test)
    return _judge(report, split, source)


def makes_itself(name: str, sources: Mapping[str, Source] = SOURCES) -> bool:
    """Whether the dataset with this registered name is one that draws (or fetches) itself when it is first used."""
    dataset_class = DATASET_REGISTRY.get(name)
    own = issubclass(dataset_class, FolderDataset) and dataset_class.prepare is not FolderDataset.prepare
    return own and name not in sources


def find_troubles(paths: Iterable[str]) -> dict[str, str]:
    """Those of ``paths`` that cannot be read, each with the reason: "missing", "empty", "no permission" ..."""
    names_in: dict[str, list[str]] = {}
    for path in dict.fromkeys(paths):
        folder, name = os.path.split(path)
        names_in.setdefault(folder, []).append(name)
    troubles: dict[str, str] = {}
    for folder, names in names_in.items():
        try:
            with os.scandir(folder) as entries:
                there = {entry.name: entry for entry in entries}
        except OSError as error:
            reason = "no permission" if isinstance(error, PermissionError) else MISSING
            troubles |= {os.path.join(folder, name): reason for name in names}
            continue
        for name in names:
            reason = _trouble_with(there[name]) if name in there else MISSING
            if reason:
                troubles[os.path.join(folder, name)] = reason
    return troubles


def _trouble_with(entry: os.DirEntry[str]) -> str:
    """Why a file that is there cannot be read; "" if it can, as far as one sees without opening it."""
    try:
        status = entry.stat()
    except OSError:  # a link to nowhere
        return MISSING
    if not stat.S_ISREG(status.st_mode):
        return "not a file"
    if status.st_size == 0:
        return "empty"
    return "" if os.access(entry.path, os.R_OK) else "no permission"


def _judge(report: Report, split: Split | None, source: Source | None) -> Report:
    """Compare the lists with the disk and with what is known."""
    known = dict(zip(Split._fields, source.images if source else (None, None, None), strict=True))
    items_of = split._asdict() if split else dict.fromkeys(Split._fields, ())
    troubles = find_troubles(item.impath for items in items_of.values() for item in items)
    for name, items in items_of.items():
        expected = known[name]
        if not items and expected is None:
            continue
        part = report.parts[name] = PartReport(len(items) if expected is None else expected)
        if split is None:
            continue
        reasons = Counter(troubles[item.impath] for item in items if item.impath in troubles)
        part.missing = reasons[MISSING]
        part.unreadable = sum(reasons.values()) - part.missing
        part.found = len(items) - part.missing - part.unreadable
        if len(items) != part.expected:
            report.problems.append(f"{name} has {len(items):,} images, but should have {part.expected:,}")
    for reason in dict.fromkeys(troubles.values()):
        report.problems.append(f"{reason}: {_some([path for path, why in troubles.items() if why == reason])}")
    if split:
        _judge_classes(report, [item for items in items_of.values() for item in items], troubles, source)
    return report


def _judge_classes(report: Report, items: list[Datum], troubles: Mapping[str, str], source: Source | None) -> None:
    names = {item.label: item.classname for item in items}
    seen = {item.label for item in items if item.impath not in troubles}
    expected = source.classes if source else len(names)
    report.classes = f"{len(seen)} of {expected}"
    lost = [name for label, name in sorted(names.items()) if label not in seen]
    if lost:
        report.problems.append(f"classes without an image: {_some(lost)}")
    if len(names) != expected:
        report.problems.append(f"there are {len(names)} classes, but should be {expected}")


def _some(texts: list[str]) -> str:
    """How many, and the first few."""
    return f"{len(texts):,} ({', '.join(repr(text) for text in texts[:SHOWN])}{', ...' if len(texts) > SHOWN else ''})"


def _find_split_file(dataset: FolderDataset, source: Source | None, report: Report) -> str:
    """Where the split file is, in a word or two."""
    if not dataset.split_file:
        return "-"
    kept = dataset.sidecar.find(dataset.split_file)
    if kept is not None:
        return "present" if kept.parent == Path(dataset.dataset_dir) else "in the cache"
    if source and any(file.name == dataset.split_file for file in source.files):
        report.problems.append(f"no split file '{os.path.join(dataset.dataset_dir, dataset.split_file)}'")
        return "missing"
    return "none yet"  # one's own images: it is made by the first run


def _lists_of(dataset_class: Callable[[Any], Any], cfg: Any, report: Report) -> Split | None:
    """The lists of a dataset that is not in the field's layout: it has to be built."""
    dataset = _told(lambda: dataset_class(cfg), report)
    return dataset and Split(dataset.train_x or [], dataset.val or [], dataset.test or [])


def _told(call: Callable[[], Any], report: Report) -> Any:
    """What ``call`` returns; None if it raises, and then the report says why."""
    try:
        return call()
    except (UserError, OSError) as error:
        report.problems.append(str(error))
        return None


class _ReadOnlySidecarFiles(SidecarFiles):
    """Finds what is kept, and keeps nothing."""

    def write(self, name: str, writer: Callable[[Path], None]) -> Path | None:
        return None
