"""Download a file, or an archive and its content, from a URL: the functions that Dassl's users call."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from dassl_lite.downloads.archives import unpack
from dassl_lite.downloads.fetch import DRIVE, fetch
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import PathLike, mkdir_if_missing
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

_DRIVE_ID = re.compile(r"(?:[?&]id=|/d/)([\w-]+)")


def download_url(url: str, dst: PathLike) -> None:
    """Download ``url`` to the file ``dst``; its folder is created if missing.

    Raises:
        UserError: the server does not deliver the file. What was received is kept for the next call.
    """
    target = Path(dst)
    mkdir_if_missing(target.parent)
    fetch(url, target)


def download_and_unpack(url: str, dst: PathLike, from_gdrive: bool = True) -> None:
    """Download an archive to ``dst`` and unpack it into the folder of ``dst``; existing files there are kept.

    Args:
        from_gdrive: ``url`` is a Google Drive link that contains the file's id.

    Raises:
        UserError: the archive is unavailable or unsafe (a name that points outside the folder, a bomb).
    """
    target = Path(dst)
    if from_gdrive:
        match = _DRIVE_ID.search(url)
        if match is None:
            raise UserError(f"{url} contains no Google Drive file id, as in ...?id=1a2B3c")
        url = f"{DRIVE}{match[1]}"
    download_url(url, target)
    logger.info(f"Extracting {target}")
    staging = target.with_name(f"{target.name}.unpacking")
    shutil.rmtree(staging, ignore_errors=True)  # left by a run that was killed
    try:
        unpack(target, staging)
        for name in sorted(os.listdir(staging)):
            if not (target.parent / name).exists():
                os.replace(staging / name, target.parent / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
