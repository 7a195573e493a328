"""How a dataset's files are described; the table of them is :mod:`dassl_lite.downloads.sources`."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """Ceilings on what an archive may unpack to.

    Args:
        files: number of files.
        bytes: bytes in all.
        growth: bytes unpacked per byte of the archive; pictures do not compress, a bomb does.
    """

    files: int = 150_000
    bytes: int = 20 * GIB
    growth: int = 20


@dataclass(frozen=True)
class Unpack:
    """What to take out of an archive.

    Args:
        take: folder in the archive, "" for all of it.
        to: folder in the dataset's folder that its content goes into, "" for that folder itself.
        inner: archive in the archive that ``take`` is in, if it is not in the outer one.
        limits: see there.
    """

    take: str
    to: str
    inner: str = ""
    limits: Limits = Limits()


@dataclass(frozen=True)
class File:
    """A file to get.

    Args:
        name: its name, in the dataset's folder.
        urls: where it is, tried in order: ``https://...`` or ``drive:ID``; empty if it is to be fetched by hand.
        size: bytes, 0 if not known.
        digest: ``md5:...`` or ``sha256:...`` in hex, "" if not known.
        unpack: what to take out of it, if it is an archive.
        provides: path in the dataset's folder that is there once the file has been dealt with; for an archive it
            takes its name last. Default: where it is unpacked to, else its name.
        optional: the dataset works without.
    """

    name: str
    urls: tuple[str, ...] = ()
    size: int = 0
    digest: str = ""
    unpack: Unpack | None = None
    provides: str = ""
    optional: bool = False

    @property
    def result(self) -> str:
        """Path in the dataset's folder that shows that there is nothing left to do."""
        return self.provides or (self.unpack.to if self.unpack else "") or self.name


@dataclass(frozen=True)
class Source:
    """A dataset's files, and what is there when all is well.

    Args:
        folder: the dataset's folder under the root.
        files: small ones first, so that what is quick is done before what may fail.
        images: images in train, val and test; None for a part that the dataset does not have of its own.
        classes: number of classes.
        by_hand: where the files without an address are found, and what to do with them.
    """

    folder: str
    files: tuple[File, ...]
    images: tuple[int | None, int | None, int]
    classes: int
    by_hand: str = ""


def drive(identity: str) -> tuple[str, ...]:
    """The one address of a file on Google Drive."""
    return (f"drive:{identity}",)
