"""Grey images of more than 8 bits per pixel, scaled to 8 by the range that the file says or that its values show.

Such files are containers: cameras put 10 or 12 bits into 16, programs 8 bits into 16 or 32, and floating-point images
mostly hold 0 to 1. Scaling all of them by the container's range makes most of them black.
"""

from __future__ import annotations

import logging
import mmap
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dassl_lite.utils.files import open_file
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

_VALUES, _ENDS = "its values suggest", "are its smallest and largest value"
_FORMAT, _HEADER = "its format has", "its file says"
BITS = (8, 12, 16, 24, 31)  # bit depths of integer images: the smallest that holds the largest value is assumed
_BITS_PER_SAMPLE, _MIN_MAX, _SIGNED_MIN_MAX = 258, (280, 281), (340, 341)  # TIFF tags
_ROUNDING = 0.1  # floating-point images of 0 to 1 may go a little beyond, say after resizing
_TOLD = mmap.mmap(-1, 64)  # one byte per kind of range, shared with the worker processes that load images


class Range(NamedTuple):
    """The values that become black and white, and how they were determined."""

    low: float
    high: float
    source: str


def is_wide(image: Image.Image) -> bool:
    """Whether an image is grey with more than 8 bits per pixel."""
    return image.mode.startswith(("I", "F"))


def is_cut(image: Image.Image) -> bool:
    """Whether PIL cuts an opened image with 16 bits per channel to the upper 8, as it does with colours."""
    return any(";16" in str(tile[3:]) for tile in getattr(image, "tile", ())) and not is_wide(image)


def tell_dark(image: Image.Image, path: str) -> None:
    """Warn, once, of a colour image of 16 bits that the cut to the upper 8 has made all but black.

    Args:
        image: the image in RGB.
        path: of the image file.
    """
    highest = max(high for _, high in image.getextrema())  # type: ignore[misc]
    if highest < 16 and not _TOLD[-1]:
        _TOLD[-1] = 1
        logger.warning(
            f"Colour images of 16 bits are cut to their upper 8, which leaves '{path}' all but black: if it holds 8 or "
            "12 bits in 16, save it with 8"
        )


def to_eight_bits(image: Image.Image, path: str) -> Image.Image:
    """Convert a grey image of more than 8 bits to 8 bits; each kind of range is logged once.

    Args:
        image: of mode I, I;16 or F.
        path: of the image file.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
    finite = values[np.isfinite(values)]
    found = range_of(image, finite if finite.size else np.zeros(1), path)
    _tell(path, found)
    scale = 255 / (found.high - found.low)
    scaled = np.floor((np.clip(values, found.low, found.high) - found.low) * scale + 0.5)
    return Image.fromarray(scaled.astype(np.uint8))


def range_of(image: Image.Image, values: NDArray[np.float64], path: str) -> Range:
    """The range of a grey image: what its format or its file says or, failing that, what its values show.

    Args:
        image: as opened.
        values: its finite values.
        path: of the image file.
    """
    low, high = float(values.min()), float(values.max())
    said = _said(image, values, path)
    if said is not None and said.low <= low and high <= said.high and said.low < said.high:
        return said
    if image.mode == "F" and -1 - _ROUNDING <= low and high <= 1 + _ROUNDING:
        return Range(0 if low >= -_ROUNDING else -1, 1, _VALUES)
    if low < 0:
        return Range(low, max(high, low + 1), _ENDS)
    ceilings = [2.0**bits - 1 for bits in BITS]
    return Range(0, next((ceiling for ceiling in ceilings if high <= ceiling), high), _VALUES)


def _said(image: Image.Image, values: NDArray[np.float64], path: str) -> Range | None:
    """The range stated by an image's format or file; None if there is none."""
    if image.format in ("PPM", "JPEG2000") and image.mode != "F":
        return Range(0, 65535, _FORMAT)  # PIL has scaled these to all of the 16 bits
    if image.format == "PNG":
        bits = _significant_bits(path)
        if bits == 16:
            return Range(0, 65535, _HEADER)
        # By PNG's standard values with fewer significant bits are shifted to the top of the 16; many programs do not.
        if bits and values.max() < 2**bits and (values % 2 ** (16 - bits)).any():
            return Range(0, 2**bits - 1, _HEADER)
        return Range(0, 65535, _HEADER) if bits else None
    tags: Any = getattr(image, "tag_v2", None)  # of a TIFF
    if tags is None:
        return None
    for names in (_SIGNED_MIN_MAX, _MIN_MAX):
        low, high = (_number(tags.get(name)) for name in names)
        if high is not None:
            return Range(low or 0, high, _HEADER)
    bits = int(_number(tags.get(_BITS_PER_SAMPLE)) or 0)
    return Range(0, 2**bits - 1, _HEADER) if 8 < bits < 16 else None


def _number(value: Any) -> float | None:
    """A TIFF tag's value, the first if there are several; None unless it is a finite number."""
    first = value[0] if isinstance(value, tuple) and value else value
    return float(first) if isinstance(first, int | float) and np.isfinite(first) else None


def _significant_bits(path: str) -> int:
    """What a PNG file's sBIT chunk says of its first channel; 0 without one. PIL does not read it."""
    with open_file(path) as file:
        file.seek(8)
        for _ in range(64):  # chunks before the pixels
            header = file.read(8)
            length, kind = int.from_bytes(header[:4], "big"), header[4:]
            if kind == b"sBIT":
                return min(int.from_bytes(file.read(1), "big"), 16)
            if len(header) < 8 or kind in (b"IDAT", b"IEND"):
                break
            file.seek(length + 4, 1)
    return 0


def _tell(path: str, found: Range) -> None:
    """Log a range unless one like it has been logged, in this process or one that shares its memory."""
    like = found if found.source == _VALUES else found.source
    kind = zlib.crc32(repr(like).encode()) % (len(_TOLD) - 1)  # the last one is of `tell_dark`
    if _TOLD[kind]:
        return
    _TOLD[kind] = 1
    logger.log(
        logging.WARNING if found.source in (_VALUES, _ENDS) else logging.INFO,
        f"Grey images of more than 8 bits are scaled to 8: '{path}' from the range {found.low:g} to {found.high:g}, "
        f"which {found.source}",
    )
