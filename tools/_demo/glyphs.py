"""Digits and letters of the fonts that matplotlib ships, as distance fields for the renderer (pre-training only)."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

from dassl_lite.datasets._drawn.shapes import TABLE_REACH, TABLE_SIZE
from dassl_lite.utils import UserError

DIGITS = "0123456789"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmr10",
    "cmb10",
    "cmss10",
    "cmtt10",
)
OVERSAMPLING = 2
GLYPH_HEIGHT = 1.9  # in the shapes' unit


@functools.lru_cache(maxsize=1)
def glyph_table(characters: str, fonts: tuple[str, ...] = FONTS) -> npt.NDArray[np.float32]:
    """Fields (len(characters) * len(fonts), TABLE_SIZE, TABLE_SIZE), all fonts of a character together."""
    folder = _font_folder()
    faces = [ImageFont.truetype(str(folder / f"{font}.ttf"), 300) for font in fonts]
    return np.stack([_field(_drawn(character, face)) for character in characters for face in faces])


def _font_folder() -> Path:
    try:
        import matplotlib
    except ImportError as error:
        raise UserError('pre-training draws with the fonts of matplotlib: pip install -e ".[dev]"') from error
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _drawn(character: str, face: ImageFont.FreeTypeFont) -> Image.Image:
    """The character alone, white on black, scaled to the table's unit and centred."""
    page = Image.new("L", (700, 700))
    ImageDraw.Draw(page).text((150, 150), character, font=face, fill=255)
    glyph = page.crop(page.getbbox())
    side = TABLE_SIZE * OVERSAMPLING
    height = int(side / (2 * TABLE_REACH) * GLYPH_HEIGHT)
    width = min(side, max(8, int(glyph.width * height / glyph.height)))
    canvas = Image.new("L", (side, side))
    canvas.paste(glyph.resize((width, height)), ((side - width) // 2, (side - height) // 2))
    return canvas


def _field(canvas: Image.Image) -> npt.NDArray[np.float32]:
    inside = np.asarray(canvas)[::-1] > 127  # the table's first row is the lowest
    distance = distance_transform_edt(~inside) - distance_transform_edt(inside)
    blocks = distance.reshape(TABLE_SIZE, OVERSAMPLING, TABLE_SIZE, OVERSAMPLING).mean((1, 3))
    return (blocks * (2 * TABLE_REACH / inside.shape[0])).astype(np.float32)
