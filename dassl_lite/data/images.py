"""Image files: which files are images, and reading one as Dassl does (RGB, first frame, no EXIF rotation)."""

from __future__ import annotations

import functools
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, features

from dassl_lite.data import grey
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
_CODECS = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # that PIL may have been built without
HEIF = "HEIF"  # the pictures of phones; PIL learns it from pillow-heif
HEIF_EXTENSIONS = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
HEIF_REMEDY = "pip install pillow-heif reads them"
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
MAX_FILE = 2 << 30  # bytes of an image file: a sparse one costs nothing to make, and PIL reads what its header says


class UnreadableImageError(UserError):
    """An image file cannot be read.

    Args:
        path: the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot read image '{path}': {reason}")
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


@contextmanager
def open_image(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open an image file in one of ``IMAGE_FORMATS``, or in HEIC if pillow-heif is installed.

    Every reader of images begins here.

    Raises:
        UnreadableImageError: the file is missing, not a file, not an image, or cannot be decoded in the block.
    """
    name = os.fspath(path)
    try:
        with open_file(name, MAX_FILE) as file:
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


# ---- plain JPEG files -----------------------------------------------------------------------------------------------
#
# torchvision's decoder is libjpeg-turbo as PIL's is, but gives the pixels in about half the time, most of which PIL
# needs to unpack and convert them. Only files of the commonest form go there, and all others, with whatever is wrong
# with them, to PIL.

_FASTEST = 32 << 20  # bytes of the largest file that is read at once
_START = b"\xff\xd8"
_JFIF, _EXIF, _COMMENT, _TABLES, _HUFFMAN, _RESTART, _BASELINE, _SCAN = 0xE0, 0xE1, 0xFE, 0xDB, 0xC4, 0xDD, 0xC0, 0xDA
_PASSED_OVER = frozenset({_JFIF, _COMMENT, _TABLES, _HUFFMAN, _RESTART, *range(0xE2, 0xEE), 0xEF})  # not Adobe's 0xEE
_SAMPLINGS = frozenset({b"\x11\x11\x11", b"\x21\x11\x11", b"\x22\x11\x11"})  # 4:4:4, 4:2:2 and 4:2:0


def _plain_size(data: bytes | bytearray) -> tuple[int, int] | None:
    """(width, height) of a JPEG file in the commonest form, else None.

    That is: baseline, 8 bits, luma and two chroma components in one scan, no EXIF (which may rotate), no Adobe marker
    (which changes the meaning of the colours), and not a byte between its segments. Of such a file every decoder reads
    the same header.
    """
    if data[:2] != _START:
        return None
    size, at = None, 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = bytes(data[at + 4 : at + 2 + length])
        if len(body) != length - 2:
            return None
        if marker == _SCAN:
            return size if size is not None and body[:1] == b"\x03" and body[1:7:2] == b"\x01\x02\x03" else None
        if marker == _BASELINE and size is None:
            if len(body) != 15 or body[0] != 8 or body[5] != 3 or body[6::3] != b"\x01\x02\x03":
                return None
            if body[7::3] not in _SAMPLINGS:
                return None
            size = int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")
        elif marker not in _PASSED_OVER:
            return None
        at += 2 + length
    return None


def _decode(data: bytearray) -> Image.Image:
    """The image in a JPEG file, by torchvision."""
    from torchvision.io import ImageReadMode, decode_jpeg  # seconds, which a run on cached features need not pay

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a torchvision without it counts as one that disagrees
        pixels = decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


@functools.cache
def _torchvision_agrees() -> bool:
    """Whether the installed torchvision decodes JPEG files, and to PIL's very pixels: both bring their own library."""
    rows, columns = np.mgrid[:45, :61]
    drawn = np.stack([rows * 5 + columns, rows * columns % 256, (rows // 7 + columns // 5) % 2 * 255], axis=-1)
    try:
        for subsampling in range(3):
            file = io.BytesIO()
            Image.fromarray(drawn.astype(np.uint8)).save(file, "JPEG", quality=85, subsampling=subsampling)
            with Image.open(file) as image:
                if _decode(bytearray(file.getvalue())).tobytes() != image.convert("RGB").tobytes():
                    return False
    except (ImportError, RuntimeError, AttributeError, OSError):  # built without it, or without PIL's
        return False
    return True


def _read_plain_jpeg(path: str) -> Image.Image | None:
    """The image in a plain JPEG file; None for any other file, and for one that cannot be read."""
    try:
        with open_file(path, _FASTEST) as file:
            if file.read(2) != _START:
                return None
            file.seek(0)
            data = bytearray(file.read())
        size = _plain_size(data)
        limit = Image.MAX_IMAGE_PIXELS
        if size is None or 0 in size or (limit is not None and size[0] * size[1] > limit) or not _torchvision_agrees():
            return None
        image = _decode(data)
        return image if image.size == size else None
    except (OSError, RuntimeError, ValueError):  # a broken file: PIL says what is wrong with it, or repairs it
        return None


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image as 8-bit RGB.

    As in Dassl, an alpha channel is dropped, CMYK and palette images are converted, an animation gives its first frame,
    and EXIF orientation is ignored. Grey images of more than 8 bits are scaled to 8, see
    :mod:`dassl_lite.data.grey`; Dassl clips them to white.

    Raises:
        UnreadableImageError: the file is missing, not an image, truncated, or larger than PIL allows.
    """
    if (plain := _read_plain_jpeg(os.fspath(path))) is not None:
        return plain
    with warnings.catch_warnings():
        # Transparency is dropped on purpose.
        warnings.filterwarnings("ignore", message="Palette images with Transparency")
        with open_image(path) as image:
            name, is_cut = os.fspath(path), grey.is_cut(image)
            found = (grey.to_eight_bits(image, name) if grey.is_wide(image) else image).convert("RGB")
            if is_cut:
                grey.tell_dark(found, name)
            return found


def count_images(number: int) -> str:
    """``1 image``, ``1,200 images``: for messages."""
    return f"{number:,} image{'' if number == 1 else 's'}"


def kind_of(entry: os.DirEntry[str] | Path) -> str:
    """The kind of a file that is no image or cannot be read, for :func:`describe_kinds`; "" for an image."""
    extension = os.path.splitext(entry.name)[1].lower()
    if entry.name.startswith("."):
        return "hidden"
    if not entry.is_file():
        return "special file or broken link"  # a pipe, a socket, a device
    if extension in image_extensions() or (extension in HEIF_EXTENSIONS and reads_heif()):
        return ""
    return extension or "without extension"


def describe_kinds(kinds: Mapping[str, int]) -> str:
    """Files that are passed over, by kind: ``12 .heic (pip install pillow-heif reads them), 3 hidden``."""
    listed = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    return ", ".join(f"{n:,} {kind}" + (f" ({HEIF_REMEDY})" if kind in HEIF_EXTENSIONS else "") for kind, n in listed)
