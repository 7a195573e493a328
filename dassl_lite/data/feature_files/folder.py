"""A feature file as a folder, for more rows than fit in memory: ``.npy`` shards of rows, read on demand.

    features.json             which shards each array has, in order
    classes.npz               everything else: class names, text features and so on, as in a feature file
    test_features-00000.npy   (n, D) or (V, n, D), floating-point
    test_labels-00000.npy     (n,), whole numbers

The arrays have the names that they have in an ``.npz``. Rows are read, not mapped, so they do not count as memory of
the process; each is checked for NaN and infinity when it is read.

Shapes: V views, N rows, n rows of a shard, D width.
"""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from dassl_lite.data.feature_files.arrays import BROKEN, Array, Arrays
from dassl_lite.utils.errors import UserError, shown
from dassl_lite.utils.files import PathLike, atomic_path, open_file, read_json, write_json

MANIFEST = "features.json"
CLASSES = "classes.npz"
_FORMAT = "dassl-lite feature shards"
_OPEN = 32  # files kept open at a time


class _Shard(NamedTuple):
    """A file of rows: where they begin in the file and in the array."""

    path: str
    start: int  # bytes
    first: int  # row
    rows: int


class RowShards:
    """Rows (V, N, D), or (N, D) if ``views`` is None, in files.

    Supports what the readers of feature files need of an array: ``shape``, ``ndim``, ``dtype``, ``len``, an
    index ``None``, and ``numpy.asarray``, which reads all of it.
    """

    def __init__(
        self, name: str, shards: Sequence[_Shard], views: int | None, width: int, dtype: np.dtype[Any]
    ) -> None:
        self.name, self.shards, self.views, self.width, self.dtype = name, tuple(shards), views, width, dtype
        self.rows = sum(shard.rows for shard in shards)
        self._starts = np.array([shard.first for shard in shards])
        self._files: dict[int, BinaryIO] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, self.width) if self.views is None else (self.views, self.rows, self.width)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        """``rows[None]`` (1, N, D); ``rows[:, numbers]`` (V, n, D); ``rows[view]`` (N, D); ``rows[numbers]`` (n, D)."""
        if index is None and self.views is None:
            return RowShards(self.name, self.shards, 1, self.width, self.dtype)
        if isinstance(index, tuple) and index[0] == slice(None) and self.views is not None:
            numbers = np.arange(self.rows)[index[1]]
            return np.stack([self.take(numbers, view) for view in range(self.views)])
        if self.views is None:
            return self.take(np.arange(self.rows)[index])
        return self.take(np.arange(self.rows), range(self.views)[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        found = self[:, :] if self.views is not None else self[:]
        return found if dtype is None else found.astype(dtype)

    def take(self, numbers: Array, view: int = 0) -> Array:
        """The rows (n, D) with these numbers, of a view.

        Raises:
            UserError: they cannot be read, or hold NaN or infinity.
        """
        found = np.empty((len(numbers), self.width), self.dtype)
        places = np.searchsorted(self._starts, numbers, side="right") - 1
        # Runs of rows that follow each other in a file are read at once.
        breaks = np.flatnonzero((np.diff(numbers) != 1) | (np.diff(places) != 0)) + 1
        ends = [*breaks.tolist(), len(numbers)] if len(numbers) else []
        start = 0
        for end in ends:
            self._read(int(places[start]), int(numbers[start]), view, found[start:end])
            start = end
        with np.errstate(all="ignore"):
            if not np.isfinite(found.sum(dtype=np.float32)):
                finite = np.isfinite(found).all(axis=1)
                if not finite.all():
                    row = int(numbers[int(finite.argmin())])
                    raise UserError(f"feature file {self.name} contains NaN or infinity, first in row {row}")
        return found.astype(self.dtype.newbyteorder("="), copy=False)

    def _read(self, place: int, number: int, view: int, into: Array) -> None:
        shard = self.shards[place]
        if place not in self._files:
            while len(self._files) >= _OPEN:
                self._files.pop(next(iter(self._files))).close()
            try:
                self._files[place] = open(shard.path, "rb", buffering=0)  # noqa: SIM115
            except OSError as error:
                raise UserError(f"cannot read feature shard {shard.path}: {error.strerror or error}") from error
        file, bytes_of_row = self._files[place], self.width * self.dtype.itemsize
        file.seek(shard.start + (view * shard.rows + number - shard.first) * bytes_of_row)
        buffer = memoryview(into.view(np.uint8).reshape(-1))  # type: ignore[arg-type]
        while len(buffer):
            got = file.readinto(buffer)  # type: ignore[attr-defined]
            if not got:
                raise UserError(f"feature shard {shard.path} ends within row {number}")
            buffer = buffer[got:]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}


class FolderArrays(Arrays):
    """The arrays of a folder: per row in shards, the others in an archive."""

    def __init__(
        self,
        path: str,
        archive: zipfile.ZipFile,
        members: Mapping[str, zipfile.ZipInfo],
        shards: Mapping[str, list[str]],
    ) -> None:
        super().__init__(path, archive, members)
        self._shards = shards

    def __contains__(self, name: str) -> bool:
        return name in self._shards or super().__contains__(name)

    def names(self) -> list[str]:
        return sorted({*super().names(), *self._shards})

    def unused(self) -> list[str]:
        return sorted({*self.names()} - self._read_names)

    def features(self, name: str, form: str, *dims: int) -> Any:
        if name not in self._shards:
            return super().features(name, form, *dims)
        self._read_names.add(name)
        shards: list[_Shard] = []
        kinds = set()
        first = 0
        for file in self._shards[name]:
            shape, dtype, start = self._header(name, file)
            if dtype.kind != "f" or dtype.itemsize > 8 or len(shape) not in dims or 0 in shape:
                self.refuse(
                    name, f"must be floating-point numbers of shape {form}, not {dtype} of shape {shape}: {file}"
                )
            shards.append(_Shard(os.path.join(self.path, file), start, first, shape[-2]))
            kinds.add((shape[:-2], shape[-1], dtype))
            first += shape[-2]
        if len(kinds) > 1:
            self.refuse(name, "has shards of different widths, views or types")
        views, width, dtype = kinds.pop()
        return RowShards(f"{self.path}, array {name},", shards, views[0] if views else None, width, dtype)

    def _read(self, name: str) -> Array:
        if name not in self._shards:
            return super()._read(name)
        self._read_names.add(name)
        parts = []
        for file in self._shards[name]:
            shape, dtype, start = self._header(name, file)
            with open_file(os.path.join(self.path, file)) as stream:
                stream.seek(start)
                parts.append(np.frombuffer(stream.read(), dtype).reshape(shape))
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _header(self, name: str, file: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        """Shape, type and first byte of the numbers in a shard, which must hold as many as it says."""
        path = os.path.join(self.path, file)
        try:
            with open_file(path) as stream:
                version = np.lib.format.read_magic(stream)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                if version not in read:
                    raise ValueError("a version that numbers do not need")
                shape, by_column, dtype = read[version](stream)
                start, size = stream.tell(), os.fstat(stream.fileno()).st_size
        except OSError as error:
            self.refuse(name, f"has a shard that cannot be read, {file}: {error.strerror or error}")
        except BROKEN as error:
            self.refuse(name, f"has a damaged shard, {file}: {' '.join(str(error).split())[:200]}")
        if dtype.hasobject or by_column or dtype.kind not in "fiub":
            self.refuse(name, f"has a shard that holds no numbers in rows, {file}")
        if math.prod(shape) * dtype.itemsize != size - start:
            self.refuse(name, f"has a damaged shard, {file}: shape {shape} does not fit its {size:,} bytes")
        return shape, dtype, start


def is_folder(path: PathLike) -> bool:
    """Whether this is a folder of feature shards."""
    return os.path.isfile(os.path.join(path, MANIFEST))


def files_of(path: PathLike) -> list[str]:
    """The files that a feature file consists of: itself, or those in its folder."""
    if not os.path.isdir(path):
        return [os.fspath(path)]
    return sorted(entry.path for entry in os.scandir(path) if entry.name.endswith((MANIFEST, CLASSES, ".npy")))


@contextlib.contextmanager
def open_folder(path: PathLike) -> Iterator[FolderArrays]:
    """Open a folder of feature shards; see :func:`dassl_lite.data.feature_files.arrays.open_arrays`.

    Raises:
        UserError: its manifest or a file that it names is missing or damaged.
    """
    name = os.fspath(path)
    try:
        content = read_json(os.path.join(path, MANIFEST))
        if not isinstance(content, dict) or content.get("format") != _FORMAT or content.get("version") != 1:
            raise ValueError("it is of another format or version")
        shards = content["arrays"]
        for files in shards.values():
            if not files or not all(isinstance(file, str) and os.path.basename(file) == file for file in files):
                raise ValueError(f"{shown(files)} are not names of files in the folder")
        with open_file(os.path.join(path, CLASSES)) as file, zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            yield FolderArrays(name, archive, members, shards)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"folder of features {name} cannot be read: {reason}") from error


def write_manifest(path: PathLike, arrays: Mapping[str, Sequence[str]]) -> None:
    """Write the list of each array's shards, last of all: a folder without it is incomplete."""
    content = {"format": _FORMAT, "version": 1, "arrays": {name: list(files) for name, files in arrays.items()}}
    write_json(content, Path(path) / MANIFEST)


def write_shard(path: Path, rows: Array) -> None:
    """Write rows as a shard, atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.lib.format.write_array(stream, np.ascontiguousarray(rows), version=(1, 0), allow_pickle=False)


def shard_name(array: str, number: int) -> str:
    """The file of a shard."""
    return f"{array}-{number:05}.npy"
