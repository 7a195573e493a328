"""One file from wherever it is to be had: downloaded, checked, put aside if it is wrong."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from dassl_lite.downloads.fetch import Patience, fetch
from dassl_lite.downloads.remote import File
from dassl_lite.downloads.verify import WebPageError, WrongFileError, check_file
from dassl_lite.utils.errors import UserError

logger = logging.getLogger(__name__)

_DRIVE = "drive:"


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
        from dassl_lite.downloads.drive import fetch_from_drive  # gdown takes a while to import

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
