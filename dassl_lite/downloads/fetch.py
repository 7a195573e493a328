"""Downloading one file, over HTTP or from Google Drive, and checking that it is the right one.

A download goes on where it was cut, and a file gets its name only when all of it has come.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import logging
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import urllib3
from tqdm import tqdm

from dassl_lite.downloads.sources import File
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import write_json

logger = logging.getLogger(__name__)

_BLOCK = 1 << 18
_HASH_BLOCK = 1 << 20
_PROGRESS = 1 << 20  # bytes; an attempt that has brought as much is not counted as a failure
_LATER = (408, 425, 429, 500, 502, 503, 504)  # HTTP states that may be others in a moment
_WORTH_TELLING = 256 << 20  # bytes; hashing less takes no time
NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError)


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server.

    Args:
        connect: seconds until it answers.
        read: seconds without a byte.
        tries: attempts in a row that bring next to nothing.
        pause: seconds before the second attempt, twice as many before the third ...
    """

    connect: float = 20.0
    read: float = 60.0
    tries: int = 5
    pause: float = 1.0


class WrongFileError(UserError):
    """A file that is not what it should be; worth keeping for a look."""


class WebPageError(UserError):
    """A web page where a file should be; worth nothing."""


class _CutError(Exception):
    """An attempt that failed in a way that another may not."""


class Part:
    """What has come of a file so far: ``target.part``, and beside it where it is from."""

    def __init__(self, target: Path, url: str) -> None:
        self.path = target.with_name(target.name + ".part")
        self._origin = target.with_name(target.name + ".part.json")
        self.url = url
        try:
            origin = json.loads(self._origin.read_bytes())
        except (OSError, ValueError):
            origin = {}
        if not isinstance(origin, dict) or origin.get("url") != url:
            self.path.unlink(missing_ok=True)
            origin = {}
        self.version: str = origin.get("version", "")  # the server's name for this state of the file

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def begin(self, version: str) -> None:
        """Start from nothing with the file as the server has it now."""
        self.path.unlink(missing_ok=True)
        self.version = version
        write_json({"url": self.url, "version": version}, self._origin)

    def finish(self, target: Path) -> None:
        """Give the whole file its name."""
        with open(self.path, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.path, target)
        self._origin.unlink(missing_ok=True)


def fetch(url: str, target: Path, size: int = 0, patience: Patience | None = None) -> None:
    """Download ``url`` to ``target``.

    Args:
        size: bytes that the file should have, 0 if not known.

    Raises:
        WebPageError: the server answers with a web page.
        UserError: it does not answer, or not with the file. What has come is kept for the next time.
    """
    patience = patience or Patience()
    part = Part(target, url)
    failures, most = 0, part.size
    while True:
        try:
            _attempt(url, part, size, patience)
        except _CutError as error:
            failures = 1 if part.size - most >= _PROGRESS else failures + 1
            most = max(most, part.size)
            if failures >= patience.tries:
                kept = f"; the {part.size:,} bytes that have come are kept" if part.size else ""
                raise UserError(
                    f"cannot download {url}: {error}{kept}; check the network, then run this again"
                ) from error
            logger.info("%s of %s: %s; trying again", f"{part.size:,} bytes", target.name, error)
            time.sleep(patience.pause * 2 ** (failures - 1))
        else:
            part.finish(target)
            return


def _attempt(url: str, part: Part, size: int, patience: Patience) -> None:
    """Bring the rest of the file, or raise."""
    start = part.size
    headers = {"Accept-Encoding": "identity"}  # offsets count the bytes that are stored
    if start:
        headers["Range"] = f"bytes={start}-"
        if part.version:
            headers["If-Range"] = part.version
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(patience.connect, patience.read)) as response:
            total = _begin(response, part, start, size)
            if total is None or part.size < total:
                _receive(response, part, total)
    except requests.exceptions.SSLError as error:
        raise UserError(f"cannot download {url}: its certificate is not valid ({reason_of(error)})") from error
    except NETWORK_ERRORS as error:
        if isinstance(error, ValueError):  # no address at all
            raise UserError(f"cannot download {url}: {error}") from error
        raise _CutError(reason_of(error)) from error
    if total is not None and part.size != total:
        raise _CutError(f"the connection was cut after {part.size:,} of {total:,} bytes")


def _begin(response: requests.Response, part: Part, start: int, size: int) -> int | None:
    """Look at the answer's head; leaves ``part`` ready for its body. Returns the file's size, None if not told."""
    url, status = part.url, response.status_code  # not response.url: a redirection may be long and soon invalid
    if status in _LATER:
        raise _CutError(f"the server answers {status} {response.reason}")
    if status == 416 and start:  # nothing after ``start``: either we have it all, or it is not what it was
        if _total_of(response) == start:
            return start
        part.begin("")
        raise _CutError("the file has changed on the server")
    if status not in (200, 206):
        raise UserError(f"cannot download {url}: the server answers {status} {response.reason}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise WebPageError(f"{url} answers with a web page instead of the file")
    if status == 206:
        begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if not begins or int(begins[1]) != start:
            part.begin("")
            raise _CutError("the server does not go on where it was cut")
        total = _total_of(response)
    else:
        if start:
            logger.info("%s: the server does not go on where it was cut, starting anew", part.path.stem)
        strong = response.headers.get("ETag", "")
        part.begin("" if strong.startswith("W/") else strong)
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
    if size and total is not None and total != size:
        raise UserError(f"cannot download {url}: it has {total:,} bytes, not {size:,}; the publisher has changed it")
    _check_space(part, total or size)
    return total


def _receive(response: requests.Response, part: Part, total: int | None) -> None:
    """Append the body. Undecoded: some servers call a .tgz a tar that they have compressed for the way."""
    bar = tqdm(
        total=total, initial=part.size, unit="B", unit_scale=True, desc=part.path.stem, leave=False, disable=None
    )
    with bar, open(part.path, "ab") as file:
        for block in response.raw.stream(_BLOCK, decode_content=False):
            file.write(block)
            bar.update(len(block))


def _total_of(response: requests.Response) -> int | None:
    found = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _check_space(part: Part, total: int) -> None:
    free = shutil.disk_usage(part.path.parent).free
    if total - part.size > free:
        raise UserError(
            f"'{part.path.parent}' has {free:,} bytes free, but {total - part.size:,} of {part.path.stem} are to come"
        )


def reason_of(error: BaseException) -> str:
    """The innermost reason of a network error, in a few words."""
    reason, timed_out = "", False
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        reason = getattr(current, "strerror", None) or reason
        # urllib3 calls a refused connection a timeout as well, but there the system gives another reason.
        timed_out |= isinstance(current, TimeoutError | requests.Timeout | urllib3.exceptions.TimeoutError)
        nested = getattr(current, "reason", None) or next((a for a in current.args if isinstance(a, Exception)), None)
        current = nested if isinstance(nested, BaseException) else current.__cause__ or current.__context__
    return reason or ("no answer in time" if timed_out else f"{type(error).__name__}: {error}")


def check_file(path: Path, file: File) -> None:
    """Compare a file with what is known of it.

    Raises:
        WebPageError: it is a web page.
        WrongFileError: it is empty, or of another size or digest, or a ``.json`` that is not JSON.
    """
    if looks_like_page(path):
        raise WebPageError(f"'{path}' is a web page, not {file.name}")
    size = path.stat().st_size
    if size == 0:
        raise WrongFileError(f"{file.name} is empty")
    if file.size and size != file.size:
        raise WrongFileError(f"{file.name} has {size:,} bytes, not {file.size:,}")
    if file.digest:
        name, _, expected = file.digest.partition(":")
        found = digest_of_file(path, name)
        if found != expected:
            raise WrongFileError(f"{file.name} has the {name} digest {found}, not {expected}")
    if path.suffix == ".json":
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            raise WrongFileError(f"{file.name} is not JSON ({error})") from error


def looks_like_page(path: Path) -> bool:
    """Whether a file begins as web pages do."""
    with open(path, "rb") as file:
        beginning = file.read(512)
    return beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype html", b"<html"))


def digest_of_file(path: Path, name: str) -> str:
    """Digest of a file, in hex."""
    if path.stat().st_size > _WORTH_TELLING:
        logger.info("Checking the digest of %s", path.name)
    digest = hashlib.new(name, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def fetch_from_drive(identity: str, target: Path, patience: Patience | None = None) -> None:
    """Download the file with this id to ``target``.

    Raises:
        WebPageError: Drive shows a page instead, as it does when too many have asked for the file.
        UserError: Drive cannot be reached. What has come is kept for the next time.
    """
    import gdown  # takes a while

    refused = gdown.exceptions.FileURLRetrievalError
    failed = getattr(gdown.exceptions, "DownloadError", refused)  # gdown >= 6
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
    except refused as error:
        raise WebPageError(f"Google Drive does not give {target.name}") from error
    except (*NETWORK_ERRORS, failed) as error:
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
