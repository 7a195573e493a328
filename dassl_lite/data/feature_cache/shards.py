"""The rows of one store on disk.

    meta.json         what the rows were made with, and their layout
    rows-00000.bin    rows one after the other, little-endian, one row = one image's features (V, D); at most 256 MiB
    index.jsonl       a line per commit: a checksum of the line, then where its rows lie and which files they belong to
    lock              held by the process that writes

Rows are appended and synced first, their index line after them, so a line that is there and whole vouches for rows
that are there. A process killed between the two, or amid either, leaves bytes that no line speaks of; the next writer
cuts them off. Each row's own checksum is compared whenever it is read: bytes that were lost later (a power cut on a
disk that does not sync, a partial copy of the folder) are noticed, not used. Without a sound meta.json nobody knows
what the rows are: such a store is set aside, and a new one begins.

NumPy knows no bfloat16, so features of every type travel as integers of their size: bit for bit.

Shapes: N images, V views, D feature width.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dassl_lite.data.feature_cache.lock import exclusive_lock
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import digest_of, read_json, write_json

logger = logging.getLogger(__name__)

META = "meta.json"
DAMAGED = ".damaged-"  # in the name of a folder: a store that was set aside
SHARD_BYTES = 256 << 20
GATHER_BYTES = 64 << 20  # copied at a time, so that reading needs little memory beside its result

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


class Layout(NamedTuple):
    """The layout of one image's row: V x D numbers of ``dtype`` (such as ``float32``)."""

    views: int
    width: int
    dtype: str

    @classmethod
    def of(cls, features: Tensor) -> Layout:
        """The layout of features (N, V, D). Raises TypeError if they are no real floating-point numbers."""
        dtype = str(features.dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise TypeError(f"features must be one of {', '.join(_DTYPES)}, not {dtype}")
        return cls(features.shape[1], features.shape[2], dtype)

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Layout:
        """The layout that a file tells. Raises ValueError or TypeError if it makes no sense."""
        layout = cls(**told)
        numbers = (layout.views, layout.width)
        if layout.dtype not in _DTYPES or not all(isinstance(n, int) and n > 0 for n in numbers):
            raise ValueError(f"rows of {layout}")
        return layout

    @property
    def carrier(self) -> np.dtype:
        """The integers that stand for the numbers, little-endian as on disk."""
        return np.dtype(f"<i{_DTYPES[self.dtype].itemsize}")

    @property
    def row_bytes(self) -> int:
        return self.views * self.width * self.carrier.itemsize

    def bits(self, features: Tensor) -> np.ndarray:
        """Features (N, V, D) on the CPU as their integers."""
        return features.contiguous().view(_INTEGERS[features.dtype.itemsize]).numpy().astype(self.carrier, copy=False)

    def tensor(self, bits: np.ndarray) -> Tensor:
        """The features that the integers stand for."""
        native = bits.astype(bits.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(native).view(_DTYPES[self.dtype])


class _DamagedMetaError(Exception):
    """meta.json is there, but does not say what it should."""


class ImageFile(NamedTuple):
    """One state of one file: what a row of the cache belongs to.

    The path is the absolute one, links not followed. A dataset that was moved is extracted again: name, size and time
    are not enough to tell that a file elsewhere is the same picture, and a wrong feature would go unnoticed.
    """

    path: str
    size: int  # bytes
    mtime_ns: int  # nanoseconds

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> ImageFile:
        """The file as it is now. Raises OSError if there is none."""
        absolute = os.path.abspath(path)
        status = os.stat(absolute)
        return cls(absolute, status.st_size, status.st_mtime_ns)

    @property
    def name(self) -> str:
        """Folder and file name with ``/``: the same on every machine, so views are too."""
        return "/".join(PurePath(self.path).parts[-2:])


class Row(NamedTuple):
    shard: int
    row: int
    checksum: int


class ShardStore:
    """Rows on disk: read by anyone, written by whoever is within ``exclusively()``.

    Args:
        folder: of this store alone; made when it is first written.
        description: what the rows are made with (plain JSON); kept in meta.json and compared.
    """

    def __init__(self, folder: Path, description: Mapping[str, Any]) -> None:
        self.folder = folder
        self.description = dict(description)
        self.layout: Layout | None = None
        self._rows: dict[ImageFile, Row] = {}
        self._fill: dict[int, int] = {}  # rows in each shard
        self._index_end = 0  # bytes
        self._maps: dict[int, np.ndarray] = {}
        self._damaged: set[Row] = set()

    def __contains__(self, image: object) -> bool:
        return image in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def load(self) -> None:
        """Take in what is on disk now; a store without a sound meta.json is set aside.

        Raises:
            OSError: the folder is there and cannot be read.
            UserError: it holds something else.
        """
        self._rows, self._fill, self._maps, self._index_end, self.layout = {}, {}, {}, 0, None
        try:
            self.layout = self._read_layout()
        except _DamagedMetaError:
            with self.exclusively():  # loads, too
                return
        if self.layout is None:
            return
        index = self.folder / "index.jsonl"
        lost = 0
        for line in index.read_bytes().splitlines(keepends=True) if index.exists() else []:
            if not line.endswith(b"\n"):  # torn: its writer was killed
                break
            self._index_end += len(line)
            record = _parse(line)
            lost += record is None or not self._take(record)
        if lost:
            logger.warning(f"{lost} commits of the feature cache in {self.folder} are damaged and are not used")

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """Be the only writer, knowing all rows that others have written. Raises OSError where one can't write."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self.folder / "lock"):
            try:
                self._read_layout()
            except _DamagedMetaError as error:
                self._set_aside(error)
            self.load()
            yield

    def commit(self, images: Sequence[ImageFile], rows: np.ndarray, layout: Layout) -> None:
        """Append rows (N, V, D) for good: once this returns, no crash loses them.

        Raises:
            OSError: they could not be written; nothing of them will be read.
        """
        if self.layout is None:
            write_json({**self._identity(), "rows": layout._asdict()}, self.folder / META)
            self.layout = layout
        if self.layout != layout:
            raise ValueError(f"the encoder gave {layout}, but {self.folder} holds {self.layout}")
        shard = max(self._fill, default=0)
        first = self._fill.get(shard, 0)
        if first and (first + len(images)) * layout.row_bytes > SHARD_BYTES:
            shard, first = shard + 1, 0
        _append(self._shard_path(shard), first * layout.row_bytes, np.ascontiguousarray(rows).data)
        files = [[*image, zlib.crc32(row)] for image, row in zip(images, rows, strict=True)]
        line = _format({"shard": shard, "first": first, "files": files})
        _append(self.folder / "index.jsonl", self._index_end, line)
        self._index_end += len(line)
        self._maps.pop(shard, None)  # it has grown
        self._take({"shard": shard, "first": first, "files": files})

    def copy_into(self, out: np.ndarray, images: Sequence[ImageFile], columns: np.ndarray) -> list[ImageFile]:
        """Copy the rows of ``images`` to ``out[:, columns]``, out (V, N, D); give back the images with damaged rows."""
        assert self.layout is not None, "an image in the store means that its layout is known"
        where = np.array([self._rows[image] for image in images], dtype=np.int64).reshape(-1, 3)
        damaged: list[ImageFile] = []
        step = max(1, GATHER_BYTES // self.layout.row_bytes)
        for shard in np.unique(where[:, 0]):
            chosen = np.flatnonzero(where[:, 0] == shard)
            chosen = chosen[np.argsort(where[chosen, 1])]  # in the order of the disk
            for part in (chosen[start : start + step] for start in range(0, len(chosen), step)):
                rows = self._map(int(shard))[where[part, 1]]
                out[:, columns[part]] = rows.transpose(1, 0, 2)
                sound = np.array([zlib.crc32(row) for row in rows]) == where[part, 2]
                damaged += [images[i] for i in part[~sound]]
        return damaged

    def forget(self, images: Sequence[ImageFile]) -> None:
        """Never again use the rows that these images have now."""
        self._damaged.update(self._rows.pop(image) for image in set(images))

    def _identity(self) -> dict[str, Any]:
        return {"made_with": self.description, "digest": digest_of(self.description)}

    def _read_layout(self) -> Layout | None:
        """The layout that meta.json tells, or None where there is no store yet."""
        path = self.folder / META
        if not path.exists():
            return None
        try:
            meta = read_json(path)
            if meta["digest"] != digest_of(self.description):
                raise UserError(f"{self.folder} holds features of something else; remove it: {meta['made_with']}")
            return Layout.read(meta["rows"])
        except UserError:
            raise
        except (KeyError, TypeError, ValueError) as error:  # JSON's and Unicode's errors are ValueErrors
            raise _DamagedMetaError(repr(error)) from error

    def _set_aside(self, error: Exception) -> None:
        """Move everything but the lock to a folder beside this one, meta.json first: without it, there is no store."""
        names = (f"{self.folder.name}{DAMAGED}{number}" for number in itertools.count(1))
        aside = next(path for name in names if not (path := self.folder.with_name(name)).exists())
        aside.mkdir()
        logger.warning(
            f"{self.folder / META} is damaged ({error}): the feature cache that it belongs to is set aside as {aside} "
            "(delete it, if you like), and its features are extracted again"
        )
        rest = (path for path in sorted(self.folder.iterdir()) if path.name not in ("lock", META))
        for path in (self.folder / META, *rest):
            path.replace(aside / path.name)

    def _take(self, record: Mapping[str, Any]) -> bool:
        """Take a commit's rows into the table, unless its shard is too short to hold them."""
        assert self.layout is not None
        shard, first, files = record["shard"], record["first"], record["files"]
        end = first + len(files)
        path = self._shard_path(shard)
        if not path.exists() or path.stat().st_size < end * self.layout.row_bytes:
            return False
        self._fill[shard] = max(end, self._fill.get(shard, 0))
        for offset, (name, size, mtime_ns, checksum) in enumerate(files):
            row = Row(shard, first + offset, checksum)
            if row not in self._damaged:
                self._rows[ImageFile(name, size, mtime_ns)] = row
        return True

    def _shard_path(self, shard: int) -> Path:
        return self.folder / f"rows-{shard:05d}.bin"

    def _map(self, shard: int) -> np.ndarray:
        assert self.layout is not None
        if shard not in self._maps:
            path, shape = self._shard_path(shard), (self._fill[shard], self.layout.views, self.layout.width)
            try:
                self._maps[shard] = np.asarray(np.memmap(path, self.layout.carrier, "r", shape=shape))
            except ValueError as error:
                raise OSError(f"{path} has become shorter: {error}") from error
        return self._maps[shard]


def _append(path: Path, end: int, data: bytes | memoryview) -> None:
    """Put ``data`` at byte ``end``, in place of anything that a killed writer left there, and wait for the disk."""
    with open(path, "r+b" if path.exists() else "w+b", buffering=0) as file:
        file.truncate(end)
        file.seek(end)
        left = memoryview(data).cast("B")
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())


def _format(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(line: bytes) -> dict[str, Any] | None:
    """The record of an index line, None if its bytes are not what was written."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    return json.loads(text) if checksum == b"%08x" % zlib.crc32(text) else None
