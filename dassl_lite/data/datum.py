"""Datum: one image of a dataset, by its path and its class."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


class Datum:
    """An image file with its label. Immutable, so that splits and few-shot draws can share it.

    Args:
        impath: path of the image file.
        label: class label, counted from 0.
        domain: domain label, for domain adaptation and generalisation.
        classname: class name, as prompts use it.
        classid: identity of the class across datasets (for ImageNet and its variants the wnid), or "".
    """

    __slots__ = ("_classid", "_classname", "_domain", "_impath", "_label")

    def __init__(
        self,
        impath: str | os.PathLike[str] = "",
        label: int = 0,
        domain: int = 0,
        classname: str = "",
        classid: str = "",
    ) -> None:
        self._impath = os.fspath(impath)
        self._label = label
        self._domain = domain
        self._classname = classname
        self._classid = classid

    def __setstate__(self, state: Mapping[str, Any] | tuple[None, Mapping[str, Any]]) -> None:
        """Unpickle a Datum of ours, or one of Dassl's, which has no ``classid``."""
        fields = state[1] if isinstance(state, tuple) else state
        for name in self.__slots__:
            setattr(self, name, fields.get(name, ""))

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

    def relabelled(self, label: int) -> Datum:
        """The same image with another label; class name and id stay."""
        return Datum(self._impath, label, self._domain, self._classname, self._classid)

    def _fields(self) -> tuple[str, int, int, str, str]:
        return self._impath, self._label, self._domain, self._classname, self._classid

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Datum) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        identity = f", classid={self._classid!r}" if self._classid else ""
        return f"Datum({self._impath!r}, label={self._label}, classname={self._classname!r}{identity})"
