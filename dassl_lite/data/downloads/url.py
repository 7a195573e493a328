"""Downloading one file by its address, under Dassl's name."""

from __future__ import annotations

from pathlib import Path

from dassl_lite.data.downloads.fetch import fetch
from dassl_lite.utils.files import PathLike, mkdir_if_missing


def download_url(url: str, dst: PathLike) -> None:
    """Download ``url`` to the file ``dst``, whose folder is made if it is missing.

    Raises:
        UserError: the server does not answer with the file; what has come is kept for the next time.
    """
    target = Path(dst)
    mkdir_if_missing(target.parent)
    fetch(url, target)
