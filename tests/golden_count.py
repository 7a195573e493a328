"""Counts the reference's arrays that passing tests compare with what this package computes: ``pytest --golden-report``.

An array counts when a test that passes subtracts it from a result, or asks whether the two are equal or close. Reading
an array is not enough. What is compared is noted where NumPy does it, so no test has to say so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tabulate import tabulate

PROPERTY = "reference arrays"
COMPARING_UFUNCS = (np.subtract, np.equal, np.not_equal)
COMPARING_FUNCTIONS = (np.array_equal, np.allclose, np.isclose)
# Of tests/golden2: inputs of a case, weights that started at random, rows that were drawn.
INPUTS2 = r"\.in\.|\.init\.(prototypes|mlp|head\.0)|random\.init\.|_idx$|\.bias0$"
INPUTS = re.compile(rf"_labels$|^eval\..*\.logits$|^train_order$|{INPUTS2}")
_compared: set[str] = set()  # "file:array", by the test that runs


class ReferenceArray(np.ndarray):
    """An array that knows its place in the reference's files; views keep the place, results are plain arrays."""

    place = ""

    def __array_finalize__(self, source: Any) -> None:
        self.place = getattr(source, "place", "")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if ufunc in COMPARING_UFUNCS and method == "__call__":
            note(inputs)
        return getattr(ufunc, method)(*map(plain, inputs), **kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function in COMPARING_FUNCTIONS:
            note(args)
        return function(*map(plain, args), **kwargs)


class ReferenceArrays:
    """An ``.npz`` of the reference, with the parts of NumPy's own reader that tests use."""

    def __init__(self, path: Path) -> None:
        self._name, self._arrays = path.stem, np.load(path, allow_pickle=False)
        self.files: list[str] = self._arrays.files

    def __contains__(self, key: str) -> bool:
        return key in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __getitem__(self, key: str) -> ReferenceArray:
        array = self._arrays[key].view(ReferenceArray)
        array.place = f"{self._name}:{key}"
        return array


def plain(value: Any) -> Any:
    if isinstance(value, ReferenceArray):
        return value.view(np.ndarray)
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value


def note(values: Any) -> None:
    _compared.update(value.place for value in values if isinstance(value, ReferenceArray))


def note_property(item: pytest.Item) -> None:
    """Hand what ``item`` compared to its report, which reaches the process that prints the summary."""
    item.user_properties.append((PROPERTY, sorted(_compared)))
    _compared.clear()


def kind_of(name: str) -> str:
    """What the array is there for; see the README.md beside it."""
    if any(part.startswith("quirk") for part in name.split(".")):
        return "known defects"  # of the reference, which are not copied
    return "inputs" if INPUTS.search(name) else "to match"


def summary(folders: Iterable[Path], stats: dict[str, list[Any]]) -> str:
    """A table of the files with their arrays by kind and those that agree; then the names of those that should."""

    def places(outcome: str) -> set[str]:
        reports = stats.get(outcome, [])
        return {p for report in reports for name, found in report.user_properties if name == PROPERTY for p in found}

    agree, rows, lacking = places("passed") - places("failed"), [], []
    for path in (path for folder in folders for path in sorted(folder.glob("*.npz"))):
        names = np.load(path, allow_pickle=False).files
        kinds = Counter(map(kind_of, names))
        match = [f"{path.stem}:{name}" for name in names if kind_of(name) == "to match"]
        lacking += [place for place in match if place not in agree]
        counts = [kinds["inputs"], kinds["known defects"], len(match), len(agree.intersection(match))]
        rows.append([path.stem, len(names), *counts])
    rows.append(["total", *(sum(row[column] for row in rows) for column in range(1, 6))])
    table = tabulate(rows, headers=["file", "arrays", "inputs", "known defects", "to match", "agree"])
    return f"{table}\n\nNot compared by a passing test, or not equal: {', '.join(lacking) or 'none'}"
