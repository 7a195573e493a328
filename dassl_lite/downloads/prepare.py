"""Getting a dataset's files: each once, and nothing that is there already."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import filelock

from dassl_lite.downloads.acquire import acquire
from dassl_lite.downloads.fetch import Patience
from dassl_lite.downloads.place import is_there, place
from dassl_lite.downloads.remote import File, Source
from dassl_lite.downloads.sources import SOURCES
from dassl_lite.downloads.verify import WrongFileError, check_file
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.files import atomic_path, cache_root, digest_of

logger = logging.getLogger(__name__)

WORK_FOLDER = ".prepare"  # in the dataset's folder, so that what is in it can be renamed into place


def prepare(
    name: str,
    root: str | os.PathLike[str],
    *,
    keep_archives: bool = False,
    patience: Patience | None = None,
    sources: Mapping[str, Source] = SOURCES,
) -> None:
    """Get a dataset's files into its folder under ``root``.

    Args:
        name: registered name of the dataset.
        keep_archives: leave downloaded archives in the dataset's folder instead of removing them once unpacked.
        patience: with servers.
        sources: the table.

    Raises:
        UserError: something could not be had; says what, and what to do. Everything else has been dealt with.
    """
    if name not in sources:
        raise unknown("dataset to download", name, sources)
    source = sources[name]
    folder = Path(root).expanduser() / source.folder
    try:
        with _alone_in(folder):
            by_hand, problems = _get_all(source, folder, sources, patience, keep_archives)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk of '{folder}' is full; make room, then run this again to go on") from error
        raise UserError(f"cannot write to '{error.filename or folder}': {error.strerror or error}") from error
    if by_hand:
        logger.info("%s", instructions(name, source, folder, by_hand))
        names = ", ".join(file.name for file in by_hand if not file.optional)
        problems.append(f"fetch by hand {names}, as said above, then run this again")
    if problems:
        raise UserError(f"{name} is not complete: {'; '.join(problems)}")


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Make the folder, and see that no other process prepares it at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    locks = cache_root() / "locks"  # not in the dataset's folder, which is left clean
    locks.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(locks / f"prepare-{digest_of(os.path.realpath(folder))[:16]}.lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise UserError(f"another process is preparing '{folder}' at the moment") from error


def _get_all(
    source: Source, folder: Path, sources: Mapping[str, Source], patience: Patience | None, keep_archives: bool
) -> tuple[list[File], list[str]]:
    """Deal with every file. Returns those to be fetched by hand, if one of them is needed, and what went wrong."""
    by_hand: list[File] = []
    problems: list[str] = []
    for file in source.files:
        if is_there(folder / file.result):
            logger.info("%s is there", folder / file.result)
            continue
        try:
            if not _get(file, folder, _twins(file, folder, sources), patience, keep_archives):
                by_hand.append(file)
        except UserError as error:
            if file.optional:
                logger.warning("%s (the dataset works without)", error)
            else:
                problems.append(str(error))
    with contextlib.suppress(OSError):  # not empty: what has come in part, or was rejected, stays
        (folder / WORK_FOLDER).rmdir()
    return (by_hand if any(not file.optional for file in by_hand) else []), problems


def _get(file: File, folder: Path, twins: Sequence[Path], patience: Patience | None, keep_archives: bool) -> bool:
    """Put one file, or what it holds, into its place. False if it is to be fetched by hand."""
    given, work = folder / file.name, folder / WORK_FOLDER
    if file.unpack and given.is_file():  # somebody has put it there
        try:
            check_file(given, file)
        except WrongFileError as error:
            raise WrongFileError(f"'{given}' is not the file to unpack: {error}; remove it") from error
        place(given, file, folder, work)
        return True
    if not file.urls:
        return False
    if not file.unpack and twins:
        logger.info("Copying %s", twins[0])
        with atomic_path(given) as temporary:
            shutil.copyfile(twins[0], temporary)
        return True
    got = acquire(file, folder, work, patience)
    if file.unpack:
        place(got, file, folder, work)
    if not file.unpack or keep_archives:
        os.replace(got, given)
    else:
        got.unlink()
    return True


def _twins(file: File, folder: Path, sources: Mapping[str, Source]) -> list[Path]:
    """The same file in the folders of other datasets."""
    having = (source.folder for source in sources.values() if any(other.urls == file.urls for other in source.files))
    paths = [folder.parent / other / file.name for other in having if other != folder.name]
    return [path for path in paths if path.is_file()]


def instructions(name: str, source: Source, folder: Path, files: Sequence[File]) -> str:
    """Which files to fetch by hand, and where to put them; several lines."""
    lines = [f"{name}: to be fetched by hand. {source.by_hand}"]
    for file in files:
        facts = [f"{file.size:,} bytes" if file.size else "", file.digest.replace(":", " ", 1)]
        result = f"{folder / file.result}{os.sep if file.result != file.name else ''}"
        where = f"{folder / file.name}, or what is in it as {result}" if file.unpack else result
        lines.append(f"  {file.name}{' (optional)' if file.optional else ''}: {', '.join(filter(None, facts))}")
        lines.append(f"    to {where}")
    return "\n".join(lines)
