"""Checks a user's own data before a run: how it is interpreted, what it contains, and what is or may be wrong.

Every image is decoded. Nothing is written.
"""

from __future__ import annotations

import hashlib
import os
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from dassl_lite.data import grey
from dassl_lite.data.classes import describe_equal_names, equal_names, normalise_name
from dassl_lite.data.datum import Datum
from dassl_lite.data.feature_files.file import read_feature_file
from dassl_lite.data.images import UnreadableImageError, count_images, open_image
from dassl_lite.data.layouts import find_table, list_rows, read_own_folder, read_table, split_rows
from dassl_lite.data.splits import UNSPLIT, Split
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import PathLike, open_file

EXAMPLES = 3  # named for each kind of problem
LEAST_TO_SPLIT = 4  # images of a class, for one in each split
UNBALANCED = 10  # the largest class has this many times the images of the smallest
SMALL_SIDE, LONG, FAR = 32, 4, 16  # pixels; longer side / shorter side; area / median area, or its inverse


@dataclass(frozen=True)
class Seen:
    """What an image file holds.

    Attributes:
        kind: its format, such as "JPEG".
        size: (width, height) in pixels.
        digest: of its bytes.
        wide: whether it is grey with more than 8 bits.
        reason: why it cannot be read, or "".
    """

    kind: str = ""
    size: tuple[int, int] = (0, 0)
    digest: str = ""
    wide: bool = False
    reason: str = ""


@dataclass
class OwnReport:
    """What is known of a user's data.

    Attributes:
        path: of the data.
        taken: what it was taken for, in one line.
        classes: K names, as prompts use them.
        folders: K names of their folders, for the classes that prompts call otherwise.
        multi_label: whether an image may have several classes.
        images: number of images, by split: "train", "val", "test", or UNSPLIT.
        counts: images of each class, likewise.
        formats: number of images by format.
        sizes: the images' sizes in one line; "" for features.
        problems: one line for each kind of thing that stops a run.
        warnings: one line for each kind of thing that may spoil its result.
    """

    path: str
    taken: str = ""
    classes: list[str] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)
    multi_label: bool = False
    images: dict[str, int] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)
    formats: Counter[str] = field(default_factory=Counter)
    sizes: str = ""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def is_split(self) -> bool:
        return UNSPLIT not in self.counts

    @property
    def trainable(self) -> bool:
        """Whether there are images to train on."""
        return not self.is_split or "train" in self.counts


Groups = Mapping[str, Sequence[Sequence[Datum]]]  # images of each class, by split
Progress = Callable[[Iterable[Seen], int], Iterable[Seen]]  # passes the first on and shows that there are N of them


def check_own_data(path: PathLike, progress: Progress = lambda seen, _: seen) -> OwnReport:
    """Check a folder of images, a table of them, or a file of features.

    Args:
        path: of the data.
        progress: shows how many images have been seen.
    """
    place = Path(path).expanduser()
    report = OwnReport(str(path))
    try:
        if place.suffix == ".npz":
            _read_features(report, place)
            return report
        groups = _read_folder(report, place) if _is_folder(place) else _read_table(report, place)
    except OSError as error:
        report.problems.append(f"cannot be read: {error}")
        return report
    except UserError as error:
        report.problems.append(str(error))
        return report
    _check_names(report)
    _check_counts(report)
    _check_images(report, groups, place if place.is_dir() else place.parent, progress)
    return report


def _is_folder(place: Path) -> bool:
    return place.is_dir() or place.suffix.lower() not in (".csv", ".tsv")


# ---- what the data is ------------------------------------------------------------------------------------------------


def _read_features(report: OwnReport, place: Path) -> None:
    file = read_feature_file(place)
    report.taken = f"features of {file.backbone or 'an unnamed backbone'}, {file.width} dimensions"
    report.classes = list(file.classnames)
    for part, found in file.parts.items():
        report.images[part] = len(found.labels)
        report.multi_label |= found.labels.ndim == 2
        count = Counter((found.labels.nonzero()[1] if found.labels.ndim == 2 else found.labels).tolist())
        report.counts[part] = [count[label] for label in range(len(file.classnames))]
    report.taken += ", multi-label" if report.multi_label else ""
    _check_names(report)
    _check_counts(report)


def _read_folder(report: OwnReport, place: Path) -> Groups:
    if not place.is_dir():
        raise UserError(f"there is no folder '{place}'")
    folder = read_own_folder(str(place))
    classes = folder.named()
    inside = os.path.relpath(folder.base.path, place)
    shape = os.path.join("" if inside == "." else inside, folder.layout, "<image>")
    splits = ", ".join(f"{part} from '{name}'" for part, name in folder.called.items()) or "not split"
    report.taken = f"a folder of images, {shape}, {splits}"
    report.classes = [entry.name for entry in classes]
    report.folders = {entry.name: entry.folder for entry in classes if entry.name != entry.folder}
    groups: dict[str, list[list[Datum]]] = {}
    for part, folders in folder.parts.items():
        groups[part] = [
            [Datum(image, label, classname=entry.name) for image in folders[entry.folder].images]
            if entry.folder in folders
            else []
            for label, entry in enumerate(classes)
        ]
        try:
            folder.groups(part, classes, allow_empty=True)
        except UserError as error:  # a class that training lacks
            report.problems.append(str(error))
    report.warnings += folder.remarks()
    report.counts = {part: [len(group) for group in found] for part, found in groups.items()}
    report.images = {part: sum(counts) for part, counts in report.counts.items()}
    return groups


def _read_table(report: OwnReport, place: Path) -> Groups:
    table = find_table(place)
    rows = read_table(table)
    parts = split_rows(rows, list_rows(rows, table.parent))
    images = [item for items in parts.values() for item in items]
    names = {label: name for item in images for label, name, _ in item.classes}
    labels = sorted(names)
    if "train" in parts or UNSPLIT in parts:
        report.problems += [
            f"label {label} is missing: labels must run from 0 without gaps"
            for label in (next((n for n in range(len(labels)) if n not in names), None),)
            if label is not None
        ]
    report.taken = f"a table of {len(images):,} images" + (", not split" if UNSPLIT in parts else ", with splits")
    if rows[0].several:
        report.multi_label = True
        each = sum(len(item.labels) for item in images) / len(images)
        without = sum(not item.labels for item in images)
        report.taken += f", multi-label: {each:.1f} classes per image" + (f", {without:,} without" if without else "")
    report.classes = [names[label] for label in labels]
    groups = {
        part: [[item for item in parts[part] if label in item.labels] for label in labels]
        for part in (UNSPLIT, *Split._fields)
        if part in parts
    }
    report.counts = {part: [len(group) for group in found] for part, found in groups.items()}
    report.images = {part: len(parts[part]) for part in groups}
    return {part: [parts[part]] for part in groups}


# ---- names and counts ------------------------------------------------------------------------------------------------


def _check_names(report: OwnReport) -> None:
    if text := describe_equal_names(report.classes):
        report.warnings.append(text)
    if near := near_names(report.classes):
        listed = _examples([f"'{a}' and '{b}'" for a, b in near])
        report.warnings.append(f"class names that may mean the same: {listed}")
    numbers = [name for name in report.classes if name.isdecimal()]
    if numbers:
        report.warnings.append(
            f"{len(numbers)} classes are called by numbers ({_examples(numbers)}), which say nothing to CLIP: name "
            "them in a classnames.json"
        )


def near_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of class names that differ by spelling only: by a plural's s, or by one letter in five or more.

    Equal names, and names that differ by a number, are not among them.
    """
    same = {position for group in equal_names(names) for position in group[1:]}
    by_form: dict[str, list[str]] = defaultdict(list)
    for position, name in enumerate(names):
        if position in same:
            continue
        plain = normalise_name(name).replace(" ", "")
        stem = plain[:-1] if plain.endswith("s") else plain
        forms = {stem, *(stem[:i] + stem[i + 1 :] for i in range(len(stem)) if len(stem) > 5)}
        for form in forms:
            by_form[form].append(name)
    pairs = {
        (a, b): None
        for found in by_form.values()
        for i, a in enumerate(found)
        for b in found[i + 1 :]
        if a != b and re.sub(r"\D", "", a) == re.sub(r"\D", "", b)
    }
    return list(pairs)


def _check_counts(report: OwnReport) -> None:
    for part, counts in report.counts.items():
        empty = [name for name, count in zip(report.classes, counts, strict=True) if not count]
        if empty and part in (UNSPLIT, "train"):
            report.problems.append(f"classes without {part or 'any'} images: {len(empty)} ({_examples(empty)})")
        elif empty:
            report.warnings.append(f"classes without {part} images: {len(empty)} ({_examples(empty)})")
    if not report.is_split:
        counts = report.counts[UNSPLIT]
        small = [f"'{n}' {c}" for n, c in zip(report.classes, counts, strict=True) if 0 < c < LEAST_TO_SPLIT]
        if small and report.multi_label:
            report.warnings.append(f"classes with few images, so that val or test may have none: {_examples(small)}")
        elif small:
            report.problems.append(
                f"classes with too few images for train, val and test, which needs {LEAST_TO_SPLIT}: {_examples(small)}"
            )
    if report.is_split and "train" not in report.counts:
        report.warnings.append("there are only test images: a run can be evaluated on them, not trained")
    part = next((part for part in (UNSPLIT, "train") if part in report.counts), "")
    filled = [(c, n) for n, c in zip(report.classes, report.counts.get(part, []), strict=False) if c]
    if filled and max(filled)[0] >= UNBALANCED * min(filled)[0]:
        (least, smallest), (most, largest) = min(filled), max(filled)
        report.warnings.append(
            f"unbalanced: '{largest}' has {count_images(most)}, '{smallest}' {least:,}; with --shots N every class "
            f"gives {'at least that' if report.multi_label else 'the same'} number"
        )


# ---- images ----------------------------------------------------------------------------------------------------------


def _check_images(report: OwnReport, groups: Groups, root: Path, progress: Progress) -> None:
    items = [(part, item) for part, found in groups.items() for group in found for item in group]
    with ThreadPoolExecutor() as pool:
        seen = list(progress(pool.map(lambda entry: see(entry[1].impath), items), len(items)))
    readable = [(part, item, one) for (part, item), one in zip(items, seen, strict=True) if not one.reason]
    report.formats = Counter(one.kind for _, _, one in readable)

    def relative(item: Datum) -> str:
        return os.path.relpath(item.impath, root)

    reasons = defaultdict(list)
    for (_, item), one in zip(items, seen, strict=True):
        if one.reason:
            reasons[one.reason].append(relative(item))
    for reason, paths in sorted(reasons.items(), key=lambda entry: -len(entry[1])):
        report.problems.append(f"unreadable ({reason}): {count_images(len(paths))} ({_examples(paths)})")
    for text in _copies([(part, item.labels, relative(item), one.digest) for part, item, one in readable]):
        report.warnings.append(text)
    wide = [relative(item) for _, item, one in readable if one.wide]
    if wide:
        report.warnings.append(
            f"{count_images(len(wide))} with more than 8 bits, scaled to 8 by the range of each ({_examples(wide)})"
        )
    report.sizes = _describe_sizes([one.size for _, _, one in readable])
    report.warnings += _unusual_sizes([(relative(item), one.size) for _, item, one in readable])


def see(path: str) -> Seen:
    """Decode an image file and say what it holds."""
    try:
        with open_image(path) as image:
            kind, size, wide = image.format or "", image.size, grey.is_wide(image)
            image.draft("RGB", (size[0] // 8, size[1] // 8))  # a JPEG is decoded whole, but to fewer pixels
            image.load()
        with open_file(path) as file:
            digest = hashlib.sha256(file.read()).hexdigest()
    except UnreadableImageError as error:
        return Seen(reason=error.reason)
    except OSError as error:
        return Seen(reason=error.strerror or str(error))
    return Seen(kind, size, digest, wide)


def _copies(found: Iterable[tuple[str, tuple[int, ...], str, str]]) -> Iterator[str]:
    """Lines on files with the same content.

    Args:
        found: split, labels, path and digest of each image.
    """
    by_digest = defaultdict(list)
    for part, label, path, digest in found:
        by_digest[digest].append((part, label, path))
    copies = [same for same in by_digest.values() if len(same) > 1]
    across = [same for same in copies if len({part for part, _, _ in same}) > 1]
    classes = [same for same in copies if len({label for _, label, _ in same}) > 1]
    within = [same for same in copies if len({(part, label) for part, label, _ in same}) == 1]
    if across:
        yield f"the same image in two splits, so that tests see what was trained on: {_pairs(across, by=0)}"
    if classes:
        yield f"the same image in two classes: {_pairs(classes, by=1)}"
    if within:
        both = "" if within[0][0][0] != UNSPLIT else ", so that a split may put it on both sides"
        yield f"the same image twice in a class{both}: {_pairs(within, by=2)}"


def _pairs(groups: Sequence[Sequence[tuple[str, tuple[int, ...], str]]], by: int) -> str:
    """The number of groups, and of the first ones two paths that differ in split (0), labels (1) or path (2)."""
    listed = []
    for same in groups:
        other = next(one for one in same if one[by] != same[0][by])
        listed.append(f"{same[0][2]} = {other[2]}")
    return f"{len(groups):,} ({_examples(listed)})"


def _describe_sizes(sizes: Sequence[tuple[int, int]]) -> str:
    if not sizes:
        return ""
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    named = [f"{width} x {height}" for width, height in (ordered[0], ordered[len(ordered) // 2], ordered[-1])]
    return named[0] if len(set(sizes)) == 1 else f"{named[0]} to {named[2]} pixels, typically {named[1]}"


def _unusual_sizes(found: Sequence[tuple[str, tuple[int, int]]]) -> Iterator[str]:
    """Lines on images that are much smaller, longer or larger than the others."""
    if not found:
        return
    typical = statistics.median(width * height for _, (width, height) in found)
    kinds: dict[str, Callable[[int, int], bool]] = {
        f"less than {SMALL_SIDE} pixels high or wide": lambda w, h: min(w, h) < SMALL_SIDE,
        f"more than {LONG} times as long as wide, and mostly cropped": lambda w, h: max(w, h) > LONG * min(w, h),
        f"more than {FAR} times as large as typical": lambda w, h: w * h > FAR * typical,
        f"less than a {FAR}th of the typical size": lambda w, h: w * h * FAR < typical and min(w, h) >= SMALL_SIDE,
    }
    for text, holds in kinds.items():
        named = [f"{path} {width} x {height}" for path, (width, height) in found if holds(width, height)]
        if named:
            yield f"{count_images(len(named))} {text} ({_examples(named)})"


def _examples(texts: Sequence[str]) -> str:
    return ", ".join(texts[:EXAMPLES]) + (", ..." if len(texts) > EXAMPLES else "")
