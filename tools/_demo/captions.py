"""Captions that name some of a picture's content, in random order and with one of several templates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dassl_lite.data.imagenet import IMAGENET_TEMPLATES_SELECT
from dassl_lite.datasets._drawn.scene import COLOUR_NAMES, FILL_NAMES
from dassl_lite.datasets._drawn.shapes import SEEN_NAMES
from dassl_lite.tools._demo.pictures import DIGIT, LETTERS, SHAPE, UNKNOWN

TEMPLATES = (
    "a photo of a {}.",
    "a photo of a {}.",
    "a photo of a {}.",
    "a {}.",
    "{}",
    "a picture of a {}.",
    "a drawing of a {}.",
    "an image of a {}.",
    "this is a {}.",
    *IMAGENET_TEMPLATES_SELECT,  # so that the model knows their words
)
GLYPH_TEMPLATES = ("a photo of the {}.", "a photo of the {}.", "the {}.", "{}", "a drawing of the {}.")
VAGUE_NOUNS = ("thing", "shape", "object")
DIGIT_NOUNS = ("digit", "digit", "number")
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTER_NAMES = tuple(LETTERS.lower())

NOT_NAMED = -2
P_VAGUE = 0.12  # probability of a noun that fits every shape
P_FILL = 0.55
P_COLOUR = 0.5
P_GLYPH_COLOUR = 0.25

Ints = npt.NDArray[np.int64]


def caption(content: Ints, rng: np.random.Generator) -> tuple[str, tuple[int, int, int, int]]:
    """A caption for ``content`` (kind, shape or character, fill, colour), and the part of the content that it names."""
    kind, which, fill, colour = (int(value) for value in content)
    if kind != SHAPE:
        return _glyph_caption(kind, which, colour, rng)
    vague = rng.random() < P_VAGUE
    noun = VAGUE_NOUNS[rng.integers(len(VAGUE_NOUNS))] if vague else SEEN_NAMES[which]
    names_fill = rng.random() < P_FILL
    names_colour = rng.random() < P_COLOUR or (vague and not names_fill)
    adjectives = [FILL_NAMES[fill]] * names_fill + [COLOUR_NAMES[colour]] * names_colour
    if rng.random() < 0.5:
        adjectives.reverse()
    named = (
        kind,
        NOT_NAMED if vague else which,
        fill if names_fill else NOT_NAMED,
        colour if names_colour else NOT_NAMED,
    )
    return TEMPLATES[rng.integers(len(TEMPLATES))].format(" ".join([*adjectives, noun])), named


def _glyph_caption(
    kind: int, which: int, colour: int, rng: np.random.Generator
) -> tuple[str, tuple[int, int, int, int]]:
    if kind == DIGIT:
        words = [DIGIT_NOUNS[rng.integers(len(DIGIT_NOUNS))], DIGIT_NAMES[which]]
    else:
        words = ["letter", LETTER_NAMES[which]]
    names_colour = colour != UNKNOWN and rng.random() < P_GLYPH_COLOUR
    if names_colour:
        words.insert(0, COLOUR_NAMES[colour])
    named = (kind, which, NOT_NAMED, colour if names_colour else NOT_NAMED)
    return GLYPH_TEMPLATES[rng.integers(len(GLYPH_TEMPLATES))].format(" ".join(words)), named


def every_word() -> list[str]:
    """Texts that together contain every word of every caption."""
    nouns = [*SEEN_NAMES, *VAGUE_NOUNS]
    words = [*nouns, *FILL_NAMES, *COLOUR_NAMES]
    glyphs = [f"{noun} {name}" for noun in DIGIT_NOUNS for name in DIGIT_NAMES]
    glyphs += [f"letter {name}" for name in LETTER_NAMES] + list(COLOUR_NAMES)
    shapes = [template.format(word) for template in TEMPLATES for word in words]
    return shapes + [template.format(word) for template in GLYPH_TEMPLATES for word in glyphs]
