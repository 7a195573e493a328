"""Reading an image file as Dassl does: RGB, first frame, no EXIF rotation."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

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
    return tuple(kind for kind in IMAGE_FORMATS if kind in Image.OPEN)


@functools.cache
def image_extensions() -> frozenset[str]:
    """Lower-case extensions, with the dot, of the files in one of ``IMAGE_FORMATS`` that the installed PIL decodes."""
    decoded = _decoded_formats()
    return frozenset(extension for extension, kind in Image.EXTENSION.items() if kind in decoded)


@contextmanager
def open_image(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open an image file in one of ``IMAGE_FORMATS``; every reader of images begins here.

    Raises:
        UnreadableImageError: the file is missing, not a file, not an image, or cannot be decoded in the block.
    """
    name = os.fspath(path)
    try:
        with open_file(name) as file, Image.open(file, formats=_decoded_formats()) as image:
            yield image
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
    and EXIF orientation is ignored. Grey images of 16 or 32 bits are scaled to 8 bits; Dassl clips them to white.

    Raises:
        UnreadableImageError: the file is missing, not an image, truncated, or larger than PIL allows.
    """
    with warnings.catch_warnings():
        # Transparency is dropped on purpose.
        warnings.filterwarnings("ignore", message="Palette images with Transparency")
        with open_image(path) as image:
            return _to_eight_bits(image).convert("RGB")


def count_images(number: int) -> str:
    """``1 image``, ``1,200 images``: for messages."""
    return f"{number:,} image{'' if number == 1 else 's'}"


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of more than 8 bits scaled to 8 bits; other modes unchanged."""
    if not image.mode.startswith("I"):
        return image
    wide = image.convert("I")  # 32 bits; every 16-bit file gives values from 0 to 65535
    return wide.point(lambda value: value * (1 / 257) + 0.5).convert("L")
