"""Files: reading untrusted ones, atomic writes, JSON, and the cache folder."""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import io
import json
import math
import os
import stat
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from dassl_lite.utils.errors import printable

PathLike = str | os.PathLike[str]


def can_be_path(text: str) -> bool:
    """Whether the system accepts this text as a path: it has no NUL, and can be encoded."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # a lone surrogate
        return False


def mkdir_if_missing(dirname: PathLike) -> None:
    """Make a folder and its parents, unless they exist."""
    Path(dirname).mkdir(parents=True, exist_ok=True)


def listdir_nohidden(path: PathLike, sort: bool = False) -> list[str]:
    """Names in ``path`` that do not start with a dot; ``sort`` makes their order the same on every machine."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def check_isfile(fpath: PathLike) -> bool:
    """Whether ``fpath`` is a file; warns if not (Dassl's contract)."""
    exists = Path(fpath).is_file()
    if not exists:
        warnings.warn(f'No file found at "{printable(fpath)}"', stacklevel=2)
    return exists


_HASH_BLOCK = 1 << 20
MAX_TEXT = 1 << 30  # bytes of a table, split or list; ImageNet's split file has 150 MB


def open_file(path: PathLike, limit: int | None = None) -> BinaryIO:
    """Open a regular file for reading bytes; anything else is refused: a pipe would hang, and a device may never end.

    Use it for every file that we did not write.

    Args:
        limit: the most bytes that it may have.

    Raises:
        OSError: it cannot be read, has more bytes, or is a pipe, a socket or a device.
    """
    file = open(path, "rb", opener=_open_regular)  # noqa: SIM115
    size = os.fstat(file.fileno()).st_size
    if limit is not None and size > limit:
        file.close()
        raise OSError(errno.EINVAL, f"it has {size:,} bytes, more than the {limit:,} that are read", os.fspath(path))
    return file


class HashingFile:
    """A file that is hashed while it is read, so that its digest needs no second pass.

    Sequential reads are hashed as they happen; `hash_to` reads and hashes the parts that were skipped.

    Args:
        file: a file from `open_file`.
        hasher: a hashlib object.
    """

    def __init__(self, file: BinaryIO, hasher: Any) -> None:
        self._file, self._hasher = file, hasher
        self._hashed = 0  # bytes hashed, from the beginning
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        start = self._file.tell()
        data = self._file.read(size)
        if start <= self._hashed < start + len(data):
            self._hasher.update(memoryview(data)[self._hashed - start :])
            self._hashed = start + len(data)
        return data

    def hash_to(self, end: float = math.inf) -> None:
        """Hash up to this position; by default, to the end of the file."""
        self._file.seek(self._hashed)
        while self._hashed < end and self.read(int(min(_HASH_BLOCK, end - self._hashed))):
            pass


def open_text(path: PathLike, encoding: str = "utf-8-sig", **options: Any) -> TextIO:
    """Open a text file of at most ``MAX_TEXT`` bytes; see :func:`open_file`. Options are passed to ``TextIOWrapper``.

    A file that begins with a UTF-16 byte order mark, as spreadsheets write it, is read as UTF-16.
    """
    file = open_file(path, MAX_TEXT)
    return io.TextIOWrapper(file, encoding=_marked(file.peek(2), encoding), **options)  # type: ignore[attr-defined]


def read_text(path: PathLike, limit: int = MAX_TEXT) -> str:
    """The text of a file of at most ``limit`` bytes, in UTF-8 (a byte order mark is skipped) or UTF-16 with a mark.

    Raises:
        OSError: it cannot be read, is too large, or is not a file.
        ValueError: it is in neither encoding.
    """
    with open_file(path, limit) as file:
        data = file.read()
    return data.decode(_marked(data, "utf-8-sig"))


def _marked(data: bytes, encoding: str) -> str:
    """The encoding that the byte order mark of a text indicates, or else ``encoding``."""
    return "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else encoding


def _open_regular(path: str, flags: int) -> int:
    _check_regular(os.stat(path).st_mode, path)  # before opening: opening some devices has side effects
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        _check_regular(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(mode: int, path: str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        kind = "a named pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise OSError(errno.EINVAL, f"{kind}, not a file", path)


def read_json(fpath: PathLike, **options: Any) -> Any:
    """Read a JSON file in UTF-8, with a byte order mark or without, or in UTF-16 with one.

    Options are passed to ``json.loads``.

    Raises:
        OSError: it cannot be read, has more than ``MAX_TEXT`` bytes, or is not a file.
        ValueError: it is not JSON, or nested too deeply.
    """
    with open_file(fpath, MAX_TEXT) as file:
        data = file.read()
    try:
        return json.loads(data, **options)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_json(obj: object, fpath: PathLike, indent: int | None = 4) -> None:
    """Write a JSON file atomically, in pure ASCII so that it can hold any file name; makes its folder."""
    with atomic_path(fpath) as temporary:
        temporary.write_text(json.dumps(obj, indent=indent) + "\n", encoding="utf-8")


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it once it is written and synced; makes the folder.

    If the process fails or is killed before that, ``path`` stays unchanged.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=final.parent, prefix=f".{final.name}.", suffix=".tmp")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, final)
        _sync_folder(final.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power failure; only POSIX can open a folder to sync it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cache_root() -> Path:
    """The folder of cached features: $DASSL_LITE_CACHE, $XDG_CACHE_HOME/dassl_lite or ~/.cache/dassl_lite."""
    if own := os.environ.get("DASSL_LITE_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "dassl_lite"


def digest_of(obj: object) -> str:
    """SHA-256 (hex) of ``obj`` as canonical JSON, so the order of keys does not matter."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
