"""Downloading one file by its address, under Dassl's names."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path

from dassl_lite.downloads.archives import unpack
from dassl_lite.downloads.fetch import fetch, fetch_from_drive
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import PathLike, mkdir_if_missing

logger = logging.getLogger(__name__)

_DRIVE_ID = re.compile(r"(?:[?&]id=|/d/)([\w-]+)")


def download_url(url: str, dst: PathLike) -> None:
    """Download ``url`` to the file ``dst``, whose folder is made if it is missing.

    Raises:
        UserError: the server does not answer with the file; what has come is kept for the next time.
    """
    target = Path(dst)
    mkdir_if_missing(target.parent)
    fetch(url, target)


def download_and_unpack(url: str, dst: PathLike, from_gdrive: bool = True) -> None:
    """Download an archive to ``dst`` and unpack it into the folder of ``dst``; what is there already stays.

    Args:
        from_gdrive: ``url`` is of Google Drive, with the file's id in it.

    Raises:
        UserError: it cannot be had, or should not be unpacked (a name that leads out of the folder, a bomb).
    """
    target = Path(dst)
    if from_gdrive:
        found = _DRIVE_ID.search(url)
        if found is None:
            raise UserError(f"{url} has no file's id of Google Drive in it, like ...?id=1a2B3c")
        mkdir_if_missing(target.parent)
        fetch_from_drive(found[1], target)
    else:
        download_url(url, target)
    logger.info("Extracting %s", target)
    staging = target.with_name(f"{target.name}.unpacking")
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    try:
        unpack(target, staging)
        for name in sorted(os.listdir(staging)):
            if not (target.parent / name).exists():
                os.replace(staging / name, target.parent / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
