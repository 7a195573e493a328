"""Whether a file is the one that was asked for."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from dassl_lite.downloads.remote import File
from dassl_lite.utils.errors import UserError

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20
_WORTH_TELLING = 256 << 20  # bytes; hashing less takes no time


class WrongFileError(UserError):
    """A file that is not what it should be; worth keeping for a look."""


class WebPageError(UserError):
    """A web page where a file should be; worth nothing."""


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
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
