"""Download one file, over HTTP or from Google Drive, and check that it is the right one.

An interrupted download resumes where it stopped, in this call or the next, and a file gets its name only once it is
complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import inspect
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import requests
import urllib3
from tqdm import tqdm

from dassl_lite.utils.errors import UserError, printable
from dassl_lite.utils.files import HashingFile, cache_root, digest_of, open_file, read_json, write_json
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

DRIVE = "drive:"  # prefix of a Google Drive id that serves as a URL
_BLOCK = 1 << 18
_CHECKED = 1 << 26  # bytes between checks of the free space, if the size is unknown
_SLOW_TO_HASH = 256 << 20  # bytes; hashing fewer takes no noticeable time
_PROGRESS = 1 << 20  # bytes; an attempt that received this many does not count as a failure
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # HTTP status codes worth another attempt
_UNDECLARED = 32 << 30  # bytes of a file whose size neither we nor the server state
_SPARE = 1 << 30  # bytes of the disk that such a file leaves free
# ValueError: a malformed Location, which requests and urllib3 pass on as they find it.
_NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, ValueError)


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server.

    Args:
        connect: seconds until it accepts the connection.
        read: seconds without a byte.
        tries: consecutive attempts that make next to no progress.
        pause: seconds before the second attempt, doubled before each further one.
        retry_unreachable: also retry if the server has never responded, as without a network.
    """

    connect: float = 20.0
    read: float = 60.0
    tries: int = 5
    pause: float = 1.0
    retry_unreachable: bool = True


class DownloadError(UserError):
    """A file that its server did not deliver.

    Args:
        what: the file, as the message names it.
        reason: a few words, also for messages that list several failures.
        advice: what the user can do.
    """

    def __init__(self, what: str, reason: str, advice: str = "") -> None:
        super().__init__(f"cannot download {what}: {reason}" + (f"; {advice}" if advice else ""))
        self.reason = reason


class WebPageError(DownloadError):
    """A web page instead of the file, such as a login form or a notice that a quota is exceeded."""

    def __init__(self, what: str) -> None:
        super().__init__(what, "the server sent a web page instead of the file")


class WrongFileError(UserError):
    """A file other than the one expected."""


class _AttemptError(Exception):
    """A failed attempt that may succeed when repeated; ``responded``: the server sent a response."""

    def __init__(self, reason: str, responded: bool = True) -> None:
        super().__init__(reason)
        self.responded = responded


class Part:
    """The part of a file received so far: ``target.part``, with a note of its origin beside it.

    Args:
        target: the final path.
        url: where the file comes from. A part from another URL is discarded.
    """

    def __init__(self, target: Path, url: str) -> None:
        self.path = target.with_name(target.name + ".part")
        self.url = url
        self._origin = target.with_name(target.name + ".part.json")
        try:
            origin = read_json(self._origin)
        except (OSError, ValueError):
            origin = {}
        if not isinstance(origin, dict) or origin.get("url") != url:
            self.path.unlink(missing_ok=True)
            origin = {}
        total = origin.get("total")
        self.total = total if isinstance(total, int) else None  # bytes of the whole file, from an earlier response
        self.version = str(origin.get("version", ""))  # the ETag: the server's name for this version of the file

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def restart(self, version: str, total: int | None = None) -> None:
        """Discard what was received, and note the version that the server has now and its size."""
        self.path.unlink(missing_ok=True)
        self.version, self.total = version, total
        write_json({"url": self.url, "version": version, "total": total}, self._origin)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._origin.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        """Give the complete file its name."""
        with open(self.path, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.path, target)
        self._origin.unlink(missing_ok=True)


def fetch(url: str, target: Path, *, size: int = 0, digest: str = "", patience: Patience | None = None) -> None:
    """Download ``url`` to ``target``.

    Args:
        url: ``http(s)://...``, or ``drive:ID`` for Google Drive.
        size: expected bytes, 0 if unknown.
        digest: expected digest as `check_digest` takes it, "" if unknown. A file with another one is deleted.
        patience: how long to wait for the server.

    Raises:
        WebPageError: the server sent a web page.
        DownloadError: it did not respond, or not with the file. What was received is kept for the next call.
        WrongFileError: the digest is wrong.
    """
    patience = patience or Patience()
    if url.startswith(DRIVE):
        _fetch_from_drive(url.removeprefix(DRIVE), target, patience)
        return
    part = Part(target, url)
    failures, most, responded = 0, part.size, False
    while True:
        try:
            _attempt(url, part, size, patience)
            break
        except _AttemptError as error:
            responded |= error.responded
            failures = 1 if part.size - most >= _PROGRESS else failures + 1
            most = max(most, part.size)
            if failures >= patience.tries or not (responded or patience.retry_unreachable):
                kept = f"; the {part.size:,} bytes received are kept" if part.size else ""
                raise DownloadError(url, f"{error}{kept}", "check the network, then run this again") from error
            logger.info(f"{target.name}: {error} ({part.size:,} bytes received); retrying")
            time.sleep(patience.pause * 2 ** (failures - 1))
    try:
        check_digest(part.path, digest, target.name)
    except WrongFileError:
        part.discard()
        raise
    part.finish(target)


def _attempt(url: str, part: Part, size: int, patience: Patience) -> None:
    """Receive the rest of the file, or raise."""
    start = part.size
    headers = {"Accept-Encoding": "identity"}  # offsets count the stored bytes
    if start:
        headers["Range"] = f"bytes={start}-"
        if part.version:
            headers["If-Range"] = part.version
    responded = False
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(patience.connect, patience.read)) as response:
            responded = True
            total = _begin(response, part, start, size) or size or None
            if total is None or part.size < total:
                _receive(response, part, total, total or _UNDECLARED)
    except UserError:
        raise
    except _NETWORK_ERRORS as error:
        raise _failure(url, error, responded) from error
    if total is not None and part.size != total:
        raise _AttemptError(f"the connection was closed after {part.size:,} of {total:,} bytes")


def _failure(url: str, error: Exception, responded: bool) -> DownloadError | _AttemptError:
    """The error to raise for a network error: final, or worth another attempt."""
    if isinstance(error, requests.exceptions.SSLError):
        advice = "behind a proxy that replaces certificates, set REQUESTS_CA_BUNDLE to its CA file"
        return DownloadError(url, f"its certificate is not valid ({reason_of(error)})", advice)
    if isinstance(error, ValueError):  # not a URL, or the server redirects to something that is not one
        return DownloadError(url, f"{error}{'' if isinstance(error, requests.RequestException) else ' (redirected)'}")
    return _AttemptError(reason_of(error), responded)


def _begin(response: requests.Response, part: Part, start: int, size: int) -> int | None:
    """Read the response's head and prepare ``part`` for the body. Returns the file's size, None if not given."""
    url, status = part.url, response.status_code  # not response.url: a redirect may be long and soon invalid
    answer = f"the server answered {status} {response.reason}"
    if status in _TRANSIENT:
        raise _AttemptError(answer)
    if status == 416 and start:  # nothing after ``start``: the part is complete, or the file has changed
        total = _total_of(response)
        if start in (total, part.total) and part.total in (None, start) and total in (None, start):
            return start
        part.restart("")
        raise _AttemptError("the file has changed on the server")
    if status not in (200, 206):
        raise DownloadError(url, answer)
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise WebPageError(url)
    if status == 206:
        begins = re.match(r"bytes ([0-9]{1,18})-", response.headers.get("Content-Range", ""))
        if not begins or int(begins[1]) != start:
            part.restart("")
            raise _AttemptError("the server did not resume where the download stopped")
        total = _total_of(response) or part.total
        if part.total is not None and total != part.total:
            part.restart("")
            raise _AttemptError("the file has changed on the server")
    else:
        if start:
            logger.info(f"{part.path.stem}: the server cannot resume the download; starting over")
        etag = response.headers.get("ETag", "")
        length = response.headers.get("Content-Length", "")
        total = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
        part.restart("" if etag.startswith("W/") else etag, total)
    if size and total is not None and total != size:
        raise DownloadError(url, f"it has {total:,} bytes, not {size:,}; the publisher has changed it")
    _check_space(part, total or size)
    return total


def _receive(response: requests.Response, part: Part, total: int | None, ceiling: int) -> None:
    """Append the body, undecoded: some servers declare a .tgz as a tar that was compressed for the transfer.

    Args:
        ceiling: the most bytes that the file may have; if the server sends more, give up.
    """
    received = part.size
    bar = tqdm(
        total=total,
        initial=part.size,
        unit="B",
        unit_scale=True,
        desc=printable(part.path.stem),
        leave=False,
        disable=None,
    )
    with bar, open(part.path, "ab") as file:
        for block in response.raw.stream(_BLOCK, decode_content=False):
            received += len(block)
            if received > ceiling:
                part.discard()
                raise DownloadError(part.url, f"the server sends more than {ceiling:,} bytes")
            if total is None and received // _CHECKED > (received - len(block)) // _CHECKED:
                _check_space(part, part.size + _SPARE)
            file.write(block)
            bar.update(len(block))


def _total_of(response: requests.Response) -> int | None:
    found = re.search(r"/([0-9]{1,18})$", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _check_space(part: Part, total: int) -> None:
    folder = part.path.parent
    missing, free = total - part.size, shutil.disk_usage(folder).free
    if missing > free:
        raise UserError(f"not enough space in '{folder}': {part.path.stem} needs {missing:,} bytes, {free:,} are free")


def lock_for(path: Path) -> filelock.FileLock:
    """A lock between processes that download to ``path``; released when its holder dies."""
    folder = cache_root() / "locks"  # not beside the path, so that its folder stays clean
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / f"download-{digest_of(os.path.realpath(path))[:16]}.lock")


def check_reachable(url: str, patience: Patience) -> None:
    """Ask for a file's head once, to fail fast where a client's own retries would take long.

    Raises:
        DownloadError: there is no response, or an error.
    """
    try:
        with requests.head(url, timeout=(patience.connect, patience.read)) as response:  # a redirect is fine
            if response.status_code >= 400:
                raise DownloadError(url, f"the server answered {response.status_code} {response.reason}")
    except UserError:
        raise
    except _NETWORK_ERRORS as error:
        raise DownloadError(url, reason_of(error)) from error


def reason_of(error: BaseException) -> str:
    """The innermost reason of a network error, in a few words."""
    reason = described = ""
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        reason = getattr(current, "strerror", None) or reason
        if isinstance(current, TimeoutError | requests.Timeout | urllib3.exceptions.TimeoutError):
            described = "no answer in time"
        elif isinstance(current, urllib3.exceptions.ProtocolError):
            described = described or "the connection was closed"
        nested = getattr(current, "reason", None) or next((a for a in current.args if isinstance(a, Exception)), None)
        current = nested if isinstance(nested, BaseException) else current.__cause__ or current.__context__
    # The system's reason comes first: urllib3 calls a refused connection a timeout as well.
    return reason or described or f"{type(error).__name__}: {error}"


def _fetch_from_drive(identity: str, target: Path, patience: Patience) -> None:
    """Download a file from Google Drive with gdown, which knows its confirmation pages."""
    import gdown  # slow to import

    refused = gdown.exceptions.FileURLRetrievalError
    failed = getattr(gdown.exceptions, "DownloadError", refused)  # gdown >= 6
    source = f"{target.name} from Google Drive"
    folder = target.with_name(f"drive-{identity}")  # gdown takes files with a common beginning for parts of the file
    folder.mkdir(exist_ok=True)
    options: dict[str, Any] = {
        "timeout": (patience.connect, patience.read),
        "retries": patience.tries - 1,
    }  # gdown >= 6.3
    known = inspect.signature(gdown.download).parameters
    try:
        received = gdown.download(
            id=identity,
            output=str(folder / target.name),
            quiet=not sys.stderr.isatty(),
            resume=True,
            use_cookies=False,
            **{name: value for name, value in options.items() if name in known},
        )
    except refused as error:
        raise WebPageError(source) from error
    except (*_NETWORK_ERRORS, failed) as error:
        raise DownloadError(source, reason_of(error), "check the network, then run this again") from error
    else:
        if received is None:  # older versions return None on failure
            raise WebPageError(source)
        os.replace(folder / target.name, target)
    finally:
        with contextlib.suppress(OSError):  # not empty: part of the file stays for the next call
            folder.rmdir()


def check_file(path: Path, *, size: int = 0, digest: str = "") -> None:
    """Compare a file with what is known about it.

    Args:
        size: bytes, 0 if unknown.
        digest: as `check_digest` takes it, "" if unknown.

    Raises:
        WrongFileError: it is empty or a web page, has another size or digest, or is a ``.json`` that is not JSON.
    """
    if looks_like_page(path):
        raise WrongFileError(f"{path.name} is a web page")
    actual = path.stat().st_size
    if actual == 0:
        raise WrongFileError(f"{path.name} is empty")
    if size and actual != size:
        raise WrongFileError(f"{path.name} has {actual:,} bytes, not {size:,}")
    check_digest(path, digest)
    if path.suffix == ".json":
        try:
            read_json(path)
        except (OSError, ValueError) as error:
            raise WrongFileError(f"{path.name} is not JSON ({error})") from error


def looks_like_page(path: Path) -> bool:
    """Whether a file begins like a web page."""
    with open_file(path) as file:
        beginning = file.read(512)
    return beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype html", b"<html"))


def check_digest(path: Path, digest: str, name: str = "") -> None:
    """Compare a file's digest with the published one.

    Args:
        digest: ``md5:...`` or ``sha256:...`` in hex, or only the leading digits if no more are published; "" for none.
        name: for messages, if it is not the path's.

    Raises:
        WrongFileError: they differ.
    """
    if not digest:
        return
    if path.stat().st_size > _SLOW_TO_HASH:
        logger.info(f"Checking the digest of {name or path.name}")
    hasher = hasher_of(digest)
    with open_file(path) as file:
        HashingFile(file, hasher).hash_to()
    compare_digest(hasher, digest, name or path.name)


def hasher_of(digest: str) -> Any:
    """A hashlib object for this kind of digest."""
    return hashlib.new(digest.partition(":")[0], usedforsecurity=False)


def compare_digest(hasher: Any, digest: str, name: str) -> None:
    """`check_digest` for a file that was hashed while it was read."""
    kind, _, expected = digest.partition(":")
    if not expected or not hasher.hexdigest().startswith(expected):
        raise WrongFileError(f"{name} has the {kind} digest {hasher.hexdigest()}, not {expected}")
