"""Install a dataset's files: each is downloaded once, put in place whole or not at all, and never overwritten."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import filelock

from dassl_lite.downloads.archives import unpack
from dassl_lite.downloads.fetch import (
    DRIVE,
    Patience,
    WebPageError,
    WrongFileError,
    check_file,
    fetch,
    lock_for,
    looks_like_page,
)
from dassl_lite.downloads.sources import SOURCES, File, Source
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.files import atomic_path
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

WORK_FOLDER = ".prepare"  # inside the dataset's folder, so that its content can be renamed into place


def prepare(
    name: str,
    root: str | os.PathLike[str],
    *,
    keep_archives: bool = False,
    patience: Patience | None = None,
    sources: Mapping[str, Source] = SOURCES,
) -> None:
    """Download and unpack whatever a dataset's folder under ``root`` still lacks.

    Args:
        name: registered name of the dataset.
        keep_archives: leave downloaded archives in the dataset's folder instead of removing them once unpacked.
        patience: how long to wait for servers.
        sources: where each dataset's files come from.

    Raises:
        UserError: a file is unavailable; says which, and what to do. All other files have been installed.
    """
    if name not in sources:
        raise unknown("dataset to download", name, sources)
    source = sources[name]
    folder = Path(root).expanduser() / source.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_for(folder).acquire(timeout=0):
            manual, problems = _install_all(source, folder, sources, patience, keep_archives)
    except filelock.Timeout as error:
        raise UserError(f"another process is preparing '{folder}'") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk of '{folder}' is full; free some space, then run this again") from error
        raise UserError(f"cannot write to '{error.filename or folder}': {error.strerror or error}") from error
    if manual:
        logger.info(instructions(name, source, folder, manual))
        names = ", ".join(file.name for file in manual if not file.optional)
        problems.append(f"download {names} manually, as listed above, then run this again")
    if problems:
        raise UserError(f"{name} is not complete: {'; '.join(problems)}")


def _install_all(
    source: Source, folder: Path, sources: Mapping[str, Source], patience: Patience | None, keep_archives: bool
) -> tuple[list[File], list[str]]:
    """Install every file. Returns those to download manually, if one of them is required, and what went wrong."""
    manual: list[File] = []
    problems: list[str] = []
    for file in source.files:
        if _exists(folder / file.result):
            logger.info(f"Found {folder / file.result}")
            continue
        try:
            if not _install(file, folder, _copies(file, folder, sources), patience, keep_archives):
                manual.append(file)
        except UserError as error:
            if file.optional:
                logger.warning(f"{error} (the dataset works without it)")
            else:
                problems.append(str(error))
    with contextlib.suppress(OSError):  # not empty: it keeps partial downloads and rejected files
        (folder / WORK_FOLDER).rmdir()
    return (manual if any(not file.optional for file in manual) else []), problems


def _install(file: File, folder: Path, copies: Sequence[Path], patience: Patience | None, keep_archives: bool) -> bool:
    """Put one file, or an archive's content, into place. False if it must be downloaded manually."""
    given, work = folder / file.name, folder / WORK_FOLDER
    if file.unpack and given.is_file():  # the user has put it there
        try:
            check_file(given, size=file.size, digest=file.digest)
        except WrongFileError as error:
            raise WrongFileError(f"'{given}' is not the expected file: {error}; remove it") from error
        _unpack_into_place(given, file, folder, work)
        return True
    if not file.urls:
        return False
    if not file.unpack and copies:
        logger.info(f"Copying {copies[0]}")
        with atomic_path(given) as temporary:
            shutil.copyfile(copies[0], temporary)
        return True
    downloaded = _download(file, folder, work, patience)
    if file.unpack:
        _unpack_into_place(downloaded, file, folder, work)
    if not file.unpack or keep_archives:
        os.replace(downloaded, given)
    else:
        downloaded.unlink()
    return True


def _copies(file: File, folder: Path, sources: Mapping[str, Source]) -> list[Path]:
    """Copies of the file in the folders of other datasets."""
    owners = (source.folder for source in sources.values() if any(other.urls == file.urls for other in source.files))
    paths = [folder.parent / owner / file.name for owner in owners if owner != folder.name]
    return [path for path in paths if path.is_file()]


def instructions(name: str, source: Source, folder: Path, files: Sequence[File]) -> str:
    """Which files to download manually, and where to put them; several lines."""
    lines = [f"{name}: download these files manually. {source.manual}"]
    for file in files:
        facts = [f"{file.size:,} bytes" if file.size else "", file.digest.replace(":", " ", 1)]
        result = f"{folder / file.result}{os.sep if file.result != file.name else ''}"
        where = f"{folder / file.name}, or its content as {result}" if file.unpack else result
        lines.append(f"  {file.name}{' (optional)' if file.optional else ''}: {', '.join(filter(None, facts))}")
        lines.append(f"    to {where}")
    return "\n".join(lines)


def _download(file: File, folder: Path, work: Path, patience: Patience | None) -> Path:
    """Download a file into ``work`` from the first of its URLs that provides it.

    A file that is already there, because its unpacking was interrupted, is not downloaded again.

    Raises:
        UserError: none of the URLs provides it; says what went wrong with each, and what to do.
    """
    target = work / file.name
    work.mkdir(exist_ok=True)
    problems: list[str] = []
    for url in file.urls:
        try:
            if not target.is_file():
                logger.info(f"Downloading {file.name} from {_browser_url(url)}")
                fetch(url, target, size=file.size, patience=patience)
            if looks_like_page(target):
                target.unlink()
                raise WebPageError(file.name)
            check_file(target, size=file.size, digest=file.digest)
        except WebPageError:
            problems.append(_web_page_problem(url, folder / file.name))
        except WrongFileError as error:
            problems.append(f"{error}; {_reject(target, work, folder / file.result)}")
        except UserError as error:
            problems.append(str(error))
        else:
            return target
    raise UserError("; ".join(problems))


def _browser_url(url: str) -> str:
    return f"https://drive.google.com/file/d/{url.removeprefix(DRIVE)}/view" if url.startswith(DRIVE) else url


def _web_page_problem(url: str, place: Path) -> str:
    manually = f"open {_browser_url(url)} in a browser and save the file as '{place}'"
    if url.startswith(DRIVE):
        return (
            f"Google Drive sent a web page instead of {place.name}, as it does when the file's download quota is "
            f"exceeded; wait a day, or {manually}"
        )
    return f"{url} returned a web page instead of {place.name}: it may have moved, or require a login; {manually}"


def _reject(path: Path, work: Path, result: Path) -> str:
    """Set a wrong file aside. Returns what the user can do."""
    aside = work / "rejected" / path.name
    aside.parent.mkdir(exist_ok=True)
    os.replace(path, aside)
    return (
        f"it is kept as '{aside}': run this again to download it anew, or, if you trust it, put its content at "
        f"'{result}' yourself"
    )


def _exists(path: Path) -> bool:
    """Whether there is a file, or a folder that is not empty."""
    return any(path.iterdir()) if path.is_dir() else path.is_file()


def _unpack_into_place(archive: Path, file: File, folder: Path, work: Path) -> None:
    """Unpack an archive in ``work`` and rename the result into place, so that an interrupted run leaves no trace there.

    Args:
        folder: the dataset's folder.
        work: a folder on the same disk.

    Raises:
        UserError: the archive is unsafe or broken, or lacks what it should contain.
    """
    what = file.unpack
    assert what is not None
    logger.info(f"Unpacking {archive.name}")
    staging = work / "unpacking"
    shutil.rmtree(staging, ignore_errors=True)  # left by a run that was killed
    try:
        if what.inner:
            unpack(archive, staging / "outer", what.inner, what.limits)
            archive = staging / "outer" / Path(what.inner).name
        unpack(archive, staging / "whole", what.take, what.limits)
        if what.to:
            _move(staging / "whole", folder / what.to)
        else:
            _move_each(staging / "whole", folder, file)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move_each(whole: Path, folder: Path, file: File) -> None:
    """Move every entry of ``whole`` into the folder; the one that marks the file as installed comes last."""
    names = sorted(os.listdir(whole), key=lambda name: (name == file.result, name))
    if file.result not in names:
        raise UserError(f"archive {file.name} contains no '{file.result}', only {', '.join(names[:5])}")
    for name in names:
        if _exists(folder / name):
            logger.info(f"'{folder / name}' exists already and is left as it is")
        else:
            _move(whole / name, folder / name)


def _move(what: Path, where: Path) -> None:
    """Rename; an empty folder is replaced."""
    where.parent.mkdir(parents=True, exist_ok=True)
    if where.is_dir():
        where.rmdir()
    os.replace(what, where)
