"""Pictures for pre-training with their content: clip art of the seen shapes, and digits and letters in matplotlib's
fonts, which the renderer draws from distance fields like shapes."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

from dassl_lite.datasets._drawn.looks import CLEAN, ROUGH, Look, Subjects, compose
from dassl_lite.datasets._drawn.render import PIXELS, draw, to_bytes, upsample
from dassl_lite.datasets._drawn.scene import COLOURS, FILL_NAMES, SOLID, Scene
from dassl_lite.datasets._drawn.shapes import SEEN_NAMES, TABLE_REACH, TABLE_SIZE, shape_table
from dassl_lite.utils.lazy import optional_module

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
GLYPH_HEIGHT = 1.9  # in the unit of the shapes

SHAPE, DIGIT, LETTER = range(3)  # kinds
UNKNOWN = -1  # a colour without a name

GLYPH = replace(
    ROUGH,
    size=(0.6, 0.95),
    turn=15,
    drift=0.4,
    thicken=(-0.02, 0.09),
    aspect=(0.7, 1.2),
    slant=0.25,
    wobble=(0.05, 0.3),
)
COARSE = replace(
    GLYPH, size=(0.7, 0.85), drift=0.2, aspect=(0.6, 1.1), thicken=(0.0, 0.1), backgrounds=(1, 0, 0), blur=0
)
COARSE_SIDE = 10  # coarse digits are averaged to this many pixels before they are enlarged again

SHARES = {"clean": 0.40, "rough": 0.30, "digits": 0.06, "coarse": 0.14, "letters": 0.10}


@dataclass
class Pictures:
    """Pictures and what they show.

    Attributes:
        images: (N, S, S, 3) uint8.
        contents: (N, 4) kind, shape or character, fill, colour.
    """

    images: npt.NDArray[np.uint8]
    contents: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)


def pretraining_pictures(count: int, rng: np.random.Generator, shares: dict[str, float] | None = None) -> Pictures:
    """About ``count`` pictures in random order; ``shares``: the fractions of the five kinds in SHARES."""
    counts = {name: round(count * share) for name, share in (shares or SHARES).items()}
    table = np.concatenate([shape_table(), glyph_table(DIGITS + LETTERS)])
    makers = {
        "clean": lambda n: _shapes(n, CLEAN, rng),
        "rough": lambda n: _shapes(n, ROUGH, rng),
        "digits": lambda n: _glyphs(n, DIGIT, rng, table),
        "coarse": lambda n: _coarse_digits(n, rng, table),
        "letters": lambda n: _glyphs(n, LETTER, rng, table),
    }
    parts = [makers[name](number) for name, number in counts.items() if number]
    order = rng.permutation(sum(len(part) for part in parts))
    images = np.concatenate([part.images for part in parts])[order]
    return Pictures(images, np.concatenate([part.contents for part in parts])[order])


def _shapes(count: int, look: Look, rng: np.random.Generator) -> Pictures:
    shape = rng.integers(0, len(SEEN_NAMES), count)
    fill = rng.integers(0, len(FILL_NAMES), count)
    colour = rng.integers(0, len(COLOURS), count)
    images = draw(compose(Subjects(shape, fill, colour), look, rng), rng)
    return Pictures(images, np.stack([np.full(count, SHAPE), shape, fill, colour], 1))


def _glyph_subjects(count: int, kind: int, rng: np.random.Generator) -> tuple[Subjects, npt.NDArray[np.int64]]:
    """Solid characters in random fonts, as rows of the extended table, and the index of each character."""
    characters = DIGITS if kind == DIGIT else LETTERS
    which = rng.integers(0, len(characters), count)
    start = len(shape_table()) + (len(DIGITS) * len(FONTS) if kind == LETTER else 0)
    rows = start + which * len(FONTS) + rng.integers(0, len(FONTS), count)
    return Subjects(rows, np.full(count, SOLID), rng.integers(0, len(COLOURS), count)), which


def _glyphs(count: int, kind: int, rng: np.random.Generator, table: npt.NDArray[np.float32]) -> Pictures:
    subjects, which = _glyph_subjects(count, kind, rng)
    images = draw(compose(subjects, GLYPH, rng), rng, table=table)
    return Pictures(images, np.stack([np.full(count, kind), which, subjects.fill, subjects.colour], 1))


def _coarse_digits(count: int, rng: np.random.Generator, table: npt.NDArray[np.float32]) -> Pictures:
    """Digits of a font, bright on dark and with few pixels, like scans of small handwriting."""
    subjects, which = _glyph_subjects(count, DIGIT, rng)
    scene = compose(subjects, COARSE, rng)
    _bright_on_dark(scene, rng)
    block = 6
    sharp = draw(scene, rng, COARSE_SIDE * block, table).astype(np.float32) / 255
    small = sharp.reshape(count, COARSE_SIDE, block, COARSE_SIDE, block, 3).mean((2, 4))
    images = to_bytes(upsample(small, PIXELS))
    unknown = np.full(count, UNKNOWN)
    return Pictures(images, np.stack([np.full(count, DIGIT), which, subjects.fill, unknown], 1))


def _bright_on_dark(scene: Scene, rng: np.random.Generator) -> None:
    count = len(scene)
    scene.layers[0].colour = np.repeat(rng.uniform(0.8, 1, (count, 1)), 3, axis=1).astype(np.float32)
    scene.background = np.repeat(rng.uniform(0, 0.08, (count, 1)), 3, axis=1).astype(np.float32)


@functools.lru_cache(maxsize=1)
def glyph_table(characters: str, fonts: tuple[str, ...] = FONTS) -> npt.NDArray[np.float32]:
    """Fields (len(characters) * len(fonts), TABLE_SIZE, TABLE_SIZE), grouped by character."""
    folder = _font_folder()
    faces = [ImageFont.truetype(str(folder / f"{font}.ttf"), 300) for font in fonts]
    return np.stack([_field(_drawn(character, face)) for character in characters for face in faces])


def _font_folder() -> Path:
    matplotlib = optional_module("matplotlib", "plots", "pre-training of the demo backbone")
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _drawn(character: str, face: ImageFont.FreeTypeFont) -> Image.Image:
    """One character, white on black, scaled to the table's unit and centred."""
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
