"""Shards by name: brace ranges, folders and URLs. What is behind a URL is copied into the cache once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dassl_lite.data.images import image_extensions
from dassl_lite.data.sharded.members import shards_root
from dassl_lite.utils.errors import UserError, printable
from dassl_lite.utils.files import digest_of
from dassl_lite.utils.lazy import optional_module
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

DATASETS = {".tar": "WebDataset", ".parquet": "HFDataset", ".arrow": "HFDataset"}  # by the endings of shards
_BLOCK = 4 << 20
_TRIES = 5
MOST = 1_000_000  # shards: {0..999999999} would fill the memory with names


def is_url(text: str) -> bool:
    """Whether a text names something behind a URL."""
    return "://" in text


def expand(pattern: str) -> list[str]:
    """The names that ``train-{000..099}.tar`` stands for; several patterns are divided by ``::``.

    Raises:
        UserError: the braces do not match, or stand for too many names.
    """
    if not any(mark in pattern for mark in ("{", "::")):
        return [pattern]
    from itertools import islice

    braces = optional_module("braceexpand", "shards", f"the pattern '{pattern}'")
    found: list[str] = []
    for part in pattern.split("::"):
        try:
            found += islice(braces.braceexpand(part), MOST + 1)
        except ValueError as error:
            raise UserError(f"shards '{printable(part)}': {error}") from error
    if len(found) > MOST:
        raise UserError(f"shards '{printable(pattern)}': more than {MOST:,} names")
    return found


def joined(root: str, name: str) -> str:
    """A name below a folder or URL, unless it is absolute."""
    if not root or is_url(name) or os.path.isabs(os.path.expanduser(name)):
        return name
    return f"{root.rstrip('/')}/{name}" if is_url(root) else os.path.join(root, name)


def local_copy(source: str) -> str:
    """The absolute path of a shard. For a URL, that of its local copy, which is made if it does not exist.

    Raises:
        UserError: it cannot be copied. What has been received is kept, and the next call resumes there.
    """
    if not is_url(source):
        return os.path.abspath(os.path.expanduser(source))
    target = (
        shards_root() / "files" / f"{digest_of(source)[:16]}-{os.path.basename(source.partition('?')[0]) or 'shard'}"
    )
    if target.is_file():
        return str(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    logger.info(f"Copying {source} to {target}")
    from dassl_lite.downloads.fetch import fetch, lock_for  # slow to import

    with lock_for(target):
        if target.is_file():
            return str(target)
        if source.startswith(("http://", "https://")):
            fetch(source, target)
        else:
            _copy(source, target)
    return str(target)


def _copy(source: str, target: Path) -> None:
    """Copy from any file system that fsspec knows."""
    fsspec = optional_module("fsspec.core", "shards", f"shard '{source}'")
    part = target.with_name(target.name + ".part")
    failures = 0
    while True:
        try:
            files, path = fsspec.url_to_fs(source)
            size = int(files.size(path))
            with files.open(path, "rb") as given, open(part, "ab") as copy:
                if copy.tell() > size:
                    copy.truncate(0)
                given.seek(copy.tell())
                while block := given.read(_BLOCK):
                    copy.write(block)
                    failures = 0
            if part.stat().st_size != size:
                raise OSError(f"it has {size:,} bytes, and {part.stat().st_size:,} were received")
            break
        except ImportError as error:
            raise UserError(f"cannot read shard '{source}': {error}") from error
        except (FileNotFoundError, PermissionError, ValueError, TypeError) as error:
            raise UserError(f"cannot read shard '{source}': {_reason(error)}") from error
        except Exception as error:  # each file system has errors of its own
            failures += 1
            if failures >= _TRIES or "ccess" in str(error) or "redential" in str(error):
                raise UserError(f"cannot read shard '{source}': {_reason(error)}") from error
    os.replace(part, target)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission"
    return " ".join(str(error).split())[:200] or type(error).__name__


def dataset_at(path: str | os.PathLike[str]) -> str:
    """The registered name of the dataset of shards at ``path``, a file or a folder; "" if there are none.

    A folder that also has image files is not one of shards: it contains an archive next to its unpacked files.
    """
    place = os.path.expanduser(path)
    if not os.path.isdir(place):
        return DATASETS.get(os.path.splitext(place)[1], "") if os.path.isfile(place) else ""
    kinds, images = set[str](), image_extensions()
    for _, folders, files in os.walk(place):
        folders[:] = [name for name in folders if not name.startswith(".")]
        endings = {os.path.splitext(name)[1].lower() for name in files if not name.startswith(".")}
        if not endings.isdisjoint(images):
            return ""
        kinds |= {DATASETS[ending] for ending in endings & DATASETS.keys()}
    return kinds.pop() if len(kinds) == 1 else ""


def found_in(folder: str, endings: Sequence[str]) -> list[str]:
    """Names of the files in a folder and the folders below it that end so, sorted, relative and without hidden ones.

    Raises:
        UserError: the folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read the folder '{printable(error.filename)}': {error.strerror}") from error

    found = []
    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            os.path.relpath(os.path.join(here, name), folder)
            for name in files
            if name.endswith(tuple(endings)) and not name.startswith(".")
        ]
    return sorted(found)
