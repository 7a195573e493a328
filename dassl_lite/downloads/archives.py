"""Unpack untrusted archives into a new folder: nothing is written outside it, and a bomb cannot fill the disk.

Only plain files are written, under names checked beforehand, so there is never a link for a later member to be written
through. Links inside the archive are skipped; links out of it, devices and bombs are refused.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import ntpath
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, NamedTuple, NoReturn

from dassl_lite.utils.errors import MISFITS, UserError
from dassl_lite.utils.files import open_file
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

GIB = 1 << 30
_MAX_HEADER = 1 << 20  # bytes of a member's name and attributes
_MAX_GLOBALS = 1 << 20  # bytes of attributes of all members, which tarfile keeps
_MAX_CHAIN = 8  # header blocks of one member
_MAX_LINK = 4096
_MAX_NAME = 255  # bytes of a file's name
_MAX_FOLDERS = 100  # nested folders
_BLOCK = 1 << 20
_ALLOWANCE = 64 << 20  # bytes that any archive may unpack to
_BAD_NAMES = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ELOOP}
_BROKEN = (
    *MISFITS,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
)


@dataclass(frozen=True)
class Limits:
    """Ceilings on what an archive may unpack to.

    Args:
        files: number of files.
        bytes: total size.
        growth: unpacked bytes per byte of the archive; images hardly compress, a bomb does.
    """

    files: int = 150_000
    bytes: int = 20 * GIB
    growth: int = 20


class ArchiveError(UserError):
    """An archive that is broken or unsafe; the message continues after the archive's name."""


class Member(NamedTuple):
    """An entry of an archive: a file if ``content`` is set, a link if ``link`` is set, else a folder.

    Args:
        path: relative, without ``..``.
        size: declared size in bytes.
        content: readable until the next member is requested.
        link: the link's target.
    """

    path: PurePosixPath
    size: int = 0
    content: IO[bytes] | None = None
    link: str = ""


def unpack(archive: Path, into: Path, take: str = "", limits: Limits | None = None) -> int:
    """Unpack the folder ``take`` of an archive into ``into``, which must not exist yet.

    Args:
        take: folder (or file) in the archive, "" for everything. Its content goes into ``into``; a file keeps its name.
        limits: ceilings on the result; None for the usual ones.

    Returns:
        The number of files written, at least 1.

    Raises:
        ArchiveError: the archive is broken or unsafe, or contains nothing under ``take``. Everything written so far
            is removed.
    """
    into.mkdir(parents=True)
    try:
        budget = _Budget(limits or Limits(), archive.stat().st_size)
        with open_archive(archive, limits) as members:
            written, links, tops = 0, 0, set()
            for member in members:
                budget.count(member)
                if member.content is not None and not member.path.parts:
                    raise ArchiveError("contains a file without a name")
                tops.add(member.path.parts[0] if member.path.parts else ".")
                path = _relative_to(member.path, take)
                if path is None or _is_litter(member.path):
                    continue
                if member.content is None:
                    links += bool(member.link)
                    continue
                _write(member.content, member.size, into / path, budget)
                written += 1
        if links:
            logger.warning(f"Skipped {links} links in {archive.name}")
        if not written:
            found = ", ".join(sorted(tops)[:5]) or "nothing"
            raise ArchiveError(f"contains no '{take}', only {found}" if take else "contains no files")
    except BaseException as error:
        shutil.rmtree(into, ignore_errors=True)
        if isinstance(error, ArchiveError):
            raise ArchiveError(f"archive '{archive}' {error}") from error
        raise
    return written


@contextmanager
def open_archive(path: Path, limits: Limits | None = None) -> Iterator[Iterator[Member]]:
    """Iterate over the members of a zip or tar archive, whatever its file name says.

    Args:
        limits: ceilings on what is read from it; None for the usual ones.

    Raises:
        ArchiveError: it is neither, it is broken, or a member is a device or has a name that points out of the folder.
    """
    try:
        with open_file(path) as file:
            magic = file.read(6)
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            if magic.startswith(b"PK"):
                with zipfile.ZipFile(file) as archive:
                    yield _zip_members(archive)
            else:
                # Not tarfile's own decompression: it mistakes the end of a truncated file for the end of the archive.
                content = _Metered(_decompressed(file, magic), size * (limits or Limits()).growth + 2 * _ALLOWANCE)
                with tarfile.open(fileobj=content, mode="r|", bufsize=_BLOCK, tarinfo=_tar_info()) as stream:  # type: ignore[call-overload]
                    yield _tar_members(stream)
    except UserError:
        raise
    except _BROKEN as error:
        raise ArchiveError(f"is broken: {str(error) or type(error).__name__}") from error
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # bz2's have none; EINVAL: a pipe or device, an impossible place
            raise
        raise ArchiveError(f"is broken: {error.strerror or error}") from error


def _decompressed(file: BinaryIO, magic: bytes) -> IO[bytes]:
    if magic.startswith(b"\x1f\x8b"):
        return gzip.open(file)  # type: ignore[return-value]
    if magic.startswith(b"BZh"):
        return bz2.open(file)
    return lzma.open(file) if magic.startswith(b"\xfd7zXZ\0") else file


class _Metered:
    """Reads a stream up to a number of bytes: what tarfile reads by itself, headers and skipped members, counts too."""

    def __init__(self, content: IO[bytes], limit: int) -> None:
        self._content, self._left, self._limit = content, limit, limit

    def read(self, size: int) -> bytes:
        data = self._content.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ArchiveError(f"unpacks to more than {self._limit:,} bytes, the limit; it was not unpacked")
        return data


def safe_path(name: str) -> PurePosixPath:
    """Convert a member's name, from whatever operating system, to a relative path.

    Raises:
        ArchiveError: it is absolute, or points out of the folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > _MAX_NAME or len(path.parts) > _MAX_FOLDERS:
        raise ArchiveError(f"contains a name of {longest} bytes, {len(path.parts)} folders deep; no disk holds it")
    if path.is_absolute() or ".." in path.parts or ntpath.splitdrive(name)[0] or "\0" in name:
        raise ArchiveError(f"contains '{name}', which points outside the folder")
    return path


def check_link(path: PurePosixPath, target: str, *, from_root: bool) -> None:
    """Refuse a link that leads out of the archive.

    Args:
        path: the link.
        from_root: ``target`` is relative to the top of the archive, not to the link's folder.

    Raises:
        ArchiveError: it leads out.
    """
    depth = 0 if from_root else len(path.parts) - 1
    destination = PurePosixPath(target.replace("\\", "/"))
    for part in destination.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            break
    if depth < 0 or destination.is_absolute() or ntpath.splitdrive(target)[0]:
        raise ArchiveError(f"contains a link that points outside the folder: '{path}' -> '{target}'")


def _tar_info() -> type[tarfile.TarInfo]:
    """The members of one archive: their long names and attributes must be small, and no file sparse.

    tarfile reads both into memory whatever their size, follows a chain of them by recursion, and takes a damaged header
    for the end of the archive. Every version of Python calls the two methods overridden here for every header;
    newer ones no longer call the public ``frombuf``.
    """
    chain = total = 0

    class SmallTarInfo(tarfile.TarInfo):
        @classmethod
        def fromtarfile(cls, archive: tarfile.TarFile) -> SmallTarInfo:
            try:
                return super().fromtarfile(archive)
            except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
                raise tarfile.ReadError(f"a damaged header ({error})") from error

        def _proc_member(self, archive: tarfile.TarFile) -> SmallTarInfo:
            nonlocal chain, total
            is_header = self.type not in tarfile.SUPPORTED_TYPES or self.type in (
                tarfile.GNUTYPE_LONGNAME,
                tarfile.GNUTYPE_LONGLINK,
            )
            chain = chain + 1 if is_header else 0
            total += self.size if self.type == tarfile.XGLTYPE else 0
            if is_header and (self.size > _MAX_HEADER or total > _MAX_GLOBALS or chain > _MAX_CHAIN):
                raise tarfile.ReadError(f"a header of {self.size:,} bytes, {chain} in a row")
            return super()._proc_member(archive)  # type: ignore[misc]

        def _refuse_sparse(self, *_: object) -> NoReturn:
            raise tarfile.ReadError("a sparse file, which no dataset needs")

        _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse

    return SmallTarInfo


def _tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    while (info := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # or it keeps all of them
        path = safe_path(info.name)
        if info.issym() or info.islnk():
            check_link(path, info.linkname, from_root=info.islnk())
            yield Member(path, link=info.linkname)
        elif info.isreg():
            if hasattr(tarfile, "data_filter"):  # the standard library's own checks, where this Python has them
                tarfile.data_filter(info, ".")
            yield Member(path, info.size, archive.extractfile(info))
        elif info.isdir():
            yield Member(path)
        else:
            raise ArchiveError(f"contains '{info.name}', which is neither a file nor a folder")


def _zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        if not info.filename:
            raise ArchiveError("contains a file without a name")
        path = safe_path(info.filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir():
            yield Member(path)
        elif info.flag_bits & 0x1:
            raise ArchiveError(f"contains '{info.filename}', which is encrypted")
        elif kind == stat.S_IFLNK:
            with archive.open(info) as content:
                target = content.read(_MAX_LINK).decode("utf-8", "surrogateescape")
            check_link(path, target, from_root=False)
            yield Member(path, link=target)
        elif kind in (0, stat.S_IFREG):
            with archive.open(info) as content:
                yield Member(path, info.file_size, content)
        else:
            raise ArchiveError(f"contains '{info.filename}', which is neither a file nor a folder")


def _relative_to(path: PurePosixPath, take: str) -> PurePosixPath | None:
    """``path`` relative to ``take``; None if it is not under it."""
    folder = PurePosixPath(take).parts
    if path.parts[: len(folder)] != folder:
        return None
    return PurePosixPath(*path.parts[len(folder) :]) if len(path.parts) > len(folder) else PurePosixPath(path.name)


def _is_litter(path: PurePosixPath) -> bool:
    """Whether this is one of the files that macOS adds to archives."""
    return "__MACOSX" in path.parts or path.name.startswith("._") or path.name == ".DS_Store"


def _write(content: IO[bytes], size: int, path: Path, budget: _Budget) -> None:
    written = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            while block := content.read(_BLOCK):
                budget.spend(len(block))
                written += len(block)
                file.write(block)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise ArchiveError(f"contains '{path.name}' both as a file and as a folder") from error
    except OSError as error:
        if error.errno not in _BAD_NAMES:
            raise
        raise ArchiveError(f"contains a name that this disk cannot hold: '{path.name}'") from error
    if written != size:
        raise ArchiveError(f"is truncated: '{path.name}' has {written:,} of {size:,} bytes")


class _Budget:
    """How many files and bytes may still be written.

    Args:
        limits: the ceilings.
        size: size of the archive in bytes.
    """

    def __init__(self, limits: Limits, size: int) -> None:
        self._files = limits.files
        self._bytes = min(limits.bytes, size * limits.growth + _ALLOWANCE)
        self._max_files, self._max_bytes = self._files, self._bytes

    def count(self, member: Member) -> None:
        """Deduct one member, before any of it is written."""
        self._files -= 1
        if self._files < 0:
            raise ArchiveError(f"contains more than {self._max_files:,} files, the limit; it was not unpacked")
        if member.size > self._bytes:
            self._refuse()

    def spend(self, size: int) -> None:
        """Deduct bytes about to be written."""
        self._bytes -= size
        if self._bytes < 0:
            self._refuse()

    def _refuse(self) -> None:
        raise ArchiveError(f"unpacks to more than {self._max_bytes:,} bytes, the limit; it was not unpacked")
