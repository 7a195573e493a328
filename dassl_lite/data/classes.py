"""Class identity: which class of one dataset is which class of another.

A label is a position and means nothing outside its dataset. Across datasets a class is identified by its id where it
has one (ImageNet's wnid), else by its name.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class ClassList:
    """Classes of a dataset in label order.

    Attributes:
        names: K class names, as given.
        ids: K class ids, "" for a class without one.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "ids", tuple(self.ids) or ("",) * len(self.names))
        if len(self.ids) != len(self.names):
            raise ValueError(f"{len(self.names)} class names, but {len(self.ids)} class ids")

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class ClassMatch:
    """The class of a source dataset that corresponds to each class of a target dataset.

    Attributes:
        rows: the source row for each target class, -1 if the source lacks the class.
        by_id: number of classes matched by id.
        by_name: number of classes matched by normalised name.
    """

    rows: tuple[int, ...]
    by_id: int
    by_name: int

    @property
    def matched(self) -> int:
        return self.by_id + self.by_name

    def describe(self) -> str:
        """One line for the log: ``matched 200 of 200 classes (by id)``."""
        ways = [(self.by_id, "by id"), (self.by_name, "by name")]
        used = [(count, way) for count, way in ways if count]
        how = ", ".join(way if len(used) == 1 else f"{count} {way}" for count, way in used)
        return f"matched {self.matched} of {len(self.rows)} classes" + (f" ({how})" if how else "")


def normalise_name(name: str) -> str:
    """A class name without the usual spelling differences: case, character width, ``_``, ``-``, ``/`` and spaces.

    Other characters are kept: ``c`` and ``c++`` are two classes.
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    return " ".join(re.sub(r"[\s_\-/]+", " ", folded).split())


def equal_names(names: Sequence[str]) -> list[list[int]]:
    """Positions of classes that no prompt can distinguish: CLIP's tokenizer ignores case, and ``_`` is a space."""
    positions: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        positions.setdefault(" ".join(name.replace("_", " ").lower().split()), []).append(position)
    return [same for same in positions.values() if len(same) > 1]


def describe_equal_names(names: Sequence[str]) -> str:
    """A message about classes with the same name; "" if there are none."""
    groups = [f"'{names[same[0]]}' (labels {', '.join(map(str, same))})" for same in equal_names(names)]
    if not groups:
        return ""
    more = f" and {len(groups) - 3} more" if len(groups) > 3 else ""
    return (
        f"classes have the same name: {', '.join(groups[:3])}{more}; text alone cannot distinguish them, so "
        "zero-shot CLIP only predicts the first of them"
    )


def warn_of_equal_names(names: Sequence[str]) -> None:
    """Warn of classes with the same name."""
    if text := describe_equal_names(names):
        logger.warning(f"Some {text}")


def match_classes(source: ClassList, target: ClassList) -> ClassMatch:
    """Find each target class among the source classes.

    Ids match first. A name matches only if it is unique both in the source and in the target (ImageNet has ``missile``
    twice), and never two classes with different ids.
    """
    row_of_id = _unique_positions(source.ids)
    row_of_name = _unique_positions(map(normalise_name, source.names))
    target_names = [normalise_name(name) for name in target.names]
    only_once = _unique_positions(target_names)
    rows = [row_of_id.get(identity, -1) for identity in target.ids]
    taken = {row for row in rows if row >= 0}
    by_id = sum(row >= 0 for row in rows)
    for i, (identity, name) in enumerate(zip(target.ids, target_names, strict=True)):
        row = row_of_name.get(name, -1) if rows[i] < 0 and name in only_once else -1
        if row < 0 or row in taken or (identity and source.ids[row]):  # the ids differ, or they would have matched
            continue
        rows[i] = row
    return ClassMatch(tuple(rows), by_id, sum(row >= 0 for row in rows) - by_id)


def _unique_positions(values: Iterable[str]) -> dict[str, int]:
    """Position of each value that occurs exactly once, the empty string excepted."""
    listed = list(values)
    count = Counter(listed)
    return {value: i for i, value in enumerate(listed) if value and count[value] == 1}
