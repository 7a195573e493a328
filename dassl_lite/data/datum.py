"""Datum: one image of a dataset, by its path and its class, or its classes."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

ClassOf = tuple[int, str, str]  # label, class name, class id


class Datum:
    """An image file with its label. Immutable, so that splits and few-shot draws can share it.

    In a multi-label dataset an image has any number of classes: they are in ``classes`` and ``labels``, in label order,
    and ``label``, ``classname`` and ``classid`` are the first one's, or -1 and "" if there is none.

    Args:
        impath: path of the image file.
        label: class label, counted from 0.
        domain: domain label, for domain adaptation and generalisation.
        classname: class name, as prompts use it.
        classid: identity of the class across datasets (for ImageNet and its variants the wnid), or "".
        classes: label, name and id of each of the image's classes, in place of the three arguments of one class.
    """

    __slots__ = ("_classes", "_classid", "_classname", "_domain", "_impath", "_label")
    _classes: tuple[ClassOf, ...] | None  # None for a single class: most datasets have millions of these

    def __init__(
        self,
        impath: str | os.PathLike[str] = "",
        label: int = 0,
        domain: int = 0,
        classname: str = "",
        classid: str = "",
        *,
        classes: Iterable[ClassOf] | None = None,
    ) -> None:
        self._classes = None
        if classes is not None:
            several = tuple(sorted({one[0]: one for one in classes}.values()))
            label, classname, classid = several[0] if several else (-1, "", "")
            self._classes = None if len(several) == 1 else several
        self._impath = os.fspath(impath)
        self._label = label
        self._domain = domain
        self._classname = classname
        self._classid = classid

    def __setstate__(self, state: Mapping[str, Any] | tuple[None, Mapping[str, Any]]) -> None:
        """Unpickle a Datum of ours, or one of Dassl's, which has no ``classid``."""
        fields = state[1] if isinstance(state, tuple) else state
        for name in self.__slots__:
            setattr(self, name, fields.get(name, None if name == "_classes" else ""))

    @property
    def impath(self) -> str:
        return self._impath

    @property
    def label(self) -> int:
        return self._label

    @property
    def domain(self) -> int:
        return self._domain

    @property
    def classname(self) -> str:
        return self._classname

    @property
    def classid(self) -> str:
        return self._classid

    @property
    def classes(self) -> tuple[ClassOf, ...]:
        """Label, name and id of each of its classes, in label order."""
        return ((self._label, self._classname, self._classid),) if self._classes is None else self._classes

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels of its classes, in ascending order."""
        return (self._label,) if self._classes is None else tuple(label for label, _, _ in self._classes)

    @property
    def has_one_class(self) -> bool:
        """Whether it has exactly one class."""
        return self._classes is None

    def relabelled(self, label: int) -> Datum:
        """The same image of one class with another label; class name and id stay."""
        return Datum(self._impath, label, self._domain, self._classname, self._classid)

    def mapped(self, new_label: Mapping[int, int]) -> Datum:
        """The same image with new labels; it loses the classes whose labels are not in the mapping."""
        kept = [(new_label[label], name, classid) for label, name, classid in self.classes if label in new_label]
        return Datum(self._impath, domain=self._domain, classes=kept)

    def _fields(self) -> tuple[Any, ...]:
        return self._impath, self._label, self._domain, self._classname, self._classid, self._classes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Datum) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        if self._classes is not None:
            return f"Datum({self._impath!r}, classes={self._classes!r})"
        identity = f", classid={self._classid!r}" if self._classid else ""
        return f"Datum({self._impath!r}, label={self._label}, classname={self._classname!r}{identity})"


def classes_of(item: Any) -> tuple[ClassOf, ...]:
    """``Datum.classes``, also of another class in the place of ours, such as a fork's own Datum."""
    if isinstance(item, Datum):
        return item.classes
    return ((item.label, item.classname, getattr(item, "classid", "")),)


def labels_of(item: Any) -> tuple[int, ...]:
    """``Datum.labels``, likewise."""
    return item.labels if isinstance(item, Datum) else (item.label,)


def is_multi_label(items: Iterable[Any]) -> bool:
    """Whether an image has several classes, or none."""
    return not all(item.has_one_class for item in of_each_class(items) if isinstance(item, Datum))


class Rows(Sequence[Datum]):
    """The Datums of a table's rows, created on access: a list of ten million takes gigabytes, and creating 50,000
    takes longer than a short training run.

    It compares with lists and adds to them, but cannot be changed.

    Args:
        folder: the path of a row is below it: ``<folder>/<number>``.
        row_labels: (N,), of whole numbers.
        classnames, classids: of each label.
    """

    def __init__(self, folder: str, row_labels: Any, classnames: Sequence[str], classids: Sequence[str]) -> None:
        self.folder, self.row_labels = folder, row_labels
        self._names, self._ids, self._below = classnames, classids, os.path.join(folder, "")

    def __len__(self) -> int:
        return len(self.row_labels)

    @overload
    def __getitem__(self, index: int) -> Datum: ...

    @overload
    def __getitem__(self, index: slice) -> list[Datum]: ...

    def __getitem__(self, index: int | slice) -> Datum | list[Datum]:
        numbers = range(len(self))[index]
        return self._made(numbers) if isinstance(numbers, int) else [self._made(number) for number in numbers]

    def __iter__(self) -> Iterator[Datum]:
        return map(self._made, range(len(self)))

    def _made(self, number: int) -> Datum:
        label = int(self.row_labels[number])
        return Datum(f"{self._below}{number}", label, 0, self._names[label], self._ids[label])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list | Rows) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __add__(self, other: Iterable[Datum]) -> list[Datum]:
        return [*self, *other]

    def __radd__(self, other: Iterable[Datum]) -> list[Datum]:
        return [*other, *self]

    def first_of_each_label(self) -> list[Datum]:
        """The first row of each label, in order of rows."""
        _, first = np.unique(self.row_labels, return_index=True)
        return [self._made(int(number)) for number in np.sort(first)]


def of_each_class(items: Iterable[Any]) -> Iterable[Any]:
    """A subset of ``items``, in the same order, that covers all of their classes.

    For `Rows`, the first of each label; otherwise, only the first of consecutive items with the same class, which
    removes most of them if the dataset is listed by class.
    """
    return items.first_of_each_label() if isinstance(items, Rows) else _without_repeats(items)


def _without_repeats(items: Iterable[Any]) -> Iterator[Any]:
    label, name, classid = None, None, None
    for item in items:
        if type(item) is not Datum or item._classes is not None:
            label = None
        elif item._label == label and item._classname == name and item._classid == classid:
            continue
        else:
            label, name, classid = item._label, item._classname, item._classid
        yield item
