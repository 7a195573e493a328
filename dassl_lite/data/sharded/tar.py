"""Listing tar files of the WebDataset convention: the members of a sample share a key, the name up to its first dot.

``0001.jpg`` and ``0001.cls`` are a sample. The image is the member with an image's ending, the label a member ``cls``,
``cls.txt``, ``label`` or ``label.txt``, or the field ``label``, ``cls``, ``class`` or ``classname`` of a ``json``.
No other member is read. Nothing is unpacked, and nothing in a file is executed: pickles (``.pyd``, ``.pth``) are passed
over.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from dassl_lite.data.images import image_extensions
from dassl_lite.data.sharded.members import (
    OF_SHARD,
    Index,
    Record,
    Shard,
    content_digest,
    folder_of,
    shards_root,
    write_index,
)
from dassl_lite.utils.errors import UserError, printable, shown
from dassl_lite.utils.files import can_be_path, digest_of, open_file, read_json, write_json

LABELS = ("cls", "cls.txt", "label", "label.txt")
FIELDS = ("label", "cls", "class", "classname", "class_name")
MAX_LABEL_BYTES = 1 << 20
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
_VERSION = 1
_BLOCK = 512


class Columns(NamedTuple):
    """What the user calls the image, the label and the key; "" to find them."""

    image: str = ""
    label: str = ""
    key: str = ""


class _Sample:
    def __init__(self) -> None:
        self.images: dict[str, tuple[str, int, int]] = {}  # by ending: name, start, size
        self.labels: dict[str, bytes] = {}


def index_shard(path: str, source: str, columns: Columns) -> tuple[Shard, list[str]]:
    """Index a local tar file, unless that was done before.

    Returns:
        The shard, and what is wrong with it; its sound samples are in the index.

    Raises:
        UserError: it cannot be read, or is not a tar file.
    """
    try:
        status = os.stat(path)
        note = (
            shards_root() / "known" / f"{digest_of([_VERSION, path, status.st_size, status.st_mtime_ns, columns])[:32]}"
        )
        known = _known(note, path)
        if known is not None:
            return known
        shard = Shard(_digest(path, columns), path, status.st_size, status.st_mtime_ns, source)
        records, problems = _list(path, source, columns)
        write_index(folder_of(shard.digest), [shard], ((0, one) for one in records), problems)
        write_json({"digest": shard.digest}, note)
        return shard, problems
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        if isinstance(error, tarfile.TarError):
            reason = f"it is not a tar file ({reason})"
            if source != path and Path(path).is_relative_to(shards_root()):
                os.unlink(path)  # the server sent something else; the next call downloads it again
        raise UserError(f"cannot read shard '{printable(source)}': {reason}") from error


def _known(note: Path, path: str) -> tuple[Shard, list[str]] | None:
    try:
        index = Index(folder_of(read_json(note)["digest"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    try:
        shard = index.shards[0]
        return (shard, list(index.about)) if shard.file == path else None
    finally:
        index.close()


def _digest(path: str, columns: Columns) -> str:
    """The digest of the content and, if the user names members, of it and their names."""
    found = content_digest(path)
    return digest_of([found, columns]) if any(columns) else found


def _list(path: str, source: str, columns: Columns) -> tuple[list[Record], list[str]]:
    """The images of a tar file, and what is wrong."""
    samples: dict[str, _Sample] = {}
    problems: list[str] = []
    seen: set[str] = set()
    with open_file(path) as file:
        if file.read(2) in (b"\x1f\x8b", b"BZ") or path.endswith(COMPRESSED):
            raise OSError("it is compressed; images are read by their place, so shards must be plain .tar")
        file.seek(0)
        size = os.fstat(file.fileno()).st_size
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for entry, problem in _entries(archive, size):
                name = _clean(entry.name) if entry else ""
                if problem or entry is None:
                    problems.append(f"shard '{source}' {problem}")
                    continue
                wrong = _why_refused(entry, name)
                if wrong:
                    problems.append(f"shard '{source}': member {shown(entry.name)} {wrong}")
                if wrong or not entry.isreg() or PurePosixPath(name).name.startswith("."):
                    continue
                if name in seen:
                    problems.append(f"shard '{source}' has the key {shown(name)} twice")
                    continue
                seen.add(name)
                _sort(samples, archive, entry, name, columns)
    records = []
    for key in sorted(samples):
        try:
            records.append(_record(key, samples[key], columns))
        except ValueError as error:
            if str(error):
                problems.append(f"shard '{source}': sample {shown(key)} {error}")
    return records, problems


def _entries(archive: tarfile.TarFile, size: int) -> Iterator[tuple[tarfile.TarInfo | None, str]]:
    """The members; at last, what is wrong with the end of the file."""
    end = 0
    while True:
        try:
            entry = archive.next()
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            if not end:
                raise tarfile.ReadError(str(error)) from error
            yield None, f"is truncated or damaged after byte {end:,} ({error})"
            return
        if entry is None:
            break
        end = entry.offset_data + (entry.size if entry.isreg() else 0)
        if end > size:
            yield None, f"is truncated: member {shown(entry.name)} ends at byte {end:,} of {size:,}"
            return
        archive.members = []  # type: ignore[attr-defined]  # it would keep them all
        yield entry, ""
    if -(-end // _BLOCK) * _BLOCK + _BLOCK > size:
        yield None, f"is truncated: it has {size:,} bytes and no end mark"


def _clean(name: str) -> str:
    return str(PurePosixPath(name)) if name.startswith("./") else name


def _why_refused(entry: tarfile.TarInfo, name: str) -> str:
    if entry.isdir():
        return ""
    if entry.issym() or entry.islnk():
        return "is a link"
    if not entry.isreg() or entry.issparse():
        return "is not a plain file"
    parts = name.replace("\\", "/").split("/")
    if name.startswith("/") or ".." in parts or "" in parts or not can_be_path(name) or ":" in parts[0]:
        return "has a path that leaves the shard"
    return ""


def _sort(
    samples: dict[str, _Sample], archive: tarfile.TarFile, entry: tarfile.TarInfo, name: str, columns: Columns
) -> None:
    """Note a member as its sample's image or label."""
    folder, _, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    ending = ending.lower()
    key = f"{folder}/{stem}" if folder else stem
    is_image = ending == columns.image if columns.image else f".{ending.rpartition('.')[2]}" in image_extensions()
    is_label = ending in (*LABELS, "json") or (columns.label and ending == columns.label)
    if not is_image and not is_label:
        return
    sample = samples.setdefault(key, _Sample())
    if is_image:
        sample.images[ending] = name, entry.offset_data, entry.size
    elif entry.size <= MAX_LABEL_BYTES:
        file = archive.extractfile(entry)
        assert file is not None, "a plain file"
        sample.labels[ending] = file.read()
    else:
        sample.labels[ending] = b""


def _record(key: str, sample: _Sample, columns: Columns) -> Record:
    """The image of a sample; ValueError says what it lacks."""
    if not sample.images:
        raise ValueError("has a label and no image")
    if len(sample.images) > 1:
        raise ValueError(f"has several images ({', '.join(sorted(sample.images))}); DATASET.SHARDS.IMAGE names one")
    ((name, start, size),) = sample.images.values()
    label = _label(sample.labels, columns.label)
    if label is None or label == "":
        raise ValueError("has no label")
    return Record(f"{OF_SHARD}/{name}", start, size, key, json.dumps(label))


def _label(members: dict[str, bytes], named: str) -> Any:
    """A number, a text or None."""
    for ending in (named,) if named else LABELS:
        if ending in members and ending != "json":
            return plain_label(members[ending])
    if "json" not in members:
        return None
    try:
        fields = json.loads(members["json"])
    except (ValueError, RecursionError):
        raise ValueError("has a damaged .json") from None
    if not isinstance(fields, dict):
        return plain_label(fields)
    return next((plain_label(fields[name]) for name in ((named,) if named else FIELDS) if name in fields), None)


def plain_label(value: Any) -> int | str | None:
    """A label as a number or a text: digits are a number."""
    if isinstance(value, bytes):
        value = value.decode("utf-8-sig", "replace")
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    text = str(value).strip() if isinstance(value, str) else ""
    if text.removeprefix("-").isascii() and text.removeprefix("-").isdigit() and len(text) < 10:
        return int(text)
    return text or None
