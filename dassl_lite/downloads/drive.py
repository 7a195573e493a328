"""Downloading from Google Drive, by gdown."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from pathlib import Path
from typing import Any

import gdown

from dassl_lite.downloads.fetch import NETWORK_ERRORS, Patience, reason_of
from dassl_lite.downloads.verify import WebPageError
from dassl_lite.utils.errors import UserError

_REFUSED = gdown.exceptions.FileURLRetrievalError
_FAILED = getattr(gdown.exceptions, "DownloadError", _REFUSED)  # gdown >= 6


def fetch_from_drive(identity: str, target: Path, patience: Patience | None = None) -> None:
    """Download the file with this id to ``target``.

    Raises:
        WebPageError: Drive shows a page instead, as it does when too many have asked for the file.
        UserError: Drive cannot be reached. What has come is kept for the next time.
    """
    patience = patience or Patience()
    folder = target.with_name(f"drive-{identity}")  # gdown takes files whose names begin alike for parts of it
    folder.mkdir(exist_ok=True)
    wanted: dict[str, Any] = {
        "timeout": (patience.connect, patience.read),
        "retries": patience.tries - 1,
    }  # gdown >= 6.3
    known = inspect.signature(gdown.download).parameters
    try:
        got = gdown.download(
            id=identity,
            output=str(folder / target.name),
            quiet=not sys.stderr.isatty(),
            resume=True,
            use_cookies=False,
            **{name: value for name, value in wanted.items() if name in known},
        )
    except _REFUSED as error:
        raise WebPageError(f"Google Drive does not give {target.name}") from error
    except (*NETWORK_ERRORS, _FAILED) as error:
        raise UserError(
            f"cannot download {target.name} from Google Drive: {reason_of(error)}; check the network, then run this "
            "again"
        ) from error
    else:
        if got is None:  # how older versions fail
            raise WebPageError(f"Google Drive does not give {target.name}")
        os.replace(folder / target.name, target)
    finally:
        with contextlib.suppress(OSError):  # a part of the file stays
            folder.rmdir()
