"""The index of images in shards: where the bytes of each are, by a path that looks like a file's.

    <cache>/shards/<id>.shards/members.db       SQLite: the shards, and the images in them
    <cache>/shards/<id>.shards/train/0001.jpg   the path of an image; there is no such file

The id is a digest of where a dataset is, or of a shard's content: the feature cache uses the latter, so features stay
valid if shards are moved or others come. Every path below ``.shards`` is resolved here, in any process.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from dassl_lite.utils.files import PathLike, atomic_path, cache_root, open_file

ENDING = ".shards"
INDEX = "members.db"
OF_SHARD = "all"  # part under which the index of a single shard has its images
_SCHEMA = """
CREATE TABLE shards (number INTEGER PRIMARY KEY, digest TEXT, file TEXT, size INTEGER, mtime_ns INTEGER, source TEXT);
CREATE TABLE members (name TEXT PRIMARY KEY, shard INTEGER, start INTEGER, size INTEGER, key TEXT, label TEXT)
    WITHOUT ROWID;
CREATE TABLE about (text TEXT);
"""
_connections = threading.local()


class Shard(NamedTuple):
    """A file with images in it.

    Attributes:
        digest: SHA-256 of its content (hex).
        file: its absolute path; a copy in the cache, if ``source`` is a URL.
        size, mtime_ns: bytes, and time of last modification when it was indexed.
        source: how the user named it, for messages.
    """

    digest: str
    file: str
    size: int
    mtime_ns: int
    source: str


class Record(NamedTuple):
    """An image in a shard; ``label`` is JSON: a number or a text."""

    name: str
    start: int
    size: int
    key: str
    label: str


class Member(NamedTuple):
    """Where an image is."""

    name: str
    shard: Shard
    start: int
    size: int


def shards_root() -> Path:
    """The folder of all indexes."""
    return cache_root() / "shards"


def folder_of(identity: str) -> Path:
    """The folder of an index."""
    return shards_root() / f"{identity[:24]}{ENDING}"


def content_digest(path: PathLike) -> str:
    """SHA-256 (hex) of a file's content."""
    found = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def split_path(path: str) -> tuple[str, str] | None:
    """The index's folder and the image's name, if a path is below one."""
    before, found, name = path.rpartition(f"{ENDING}/") if os.sep == "/" else path.rpartition(f"{ENDING}{os.sep}")
    folder = f"{before}{ENDING}"
    return (folder, name.replace(os.sep, "/")) if found and os.path.isfile(os.path.join(folder, INDEX)) else None


def write_index(
    folder: Path, shards: Sequence[Shard], records: Iterable[tuple[int, Record]], about: object = None
) -> None:
    """Write an index, in place of an older one; ``records`` has the number of each image's shard."""
    with (
        atomic_path(folder / INDEX) as path,
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection,
    ):
        connection.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_SCHEMA} BEGIN;")
        numbered = ((number, *shard) for number, shard in enumerate(shards))
        connection.executemany("INSERT INTO shards VALUES (?, ?, ?, ?, ?, ?)", numbered)
        rows = ((one.name, number, *one[1:]) for number, one in records)
        connection.executemany("INSERT INTO members VALUES (?, ?, ?, ?, ?, ?)", rows)
        connection.execute("INSERT INTO about VALUES (?)", (json.dumps(about),))
        connection.execute("COMMIT")


class Index:
    """An index that was written.

    Raises:
        FileNotFoundError: there is none in the folder.
        OSError: it cannot be read.
    """

    def __init__(self, folder: PathLike) -> None:
        path = os.path.join(folder, INDEX)
        os.stat(path)
        try:
            self._connection = sqlite3.connect(f"file:{quote(path)}?mode=ro&immutable=1", uri=True)
            rows = self._connection.execute("SELECT digest, file, size, mtime_ns, source FROM shards ORDER BY number")
            self.shards = [Shard(*row) for row in rows]
            self.about = json.loads(self._connection.execute("SELECT text FROM about").fetchone()[0])
        except (sqlite3.Error, TypeError, ValueError) as error:
            raise OSError(errno.EIO, f"the index is damaged ({error}); delete the folder", os.fspath(folder)) from error

    def find(self, name: str) -> Member | None:
        """Where an image is, or None."""
        row = self._connection.execute("SELECT shard, start, size FROM members WHERE name = ?", (name,)).fetchone()
        return None if row is None else Member(name, self.shards[row[0]], row[1], row[2])

    def records(self) -> list[tuple[int, Record]]:
        """All images by key and name, with the number of each image's shard."""
        rows = self._connection.execute("SELECT shard, name, start, size, key, label FROM members ORDER BY key, name")
        return [(row[0], Record(*row[1:])) for row in rows]

    def close(self) -> None:
        self._connection.close()


def _index(folder: str) -> Index:
    """The index of a folder, opened once in a thread and again if it is replaced."""
    status = os.stat(os.path.join(folder, INDEX))
    version = (os.getpid(), status.st_ino, status.st_mtime_ns)  # a forked process may not use its parent's connection
    cached: dict[str, tuple[tuple[int, ...], Index]] = _connections.__dict__.setdefault("cached", {})
    if folder not in cached or cached[folder][0] != version:
        while len(cached) >= 64:
            cached.pop(next(iter(cached)))
        cached[folder] = version, Index(folder)
    return cached[folder][1]


def locate(path: PathLike) -> Member | None:
    """Where the image with this path is; None if it is no path of an image in a shard.

    Raises:
        FileNotFoundError: there is no such image, or its shard is gone.
        OSError: the shard is not the one that was indexed.
    """
    name = os.fspath(path)
    parts = split_path(name) if isinstance(name, str) and ENDING in name else None
    if parts is None:
        return None
    found = _index(parts[0]).find(parts[1])
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    status = os.stat(found.shard.file)
    if (status.st_size, status.st_mtime_ns) != (found.shard.size, found.shard.mtime_ns):
        raise OSError(errno.ESTALE, f"shard '{found.shard.source}' was changed after it was indexed", name)
    return found


def read_member(member: Member) -> bytes:
    """The bytes of an image.

    Raises:
        OSError: they cannot be read.
    """
    with open(member.shard.file, "rb") as file:
        file.seek(member.start)
        data = file.read(member.size)
    if len(data) != member.size:
        raise OSError(errno.EIO, f"shard '{member.shard.source}' ends within it", member.name)
    return data


def cached_path(member: Member) -> str:
    """The path of an image in the index of its shard alone: it says what the image is, and not where it is."""
    return str(folder_of(member.shard.digest) / OF_SHARD / member.name.partition("/")[2])


def describe(path: str) -> str:
    """How messages name an image: "0001.jpg in train-000.tar", or the path of a file as it is."""
    try:
        found = locate(path)
    except OSError:
        return path
    return path if found is None else f"{found.name.partition('/')[2]} in {found.shard.source}"


def exists(path: str) -> bool:
    """Whether there is an image with this path, in a shard or as a file."""
    try:
        return locate(path) is not None or os.path.exists(path)
    except OSError:
        return False
