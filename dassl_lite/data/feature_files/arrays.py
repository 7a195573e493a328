"""The arrays of an ``.npz`` file, each checked when it is read; errors name the file and the array."""

from __future__ import annotations

import contextlib
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from dassl_lite.data.splits import check_name
from dassl_lite.utils.env import world_size
from dassl_lite.utils.errors import MISFITS, UserError, nearest
from dassl_lite.utils.files import PathLike, open_file

Array = np.ndarray[Any, Any]

_ROWS = 65536  # rows checked for NaN at a time
_CHUNK = 1 << 20  # bytes checksummed at a time
_LENGTHS = 26  # where a member's local header has the lengths of what follows it
_GROWTH, _ALLOWANCE = 64, 256 << 20  # bytes that a file may unpack to: per byte of it, and in any case
_KINDS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # compressions that numpy writes
_ENCRYPTED = 0x1
BROKEN = (tokenize.TokenError, OSError, EOFError, SyntaxError, zipfile.BadZipFile, zlib.error, struct.error, *MISFITS)


@contextmanager
def open_arrays(path: PathLike) -> Iterator[Arrays]:
    """Open an ``.npz`` file; nothing in it is unpickled, and no memory is taken for what it only claims to hold.

    Raises:
        UserError: there is no such file, or it has another format.
    """
    if os.path.isdir(path):
        from dassl_lite.data.feature_files.folder import open_folder

        with open_folder(path) as arrays:
            yield arrays
        return
    if not Path(path).exists():
        raise UserError(f"feature file {path} does not exist")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open_file(path))
            if file.read(6) == b"\x93NUMPY":
                raise UserError(f"feature file {path} contains a single array; it must be an .npz with named arrays")
            archive = stack.enter_context(zipfile.ZipFile(file))
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        except UserError:
            raise
        except BROKEN as error:
            raise UserError(
                f"feature file {path} is not an .npz of arrays, or it is damaged ({_reason(error)})"
            ) from None
        limit = _GROWTH * file.seek(0, os.SEEK_END) + _ALLOWANCE
        if (total := sum(info.file_size for info in members.values())) > limit:
            raise UserError(f"feature file {path} would unpack to {total:,} bytes; at most {limit:,} are read")
        yield Arrays(str(path), archive, members)


class Arrays:
    """The named arrays of a file. Every method raises a UserError for a missing or invalid array."""

    def __init__(self, path: str, archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> None:
        self.path = path
        self._archive, self._members = archive, members
        self._read_names: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def names(self) -> list[str]:
        """Names of all arrays, sorted."""
        return sorted(self._members)

    def refuse(self, name: str, problem: str) -> NoReturn:
        """Raise a UserError about the array ``name``."""
        raise UserError(f"feature file {self.path}: the array {name} {problem}")

    def unused(self) -> list[str]:
        """Names of the arrays that have not been read."""
        return sorted(self._members.keys() - self._read_names)

    def _read(self, name: str) -> Array:
        self._read_names.add(name)
        if name not in self:
            likely = nearest(name, self._members)
            hint = f"did you mean '{likely}'?" if likely else f"it has {', '.join(self._members) or 'no arrays'}"
            raise UserError(f"feature file {self.path} lacks the array {name}; {hint}")
        info = self._members[name]
        if info.flag_bits & _ENCRYPTED or info.compress_type not in _KINDS:
            self.refuse(name, "is encrypted, or compressed in a way that numpy does not write")
        try:
            with self._archive.open(info) as member:
                shape, by_column, dtype, start = self._check_header(name, member, info.file_size)
                if world_size() > 1 and info.compress_type == zipfile.ZIP_STORED and not by_column and shape:
                    return self._mapped(info, member, start, shape, dtype)
            with self._archive.open(info) as member:
                return np.lib.format.read_array(member, allow_pickle=False)
        except UserError:
            raise
        except BROKEN as error:
            self.refuse(name, f"is damaged ({_reason(error)})")

    def _mapped(
        self, info: zipfile.ZipInfo, member: IO[bytes], start: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Array:
        """An array as it lies in the file, of which several processes then have one copy in memory.

        Args:
            member: of the archive, read up to its first number.
            start: of that number in the member.
        """
        while member.read(_CHUNK):  # at its end its checksum is compared
            pass
        with open_file(self.path) as file:
            file.seek(info.header_offset + _LENGTHS)
            lengths = struct.unpack("<HH", file.read(4))  # of the name and of what is extra, behind the local header
            first = info.header_offset + _LENGTHS + 4 + sum(lengths) + start
            return np.memmap(file, dtype, "c", first, shape).view(np.ndarray)

    def _check_header(
        self, name: str, member: IO[bytes], size: int
    ) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
        """Shape, whether it is stored by column, type, and where the numbers begin.

        An array whose header promises more or less than its ``size`` bytes is refused, before memory is taken.
        """
        if member.read(6) != b"\x93NUMPY":
            self.refuse(name, "is not an .npy array")
        version = tuple(member.read(2))
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            self.refuse(name, "has a version that numbers and texts do not need")
        shape, by_column, dtype = readers[version](member)
        if dtype.hasobject:
            self.refuse(name, "contains Python objects, which are never loaded; save it as numbers or text")
        promised, there = math.prod(shape) * dtype.itemsize, size - member.tell()
        if promised != there:
            self.refuse(name, f"is damaged: its shape {shape} needs {promised:,} bytes, and there are {there:,}")
        return shape, by_column, dtype, member.tell()

    def texts(self, name: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of texts; ``default`` if there is no such array."""
        if default is not None and name not in self:
            return default
        array = self._read(name)
        if array.ndim != 1 or array.dtype.kind != "U":
            self.refuse(name, f"must be a list of texts, not {_kind(array)}")
        try:
            return tuple(check_name(text) for text in array.tolist())
        except (ValueError, SystemError) as error:  # code points that are not characters
            self.refuse(name, f"contains something that is not text ({error})")

    def text(self, name: str) -> str:
        """A single text; "" if there is no such array."""
        if name not in self:
            return ""
        array = self._read(name)
        if array.ndim != 0 or array.dtype.kind != "U":
            self.refuse(name, f"must be a single text, not {_kind(array)}")
        try:
            return check_name(str(array))
        except (ValueError, SystemError) as error:
            self.refuse(name, f"contains something that is not text ({error})")

    def positive(self, name: str, default: float) -> float:
        """A single number above 0; ``default`` if there is no such array."""
        if name not in self:
            return default
        value = self.number(name)
        if value <= 0:
            self.refuse(name, f"is {value}; it must be a number above 0")
        return value

    def number(self, name: str) -> float:
        """A single finite number."""
        array = self._read(name)
        if array.ndim != 0 or array.dtype.kind not in "fiu":
            self.refuse(name, f"must be a single number, not {_kind(array)}")
        value = float(array)
        if not math.isfinite(value):
            self.refuse(name, f"is {value}; it must be a finite number")
        return value

    def features(self, name: str, form: str, *dims: int) -> Array:
        """Finite floating-point numbers.

        Args:
            form: the allowed shapes, for error messages.
            dims: the allowed numbers of dimensions.
        """
        array = self._read(name)
        if array.ndim in dims and 0 in array.shape:
            self.refuse(name, f"is empty: its shape is {array.shape}")
        if array.dtype.kind != "f" or array.dtype.itemsize > 8 or array.ndim not in dims:
            self.refuse(name, f"must be floating-point numbers of shape {form}, not {_kind(array)}")
        rows = array.reshape(-1, array.shape[-1])
        for start in range(0, len(rows), _ROWS):
            block = rows[start : start + _ROWS]
            with np.errstate(all="ignore"):
                if np.isfinite(block.sum()):  # a sum of finite numbers may overflow, but one of others is never finite
                    continue
            finite = np.isfinite(block).all(axis=1)
            if not finite.all():
                index = np.unravel_index(start + int(finite.argmin()), array.shape[:-1])
                self.refuse(name, f"contains NaN or infinity, first in row {', '.join(map(str, index))}")
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))

    def labels(self, name: str, count: int, classes: int, of: str, *, several: bool = False) -> Array:
        """Class labels, whole numbers from 0 to K - 1, for each of the ``count`` rows of the array ``of``.

        Args:
            several: whether zeros and ones (N, K) are taken too, for images with several classes; they become bool.
        """
        array = self._read(name)
        if several and array.ndim == 2 and array.dtype.kind in "biu":
            if array.shape != (count, classes):
                self.refuse(
                    name, f"has shape {array.shape}, but {of} has {count} rows, and there are {classes} classes"
                )
            if not ((array == 0) | (array == 1)).all():
                self.refuse(name, "is of shape (N, K), so it must hold zeros and ones")
            return array.astype(bool)
        if array.dtype.kind not in "iu" or array.ndim != 1:
            self.refuse(name, f"must be whole numbers of shape (N,), not {_kind(array)}")
        if len(array) != count:
            self.refuse(name, f"has {len(array)} entries, but {of} has {count} rows")
        labels = array.astype(np.int64)
        if labels.min() < 0 or labels.max() >= classes:
            wrong = labels.min() if labels.min() < 0 else labels.max()
            self.refuse(name, f"contains the label {wrong}, but the {classes} classnames allow 0 to {classes - 1}")
        return labels


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _kind(array: Array) -> str:
    return f"{array.dtype} of shape {array.shape}"
