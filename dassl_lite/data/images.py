"""Image files: which files are images, and reading one as Dassl does (RGB, first frame, no EXIF rotation)."""

from __future__ import annotations

import functools
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError, features

from dassl_lite.data import grey
from dassl_lite.data.sharded.members import describe, locate, read_member
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import open_file

# What PIL may open, by its names. It recognises a file by content, whatever the file is called, and some of the formats
# that it knows start other programs (EPS: Ghostscript) or only hold data for one (HDF5, GRIB, FITS, WMF).
IMAGE_FORMATS = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "JPEG",
    "JPEG2000",
    "PCX",
    "PNG",
    "PPM",
    "QOI",
    "SGI",
    "SUN",
    "TGA",
    "TIFF",
    "WEBP",
)
_CODECS = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # codecs that PIL may have been built without
HEIF = "HEIF"  # the format of phone cameras; pillow-heif adds it to PIL
HEIF_EXTENSIONS = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
HEIF_REMEDY = "pip install pillow-heif reads them"
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
MAX_FILE = 2 << 30  # bytes of an image file: sparse files cost nothing, and PIL reads what the header claims


class UnreadableImageError(UserError):
    """An image file cannot be read.

    Args:
        path: the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot read image '{describe(path)}': {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableImageError], tuple[str, str]]:
        return type(self), (self.path, self.reason)  # by default an exception is rebuilt from its message alone


@functools.cache
def _decoded_formats() -> tuple[str, ...]:
    """Those of ``IMAGE_FORMATS`` that the installed PIL decodes."""
    Image.init()
    lacking = {kind for kind, codec in _CODECS.items() if not features.check(codec)}
    return tuple(kind for kind in IMAGE_FORMATS if kind in Image.OPEN and kind not in lacking)


@functools.cache
def reads_heif() -> bool:
    """Whether pillow-heif is installed; if it is, PIL reads HEIC pictures from now on."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


@functools.cache
def image_extensions() -> frozenset[str]:
    """Lower-case extensions, with the dot, of the files in one of ``IMAGE_FORMATS`` that the installed PIL decodes.

    Those of HEIC pictures are not among them: see :func:`reads_heif`.
    """
    decoded = _decoded_formats()
    return frozenset(extension for extension, kind in Image.EXTENSION.items() if kind in decoded)


def _is_heif(file: BinaryIO) -> bool:
    """Whether a file begins like a HEIC picture, whatever it is called."""
    start = file.read(12)
    file.seek(0)
    return start[4:8] == b"ftyp" and start[8:] in _HEIF_BRANDS


def _open(path: str) -> BinaryIO:
    """The bytes of an image, in a file or in a shard."""
    member = locate(path)
    return open_file(path, MAX_FILE) if member is None else io.BytesIO(read_member(member))


@contextmanager
def open_image(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open an image file in one of ``IMAGE_FORMATS``, or in HEIC if pillow-heif is installed.

    Every reader of images begins here.

    Raises:
        UnreadableImageError: the file is missing, not a file, not an image, or cannot be decoded in the block.
    """
    name = os.fspath(path)
    try:
        with _open(name) as file:
            formats = _decoded_formats()
            if _is_heif(file):
                if not reads_heif():
                    raise UnreadableImageError(name, f"a HEIC picture; {HEIF_REMEDY}")
                formats = (HEIF,)
            with Image.open(file, formats=formats) as image:
                yield image
    except UnreadableImageError:
        raise
    except FileNotFoundError as error:
        raise UnreadableImageError(name, "no such file") from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError(name, "not an image in a format that is read here") from error
    except Exception as error:  # PIL's decoders raise almost anything on broken files
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise UnreadableImageError(name, " ".join(reason.split())) from error


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image as 8-bit RGB.

    As in Dassl, an alpha channel is dropped, CMYK and palette images are converted, an animation gives its first frame,
    and EXIF orientation is ignored. Grey images of more than 8 bits are scaled to 8, see
    :mod:`dassl_lite.data.grey`; Dassl clips them to white.

    Raises:
        UnreadableImageError: the file is missing, not an image, truncated, or larger than PIL allows.
    """
    with open_image(path) as image:
        return as_rgb(image, os.fspath(path))


def as_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """An image as 8-bit RGB, converted as :func:`read_image` says; ``name`` is for messages."""
    with warnings.catch_warnings():
        # Transparency is dropped on purpose.
        warnings.filterwarnings("ignore", message="Palette images with Transparency")
        is_cut = grey.is_cut(image)
        found = (grey.to_eight_bits(image, name) if grey.is_wide(image) else image).convert("RGB")
        if is_cut:
            grey.tell_dark(found, name)
        return found


def count_images(number: int) -> str:
    """``1 image``, ``1,200 images``: for messages."""
    return f"{number:,} image{'' if number == 1 else 's'}"


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one."""
    return _leads_to(entry.is_dir)


def _leads_to(kind: Callable[[], bool]) -> bool:
    """The answer of a DirEntry, which raises for a link that leads in a circle or where one may not look: no."""
    try:
        return kind()
    except OSError:
        return False


def kind_of(entry: os.DirEntry[str] | Path) -> str:
    """The kind of a file that is not a readable image, for :func:`describe_kinds`; "" for an image."""
    extension = os.path.splitext(entry.name)[1].lower()
    if entry.name.startswith("."):
        return "hidden"
    if not _leads_to(entry.is_file):
        return "special file or broken link"  # a pipe, a socket, a device
    if extension in image_extensions() or (extension in HEIF_EXTENSIONS and reads_heif()):
        return ""
    return extension or "without extension"


@functools.cache
def usual_endings() -> frozenset[str]:
    """Image extensions in their usual spelling, all lower or all upper case."""
    return frozenset(ending for known in image_extensions() for ending in (known, known.upper()))


def is_usual_image(entry: os.DirEntry[str]) -> bool:
    """Whether :func:`kind_of` would say that this is an image; False if that takes a longer look.

    Folders of a million images are listed on every run.
    """
    name = entry.name
    return name[name.rfind(".") :] in usual_endings() and name[0] != "." and _leads_to(entry.is_file)


def describe_kinds(kinds: Mapping[str, int]) -> str:
    """Skipped files, by kind: ``12 .heic (pip install pillow-heif reads them), 3 hidden``."""
    listed = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    return ", ".join(f"{n:,} {kind}" + (f" ({HEIF_REMEDY})" if kind in HEIF_EXTENSIONS else "") for kind, n in listed)
