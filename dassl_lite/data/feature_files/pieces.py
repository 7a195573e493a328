"""Extraction in pieces: any number of processes write the shards of a folder of features, one process per shard.

    <folder>/test_features-00003.npy               a finished piece
    <folder>/under-way/test_features-00003.json    its plan, and which of its images could not be read
    <folder>/under-way/test_features-00003.rows-0  an unfinished piece: rows so far, for each field,
    <folder>/under-way/test_features-00003.log     and one line per commit

A commit is synced before its line is written, so a killed process only loses its work since the last commit.
A piece is resumed at a batch boundary, and its batches do not depend on the process that encodes them. Its features are
therefore bit-identical for any number of processes, and after any interruption.

Shapes: n images of a piece that could be read, V views, D feature width.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dassl_lite.data.feature_cache.extract import Transform, ViewDataset, images_at_a_time
from dassl_lite.data.feature_cache.lock import exclusive_lock
from dassl_lite.data.feature_cache.rows import COMMIT_BYTES, COMMIT_SECONDS
from dassl_lite.data.feature_cache.shards import append, format_line, parse_line
from dassl_lite.data.feature_cache.store import extract_fields, look_up, unreadable
from dassl_lite.data.feature_files.arrays import Array
from dassl_lite.data.feature_files.folder import shard_name
from dassl_lite.utils.files import atomic_path, digest_of, read_json, write_json

UNDER_WAY = "under-way"
_COPIED = 64 << 20  # bytes copied at a time
_PIECES, _MOST_ROWS = 64, 65_536  # approximate number per split; maximum rows per shard


@dataclass(frozen=True)
class Piece:
    """The images that one process encodes.

    Attributes:
        arrays: the array that the features are a shard of and, if they are stored, that of the states.
        number: shard number.
        paths: of the images.
        transform: from a PIL image to a tensor.
        views, seed: V, and the seed of the views.
        identity: digest of everything that the features depend on besides the images.
    """

    arrays: tuple[str, ...]
    number: int
    paths: tuple[str, ...]
    transform: Transform
    views: int
    seed: int
    identity: str

    @property
    def name(self) -> str:
        return f"{self.arrays[0]}-{self.number:05}"


class Done(NamedTuple):
    """The outcome of a piece: why images could not be read, by their number in the piece, and how many were encoded."""

    piece: str
    errors: dict[int, str]
    encoded: int


def rows_of_a_piece(images: int, views: int, batch_size: int, wanted: int = 0) -> int:
    """Number of images in a piece: whole batches, so that batches are the same as in an undivided split.

    Args:
        wanted: about how many; 0 chooses a number that does not depend on who does the work.
    """
    batch = images_at_a_time(batch_size, views)
    wanted = wanted or min(math.ceil(images / _PIECES), max(1, _MOST_ROWS // views))
    return max(1, math.ceil(wanted / batch)) * batch


def extract_piece(
    piece: Piece,
    folder: Path,
    encode: Callable[[Tensor], Any],
    to_array: Callable[[Tensor], Array],
    *,
    device: torch.device,
    batch_size: int,
    num_workers: int,
    skip: bool = False,
    commit_seconds: float = COMMIT_SECONDS,
) -> Done:
    """Write the shards of a piece, unless they are there.

    Args:
        encode: from inputs (B, 3, H, W) on ``device`` to features (B, D), or to a pair, if states are stored.
        to_array: from features on the CPU to what is stored.
        skip: leave out images that cannot be read.
        commit_seconds: how much work a killed process may lose, in seconds.

    Raises:
        UserError: an image cannot be read. What was encoded before is kept.
        OSError: the folder cannot be written to.
    """
    place = folder / UNDER_WAY
    place.mkdir(parents=True, exist_ok=True)
    missing: dict[str, str] = {}
    files = [look_up(path, missing) for path in piece.paths]
    if missing and not skip:
        raise unreadable(missing)
    numbers = [number for number, file in enumerate(files) if file is not None]
    images = [file for file in files if file is not None]
    gone = {n: missing[os.path.abspath(piece.paths[n])] for n, file in enumerate(files) if file is None}
    identity = digest_of([piece.identity, piece.views, piece.seed, numbers, [[*image] for image in images]])
    with exclusive_lock(place / f"{piece.name}.lock"):
        before = _read_done(piece, folder, identity)
        if before is not None:
            return before
        rows = _Rows(piece, place, identity, commit_seconds)
        dataset = ViewDataset(images, piece.transform, piece.views, piece.seed)
        first = rows.done
        options: dict[str, Any] = {"device": device, "batch_size": batch_size, "num_workers": num_workers}
        try:
            for part, values in extract_fields(dataset, encode, done=first, **options):
                if part.errors and not skip:
                    raise unreadable({images[number].path: error for number, error in part.errors})
                arrays = [to_array(value) for value in values]
                rows.add(arrays, len(part.numbers) + len(part.errors), dict(part.errors))
        finally:
            rows.commit()
        gone |= {numbers[number]: error for number, error in rows.errors.items()}
        rows.finish(folder)
        write_json({"identity": identity, "errors": gone}, place / f"{piece.name}.json", indent=None)
        rows.remove()
    return Done(piece.name, gone, len(images) - first)


def _read_done(piece: Piece, folder: Path, identity: str) -> Done | None:
    try:
        found = read_json(folder / UNDER_WAY / f"{piece.name}.json")
        if found["identity"] != identity:
            return None
        errors = {int(number): str(error) for number, error in found["errors"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    if len(errors) < len(piece.paths) and not all((folder / file).is_file() for file in files_of(piece)):
        return None
    return Done(piece.name, errors, 0)


def files_of(piece: Piece) -> list[str]:
    """Names of the shards of a piece."""
    return [shard_name(array, piece.number) for array in piece.arrays]


class _Rows:
    """The rows of a piece that is under way, on disk up to the last commit.

    Attributes:
        done: number of images that are behind it, with those that could not be read.
        errors: why, by number.
    """

    def __init__(self, piece: Piece, place: Path, identity: str, commit_seconds: float) -> None:
        self._piece, self._seconds = piece, commit_seconds
        self._log = place / f"{piece.name}.log"
        self._files = [place / f"{piece.name}.rows-{field}" for field in range(len(piece.arrays))]
        self.done, self.errors = 0, dict[int, str]()
        self._rows, self._log_end = 0, 0
        self._kinds: list[list[Any]] = []  # type and width of each field
        self._pending: list[list[Array]] = []
        self._pending_done = 0
        self._pending_errors: dict[int, str] = {}
        self._read(identity)
        self._committed = time.monotonic()

    def _read(self, identity: str) -> None:
        for line in self._log.read_bytes().splitlines(keepends=True) if self._log.is_file() else []:
            found = parse_line(line) if line.endswith(b"\n") else None
            if found is None or (not self._log_end and found != {"identity": identity}):
                break
            if self._log_end:
                self.done, self._rows, self._kinds = found["done"], found["rows"], found["kinds"]
                self.errors |= dict(found["errors"])
            self._log_end += len(line)
        if self._log_end and not self._complete():
            self.done, self._rows, self._log_end = 0, 0, 0
            self.errors.clear()
        if not self._log_end:
            line = format_line({"identity": identity})
            append(self._log, 0, line)
            self._log_end = len(line)

    def _complete(self) -> bool:
        """Whether the disk has the rows that the log speaks of."""
        wanted = [self._rows * self._piece.views * np.dtype(kind).itemsize * width for kind, width in self._kinds]
        return all(file.stat().st_size >= size for file, size in zip(self._files, wanted, strict=False) if size)

    def add(self, arrays: Sequence[Array], done: int, errors: dict[int, str]) -> None:
        """The next images: features (b, V, D) of each field, or none, and of how many images these are."""
        if arrays:
            self._pending.append([np.ascontiguousarray(array) for array in arrays])
        self._pending_done += done
        self._pending_errors |= errors
        bytes_pending = sum(array.nbytes for arrays in self._pending for array in arrays)
        if time.monotonic() - self._committed >= self._seconds or bytes_pending >= COMMIT_BYTES:
            self.commit()

    def commit(self) -> None:
        """Write what was added since the last time."""
        self._committed = time.monotonic()
        if not self._pending_done:
            return
        new = 0
        for place, file in enumerate(self._files) if self._pending else ():
            array = np.concatenate([arrays[place] for arrays in self._pending])
            append(file, self._rows * array[:1].nbytes, array.data)
            new = len(array)
        if self._pending:
            self._kinds = [[array.dtype.str, array.shape[-1]] for array in self._pending[0]]
        self.done += self._pending_done
        self._rows += new
        self.errors |= self._pending_errors
        errors = list(self._pending_errors.items())
        line = format_line({"done": self.done, "rows": self._rows, "errors": errors, "kinds": self._kinds})
        append(self._log, self._log_end, line)
        self._log_end += len(line)
        self._pending, self._pending_done, self._pending_errors = [], 0, {}

    def finish(self, folder: Path) -> None:
        """Write the shards: (n, D), or (V, n, D) of several views."""
        if not self._rows:  # a shard has rows
            for name in files_of(self._piece):
                (folder / name).unlink(missing_ok=True)
            return
        for name, file, kind in zip(files_of(self._piece), self._files, self._kinds, strict=True):
            dtype, width = np.dtype(kind[0]), int(kind[1])
            views = self._piece.views
            stored = np.memmap(file, dtype, "r", shape=(self._rows, views, width))
            shape = (self._rows, width) if views == 1 else (views, self._rows, width)
            step = max(1, _COPIED // (width * dtype.itemsize))
            with atomic_path(folder / name) as temporary, open(temporary, "wb") as stream:
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(stream, header)
                for view in range(views):
                    for start in range(0, self._rows, step):
                        stream.write(np.ascontiguousarray(stored[start : start + step, view]).data)
            del stored

    def remove(self) -> None:
        """Delete the files of a piece that is done."""
        for file in (*self._files, self._log):
            file.unlink(missing_ok=True)
