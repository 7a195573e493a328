"""Reading an image file as the reference does: RGB, first frame, no EXIF rotation."""

from __future__ import annotations

import os
import warnings

from PIL import Image, UnidentifiedImageError

from dassl_lite.utils.errors import UserError


class UnreadableImageError(UserError):
    """An image file that cannot be read; ``path`` names it.

    Args:
        path: the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot read image '{path}': {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableImageError], tuple[str, str]]:
        return type(self), (self.path, self.reason)  # an exception is pickled by its message alone otherwise


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """An image as 8-bit RGB.

    An alpha channel is dropped, CMYK and palettes are converted, of an animation the first frame counts, and
    EXIF orientation is not applied: all as the reference. Greys of 16 and 32 bits are scaled to 8, where the
    reference clips them to white.

    Raises:
        UnreadableImageError: missing, not an image, truncated, or too large (PIL's limit against bombs).
    """
    name = os.fspath(path)
    try:
        with warnings.catch_warnings():
            # Transparency in a palette: dropped on purpose.
            warnings.filterwarnings("ignore", message="Palette images with Transparency")
            with Image.open(name) as image:
                return _to_eight_bits(image).convert("RGB")
    except FileNotFoundError as error:
        raise UnreadableImageError(name, "there is no such file") from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError(name, "not an image in a format that PIL knows") from error
    except Exception as error:  # PIL's decoders raise nearly anything on broken files
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise UnreadableImageError(name, reason) from error


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Greys of more than 8 bits scaled to 8; other modes as they are."""
    if not image.mode.startswith("I"):
        return image
    wide = image.convert("I")  # 32 bits, values of 0..65535 from every 16-bit file
    return wide.point(lambda value: value * (1 / 257) + 0.5).convert("L")
