"""Unpacking into a new folder: nothing lands outside it, and it is not filled without end.

Only plain files are written, with names checked beforehand, so there never is a link that a later member could be
written through. Links inside the archive are passed over; links out of it, devices and bombs are refused.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path, PurePosixPath
from typing import IO

from dassl_lite.downloads.archives import ArchiveError, Member, open_archive
from dassl_lite.downloads.remote import Limits

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20
_ALLOWANCE = 64 << 20  # bytes that any archive may unpack to


def unpack(archive: Path, into: Path, take: str = "", limits: Limits | None = None) -> int:
    """Unpack the folder ``take`` of an archive into ``into``, which must not be there yet.

    Args:
        take: folder (or file) in the archive, "" for all. Its content goes into ``into``; a file keeps its name.

    Returns:
        The number of files written, at least 1.

    Raises:
        ArchiveError: the archive is broken, holds what it should not, or nothing under ``take``. What has been
            written so far is removed.
    """
    into.mkdir(parents=True)
    try:
        budget = _Budget(limits or Limits(), archive.stat().st_size)
        with open_archive(archive) as members:
            written, links, tops = 0, 0, set()
            for member in members:
                budget.count(member)
                tops.add(member.path.parts[0] if member.path.parts else ".")
                path = _inside(member.path, take)
                if path is None or _is_litter(member.path):
                    continue
                if member.content is None:
                    links += bool(member.link)
                    continue
                _write(member.content, member.size, into / path, budget)
                written += 1
        if links:
            logger.warning("Passed over %d links in %s", links, archive.name)
        if not written:
            found = ", ".join(sorted(tops)[:5]) or "nothing"
            raise ArchiveError(f"holds no '{take}', only {found}" if take else "holds no file")
    except BaseException as error:
        shutil.rmtree(into, ignore_errors=True)
        if isinstance(error, ArchiveError):
            raise ArchiveError(f"archive '{archive}' {error}") from error
        raise
    return written


def _inside(path: PurePosixPath, take: str) -> PurePosixPath | None:
    """``path`` relative to ``take``; None if it is not under it."""
    wanted = PurePosixPath(take).parts
    if path.parts[: len(wanted)] != wanted:
        return None
    return PurePosixPath(*path.parts[len(wanted) :]) if len(path.parts) > len(wanted) else PurePosixPath(path.name)


def _is_litter(path: PurePosixPath) -> bool:
    """What macOS puts into archives."""
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
        raise ArchiveError(f"holds '{path.name}' both as a file and as a folder") from error
    if written != size:
        raise ArchiveError(f"is cut short: '{path.name}' has {written:,} of {size:,} bytes")


class _Budget:
    """What may still be written.

    Args:
        limits: ceilings from the table.
        size: bytes of the archive.
    """

    def __init__(self, limits: Limits, size: int) -> None:
        self._files = limits.files
        self._bytes = min(limits.bytes, size * limits.growth + _ALLOWANCE)
        self._max_files, self._max_bytes = self._files, self._bytes

    def count(self, member: Member) -> None:
        """Take one member off, before any of it is written."""
        self._files -= 1
        if self._files < 0:
            raise ArchiveError(f"holds more than {self._max_files:,} files; it is not unpacked")
        if member.size > self._bytes:
            self._refuse()

    def spend(self, size: int) -> None:
        self._bytes -= size
        if self._bytes < 0:
            self._refuse()

    def _refuse(self) -> None:
        raise ArchiveError(f"unpacks to more than {self._max_bytes:,} bytes; it is not unpacked")
