"""The rows of one store on disk.

    meta.json         what the rows were computed with, and their layout
    rows-00000.bin    rows one after the other, little-endian, one row = an image's features (V, D); at most 256 MiB
    index.jsonl       a line per commit: a checksum of the line, then the position of its rows and their files
    lock              held by the process that writes

Rows are appended and synced before their index line, so a complete index line guarantees that its rows are complete. A
process killed before, during or between the two writes leaves bytes that no index line refers to; the next writer
truncates them. Each row has a checksum that is verified on every read, so bytes that were lost later (by a power cut on
a disk that does not sync, or a partial copy of the folder) are detected, never used. Without a valid meta.json the rows
cannot be interpreted: such a store is set aside, and a new one begins.

NumPy has no bfloat16, so features of every dtype are handled as integers of the same size, bit for bit.

Shapes: N images, V views, D feature width.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dassl_lite.data.feature_cache.lock import exclusive_lock
from dassl_lite.data.sharded.members import cached_path, locate
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import PathLike, digest_of, read_json, write_json
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

META = "meta.json"
DAMAGED = ".damaged-"  # part of the folder name of a store that was set aside
SHARD_BYTES = 256 << 20
GATHER_BYTES = 64 << 20  # copied at a time, so that reading needs little memory besides its result

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


class _DamagedMetaError(Exception):
    """meta.json exists but is not valid."""


class Layout(NamedTuple):
    """The layout of a row: V x D numbers of ``dtype`` (such as ``float32``)."""

    views: int
    width: int
    dtype: str

    @classmethod
    def of(cls, features: Tensor) -> Layout:
        """The layout of features (N, V, D).

        Raises:
            TypeError: they are not real floating-point numbers.
        """
        dtype = str(features.dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise TypeError(f"features must be one of {', '.join(_DTYPES)}, not {dtype}")
        return cls(features.shape[1], features.shape[2], dtype)

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Layout:
        """The layout stored in a file.

        Raises:
            ValueError: a field has an invalid value.
            TypeError: a field is missing or unknown.
        """
        layout = cls(**fields)
        numbers = (layout.views, layout.width)
        if layout.dtype not in _DTYPES or not all(isinstance(n, int) and n > 0 for n in numbers):
            raise ValueError(f"invalid layout {layout}")
        return layout

    @property
    def carrier(self) -> np.dtype:
        """The integer dtype that carries the numbers, little-endian as on disk."""
        return np.dtype(f"<i{_DTYPES[self.dtype].itemsize}")

    @property
    def row_bytes(self) -> int:
        return self.views * self.width * self.carrier.itemsize

    def bits(self, features: Tensor) -> np.ndarray:
        """Features (N, V, D) on the CPU, as integers with the same bits."""
        return features.contiguous().view(_INTEGERS[features.dtype.itemsize]).numpy().astype(self.carrier, copy=False)

    def tensor(self, bits: np.ndarray) -> Tensor:
        """The features with the same bits as the integers."""
        native = bits.astype(bits.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(native).view(_DTYPES[self.dtype])


class ImageFile(NamedTuple):
    """A file at one point in time: the key of a row in the cache.

    The path is absolute, with links not followed. A dataset that was moved is extracted again: name, size and time do
    not prove that a file elsewhere is the same image, and wrong features would go unnoticed. An image in a shard has a
    path with the digest of the shard, which does prove it, and no time.
    """

    path: str
    size: int  # bytes
    mtime_ns: int  # nanoseconds

    @classmethod
    def of(cls, path: PathLike) -> ImageFile:
        """The file as it is now.

        Raises:
            OSError: there is no such file.
        """
        absolute = os.path.abspath(path)
        member = locate(absolute)
        if member is not None:
            return cls(cached_path(member), member.size, 0)
        status = os.stat(absolute)
        return cls(absolute, status.st_size, status.st_mtime_ns)

    @property
    def name(self) -> str:
        """Folder and file name with ``/``: the same on every machine, so the views are too."""
        return "/".join(PurePath(self.path).parts[-2:])


class Row(NamedTuple):
    """Where a row is, and the CRC-32 of its bytes."""

    shard: int
    row: int
    checksum: int


class ShardStore:
    """Rows on disk: anyone may read, and the process within ``exclusively()`` may write.

    Args:
        folder: folder of this store alone; created on the first write.
        description: what the rows are computed with, as plain JSON; stored in meta.json and compared with it.
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
        """Load the index as it is on disk now; a store without a valid meta.json is set aside.

        Raises:
            OSError: the folder exists but cannot be read.
            UserError: it contains something else.
        """
        self._rows, self._fill, self._maps, self._index_end, self.layout = {}, {}, {}, 0, None
        try:
            self.layout = self._read_layout()
        except _DamagedMetaError:
            with self.exclusively():  # sets it aside and loads
                return
        if self.layout is None:
            return
        index = self.folder / "index.jsonl"
        lost = 0
        for line in index.read_bytes().splitlines(keepends=True) if index.exists() else []:
            if not line.endswith(b"\n"):  # incomplete: its writer was killed
                break
            self._index_end += len(line)
            record = parse_line(line)
            lost += record is None or not self._add_commit(record)
        if lost:
            logger.warning(f"Damaged commits ignored in the feature cache {self.folder}: {lost}")

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """Become the only writer, with all rows loaded that others have written.

        Raises:
            OSError: the folder cannot be written to.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self.folder / "lock"):
            try:
                self._read_layout()
            except _DamagedMetaError as error:
                self._set_aside(error)
            self.load()
            yield

    def commit(self, images: Sequence[ImageFile], rows: np.ndarray, layout: Layout) -> None:
        """Append rows (N, V, D) durably: once this returns, no crash loses them.

        Raises:
            OSError: they could not be written; none of them will be read.
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
        append(self._shard_path(shard), first * layout.row_bytes, np.ascontiguousarray(rows).data)
        files = [[*image, zlib.crc32(row)] for image, row in zip(images, rows, strict=True)]
        line = format_line({"shard": shard, "first": first, "files": files})
        append(self.folder / "index.jsonl", self._index_end, line)
        self._index_end += len(line)
        self._maps.pop(shard, None)  # it has grown
        self._add_commit({"shard": shard, "first": first, "files": files})

    def copy_into(self, out: np.ndarray, images: Sequence[ImageFile], columns: np.ndarray) -> list[ImageFile]:
        """Copy the rows of ``images`` to ``out[:, columns]``, with ``out`` (V, N, D).

        Returns:
            The images whose rows are damaged.
        """
        assert self.layout is not None, "a store with rows has a layout"
        where = np.array([self._rows[image] for image in images], dtype=np.int64).reshape(-1, 3)
        damaged: list[ImageFile] = []
        step = max(1, GATHER_BYTES // self.layout.row_bytes)
        for shard in np.unique(where[:, 0]):
            chosen = np.flatnonzero(where[:, 0] == shard)
            chosen = chosen[np.argsort(where[chosen, 1])]  # in their order on disk
            for part in (chosen[start : start + step] for start in range(0, len(chosen), step)):
                rows = self._map(int(shard))[where[part, 1]]
                out[:, columns[part]] = rows.transpose(1, 0, 2)
                intact = np.array([zlib.crc32(row) for row in rows]) == where[part, 2]
                damaged += [images[i] for i in part[~intact]]
        return damaged

    def forget(self, images: Sequence[ImageFile]) -> None:
        """Never use the current rows of these images again."""
        self._damaged.update(self._rows.pop(image) for image in set(images))

    def _identity(self) -> dict[str, Any]:
        return {"made_with": self.description, "digest": digest_of(self.description)}

    def _read_layout(self) -> Layout | None:
        """The layout in meta.json, or None if there is no store yet."""
        try:
            meta = read_json(self.folder / META)
            if meta["digest"] != digest_of(self.description):
                raise UserError(f"{self.folder} contains other features; remove it: {meta['made_with']}")
            return Layout.read(meta["rows"])
        except FileNotFoundError:  # or another process has just set a damaged store aside
            return None
        except UserError:
            raise
        except (KeyError, TypeError, ValueError) as error:  # JSON and Unicode errors are ValueErrors
            raise _DamagedMetaError(repr(error)) from error

    def _set_aside(self, error: Exception) -> None:
        """Move everything but the lock to a folder beside this one, meta.json first: without it, this is no store."""
        names = (f"{self.folder.name}{DAMAGED}{number}" for number in itertools.count(1))
        aside = next(path for name in names if not (path := self.folder.with_name(name)).exists())
        aside.mkdir()
        logger.warning(
            f"{self.folder / META} is damaged ({error}): its feature cache was moved to {aside}, which you may delete, "
            "and its features are extracted again"
        )
        rest = (path for path in sorted(self.folder.iterdir()) if path.name not in ("lock", META))
        for path in (self.folder / META, *rest):
            path.replace(aside / path.name)

    def _add_commit(self, record: Mapping[str, Any]) -> bool:
        """Add the rows of a commit to the table; returns False if its shard is too short to contain them."""
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
                raise OSError(f"{path} was truncated: {error}") from error
        return self._maps[shard]


def append(path: Path, end: int, data: bytes | memoryview) -> None:
    """Write ``data`` at byte ``end``, replacing anything that a killed writer left there, and sync it to disk."""
    with open(path, "r+b" if path.exists() else "w+b", buffering=0) as file:
        file.truncate(end)
        file.seek(end)
        left = memoryview(data).cast("B")
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())


def format_line(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The record of an index line, or None if it is damaged."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    return json.loads(text) if checksum == b"%08x" % zlib.crc32(text) else None
