"""Reading archives that strangers made: their members one after the other, told apart and checked before use."""

from __future__ import annotations

import bz2
import gzip
import lzma
import ntpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from dassl_lite.utils.errors import UserError

_MAX_HEADER = 1 << 20  # bytes of a member's name and attributes
_MAX_LINK = 4096
_BLOCK = 1 << 20
_OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a compression that this Python does not know
    UnicodeError,
)


class ArchiveError(UserError):
    """An archive that is broken, or that should not be unpacked; the message goes on after the archive's name."""


class Member(NamedTuple):
    """What an archive holds: a file if there is ``content``, a link if there is ``link``, else a folder.

    ``path`` is relative, without ``..``; ``content`` can be read until the next member is asked for; ``link`` is
    the target.
    """

    path: PurePosixPath
    size: int = 0
    content: IO[bytes] | None = None
    link: str = ""


@contextmanager
def open_archive(path: Path) -> Iterator[Iterator[Member]]:
    """The members of a zip or tar archive, whatever its name says.

    Raises:
        ArchiveError: it is neither, broken, or a member's name leads out of the folder, or is a device.
    """
    with open(path, "rb") as file:
        beginning = file.read(6)
    try:
        if beginning.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                yield _zip_members(archive)
        else:
            # Not tarfile's own decompression: it takes the end of a truncated file for the end of the archive.
            opened = next((opener for magic, opener in _OPENERS.items() if beginning.startswith(magic)), open)
            with (
                opened(path, "rb") as content,
                tarfile.open(fileobj=content, mode="r|", bufsize=_BLOCK, tarinfo=_SmallTarInfo) as stream,
            ):
                yield _tar_members(stream)
    except _BROKEN as error:
        raise ArchiveError(f"is broken: {str(error) or type(error).__name__}") from error


def safe_path(name: str) -> PurePosixPath:
    """A member's name as a relative path, on whatever system it was written.

    Raises:
        ArchiveError: it is absolute, or leads out.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ntpath.splitdrive(name)[0] or "\0" in name:
        raise ArchiveError(f"holds '{name}', which leads out of the folder")
    return path


def check_link(path: PurePosixPath, target: str, *, from_root: bool) -> None:
    """Raise ArchiveError for a link that leads out; ``from_root``: the target counts from the archive's top."""
    depth = 0 if from_root else len(path.parts) - 1
    wanted = PurePosixPath(target.replace("\\", "/"))
    for part in wanted.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            break
    if depth < 0 or wanted.is_absolute() or ntpath.splitdrive(target)[0]:
        raise ArchiveError(f"holds a link out of the folder: '{path}' -> '{target}'")


class _SmallTarInfo(tarfile.TarInfo):
    """A member whose long name or attributes must be short: tarfile reads them into memory whatever their size."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _SmallTarInfo:
        info = super().frombuf(buf, encoding, errors)
        is_header = info.type not in tarfile.SUPPORTED_TYPES or info.type in (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )
        if is_header and info.size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {info.size:,} bytes")
        return info


def _tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    for info in archive:
        path = safe_path(info.name)
        if info.issym() or info.islnk():
            check_link(path, info.linkname, from_root=info.islnk())
            yield Member(path, link=info.linkname)
        elif info.isreg():
            if hasattr(tarfile, "data_filter"):  # the library's own checks, where this Python has them
                tarfile.data_filter(info, ".")
            yield Member(path, info.size, archive.extractfile(info))
        elif info.isdir():
            yield Member(path)
        else:
            raise ArchiveError(f"holds '{info.name}', which is neither a file nor a folder")


def _zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        path = safe_path(info.filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir():
            yield Member(path)
        elif info.flag_bits & 0x1:
            raise ArchiveError(f"holds '{info.filename}', which is encrypted")
        elif kind == stat.S_IFLNK:
            with archive.open(info) as content:
                target = content.read(_MAX_LINK).decode("utf-8", "surrogateescape")
            check_link(path, target, from_root=False)
            yield Member(path, link=target)
        elif kind in (0, stat.S_IFREG):
            with archive.open(info) as content:
                yield Member(path, info.file_size, content)
        else:
            raise ArchiveError(f"holds '{info.filename}', which is neither a file nor a folder")
