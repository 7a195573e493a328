"""The arrays of an ``.npz`` file, each checked when it is read; errors name the file and the array."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.lib.npyio import NpzFile

from dassl_lite.utils.errors import UserError, nearest
from dassl_lite.utils.files import PathLike

Array = np.ndarray[Any, Any]

_ROWS = 65536  # checked for NaN at a time
_BROKEN = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error)


@contextmanager
def open_arrays(path: PathLike) -> Iterator[Arrays]:
    """Open an ``.npz`` file; nothing in it is unpickled.

    Raises:
        UserError: there is no such file, or it has another format.
    """
    if not Path(path).is_file():
        raise UserError(f"feature file {path} does not exist")
    try:
        stored = np.load(path, allow_pickle=False)
    except _BROKEN as error:
        raise UserError(f"feature file {path} is not an .npz of arrays, or it is damaged ({error})") from None
    if not isinstance(stored, NpzFile):
        raise UserError(f"feature file {path} contains a single array; it must be an .npz with named arrays")
    with stored:
        yield Arrays(str(path), stored)


class Arrays:
    """The named arrays of a file. Every method raises a UserError for a missing or invalid array."""

    def __init__(self, path: str, stored: NpzFile) -> None:
        self.path = path
        self._stored = stored
        self._read_names: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._stored.files

    def refuse(self, name: str, problem: str) -> NoReturn:
        """Raise a UserError about the array ``name``."""
        raise UserError(f"feature file {self.path}: the array {name} {problem}")

    def unused(self) -> list[str]:
        """Names of the arrays that have not been read."""
        return sorted(set(self._stored.files) - self._read_names)

    def _read(self, name: str) -> Array:
        self._read_names.add(name)
        if name not in self:
            likely = nearest(name, self._stored.files)
            hint = f"did you mean '{likely}'?" if likely else f"it has {', '.join(self._stored.files) or 'no arrays'}"
            raise UserError(f"feature file {self.path} lacks the array {name}; {hint}")
        try:
            return self._stored[name]
        except _BROKEN as error:
            pickled = "contains Python objects, which are never loaded; save it as numbers or text"
            self.refuse(name, pickled if "allow_pickle" in str(error) else f"is damaged ({error})")

    def texts(self, name: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of texts; ``default`` if there is no such array."""
        if default is not None and name not in self:
            return default
        array = self._read(name)
        if array.ndim != 1 or array.dtype.kind != "U":
            self.refuse(name, f"must be a list of texts, not {_kind(array)}")
        return tuple(array.tolist())

    def text(self, name: str) -> str:
        """A single text; "" if there is no such array."""
        if name not in self:
            return ""
        array = self._read(name)
        if array.ndim != 0 or array.dtype.kind != "U":
            self.refuse(name, f"must be a single text, not {_kind(array)}")
        return str(array)

    def positive(self, name: str, default: float) -> float:
        """A single number above 0; ``default`` if there is no such array."""
        if name not in self:
            return default
        array = self._read(name)
        if array.ndim != 0 or array.dtype.kind not in "fiu":
            self.refuse(name, f"must be a single number, not {_kind(array)}")
        value = float(array)
        if not 0 < value < float("inf"):
            self.refuse(name, f"is {value}; it must be a number above 0")
        return value

    def features(self, name: str, form: str, *dims: int) -> Array:
        """Finite floating-point numbers.

        Args:
            form: the allowed shapes, for error messages.
            dims: the allowed numbers of dimensions.
        """
        array = self._read(name)
        if array.dtype.kind != "f" or array.ndim not in dims or 0 in array.shape:
            self.refuse(name, f"must be floating-point numbers of shape {form}, not {_kind(array)}")
        rows = array.reshape(-1, array.shape[-1])
        for start in range(0, len(rows), _ROWS):
            finite = np.isfinite(rows[start : start + _ROWS]).all(axis=1)
            if not finite.all():
                index = np.unravel_index(start + int(finite.argmin()), array.shape[:-1])
                self.refuse(name, f"contains NaN or infinity, first in row {', '.join(map(str, index))}")
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))

    def labels(self, name: str, count: int, classes: int, of: str) -> Array:
        """Class labels, whole numbers from 0 to K - 1, for each of the ``count`` rows of the array ``of``."""
        array = self._read(name)
        if array.dtype.kind not in "iu" or array.ndim != 1:
            self.refuse(name, f"must be whole numbers of shape (N,), not {_kind(array)}")
        if len(array) != count:
            self.refuse(name, f"has {len(array)} entries, but {of} has {count} rows")
        labels = array.astype(np.int64)
        if labels.min() < 0 or labels.max() >= classes:
            wrong = labels.min() if labels.min() < 0 else labels.max()
            self.refuse(name, f"contains the label {wrong}, but the {classes} classnames allow 0 to {classes - 1}")
        return labels


def _kind(array: Array) -> str:
    return f"{array.dtype} of shape {array.shape}"
