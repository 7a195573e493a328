"""Getting a dataset's files into their places: each once, whole or not at all, and nothing that is there already."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import filelock

from dassl_lite.downloads.archives import unpack
from dassl_lite.downloads.fetch import Patience, WebPageError, WrongFileError, check_file, fetch, fetch_from_drive
from dassl_lite.downloads.sources import SOURCES, File, Source
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.files import atomic_path, cache_root, digest_of

logger = logging.getLogger(__name__)

_DRIVE = "drive:"
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


def acquire(file: File, folder: Path, work: Path, patience: Patience | None = None) -> Path:
    """Fetch a file into ``work`` from the first of its addresses that has it.

    Args:
        folder: the dataset's folder, for what is said to the user.
        work: folder for what is not finished.

    Returns:
        The file, checked. One that is there already (its unpacking was cut) is not fetched again.

    Raises:
        UserError: none of the addresses has it; says what was wrong with each, and what to do.
    """
    target = work / file.name
    work.mkdir(exist_ok=True)
    problems: list[str] = []
    for url in file.urls:
        try:
            if not target.is_file():
                logger.info("Downloading %s from %s", file.name, _page_of(url))
                _fetch(url, target, file.size, patience)
            check_file(target, file)
        except WebPageError:
            target.unlink(missing_ok=True)
            problems.append(_told_of_page(url, folder / file.name))
        except WrongFileError as error:
            problems.append(f"{error}; {_put_aside(target, work, folder / file.result)}")
        except UserError as error:
            problems.append(str(error))
        else:
            return target
    raise UserError("; ".join(problems))


def _fetch(url: str, target: Path, size: int, patience: Patience | None) -> None:
    if url.startswith(_DRIVE):
        fetch_from_drive(url.removeprefix(_DRIVE), target, patience)
    else:
        fetch(url, target, size, patience)


def _page_of(url: str) -> str:
    """Where a browser finds the file."""
    return f"https://drive.google.com/file/d/{url.removeprefix(_DRIVE)}/view" if url.startswith(_DRIVE) else url


def _told_of_page(url: str, place: Path) -> str:
    by_hand = f"open {_page_of(url)} in a browser, and save the file as '{place}'"
    if url.startswith(_DRIVE):
        return (
            f"Google Drive sends a web page instead of {place.name}, as it does when too many have asked for a file; "
            f"wait a day, or {by_hand}"
        )
    return f"{url} sends a web page instead of {place.name}: it may have moved, or want a login; {by_hand}"


def _put_aside(path: Path, work: Path, result: Path) -> str:
    aside = work / "rejected" / path.name
    aside.parent.mkdir(exist_ok=True)
    os.replace(path, aside)
    return (
        f"it is kept as '{aside}': run this again to download it anew, or, if you trust it, put what is in it at "
        f"'{result}' yourself"
    )


def is_there(path: Path) -> bool:
    """Whether there is a file, or a folder with something in it."""
    return any(path.iterdir()) if path.is_dir() else path.is_file()


def place(archive: Path, file: File, folder: Path, work: Path) -> None:
    """Unpack an archive beside its place and rename it there, so that a killed unpacking leaves nothing there.

    Args:
        folder: the dataset's folder.
        work: a folder on the same disk.

    Raises:
        UserError: the archive is not fit, see :func:`unpack`, or does not hold what it should.
    """
    what = file.unpack
    assert what is not None
    logger.info("Unpacking %s", archive.name)
    staging = work / "unpacking"
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    try:
        if what.inner:
            unpack(archive, staging / "outer", what.inner, what.limits)
            archive = staging / "outer" / Path(what.inner).name
        unpack(archive, staging / "whole", what.take, what.limits)
        if what.to:
            _put(staging / "whole", folder / what.to)
        else:
            _put_each(staging / "whole", folder, file)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _put_each(whole: Path, folder: Path, file: File) -> None:
    """Put everything in ``whole`` into the folder; what tells that all of it is there comes last."""
    names = sorted(os.listdir(whole), key=lambda name: (name == file.result, name))
    if file.result not in names:
        raise UserError(f"archive {file.name} holds no '{file.result}', only {', '.join(names[:5])}")
    for name in names:
        if is_there(folder / name):
            logger.info("'%s' is there already, and is left as it is", folder / name)
        else:
            _put(whole / name, folder / name)


def _put(what: Path, where: Path) -> None:
    """Rename; an empty folder gives way."""
    where.parent.mkdir(parents=True, exist_ok=True)
    if where.is_dir():
        where.rmdir()
    os.replace(what, where)
