"""The class lists of the drawn datasets that show one object.

Class ids look like ImageNet's, a letter and eight digits, and are the same in every dataset with the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dassl_lite.datasets._drawn.looks import Subjects
from dassl_lite.datasets._drawn.scene import COLOUR_NAMES, FILL_NAMES, Ints
from dassl_lite.datasets._drawn.shapes import SEEN_NAMES, SHAPE_NAMES, UNSEEN_NAMES

FILL_ODDS = (0.28, 0.18, 0.18, 0.18, 0.18)  # for classes that do not fix the fill
NUM_BASIC_SHAPES = 16  # the shapes of ShapesNet, which are also drawn for classes that do not fix the shape


@dataclass(frozen=True)
class ObjectClass:
    """A class, defined by what its pictures have in common; an empty field varies between pictures."""

    name: str
    shape: str = ""
    fill: str = ""
    colour: str = ""
    id: str = ""


def subjects_of(classes: Sequence[ObjectClass], labels: Ints, rng: np.random.Generator) -> Subjects:
    """The subjects of the pictures with these labels (N,)."""
    count = len(labels)
    return Subjects(
        shape=_fixed(classes, labels, "shape", SHAPE_NAMES, rng.integers(0, NUM_BASIC_SHAPES, count)),
        fill=_fixed(classes, labels, "fill", FILL_NAMES, rng.choice(len(FILL_NAMES), count, p=FILL_ODDS)),
        colour=_fixed(classes, labels, "colour", COLOUR_NAMES, rng.integers(0, len(COLOUR_NAMES), count)),
    )


def _fixed(classes: Sequence[ObjectClass], labels: Ints, key: str, names: Sequence[str], drawn: Ints) -> Ints:
    """The position in `names` of each picture's value of `key`: fixed by its class, else drawn."""
    fixed = np.array([names.index(value) if (value := getattr(cls, key)) else -1 for cls in classes])[labels]
    return np.where(fixed >= 0, fixed, drawn)


def _shapesnet() -> tuple[ObjectClass, ...]:
    """Three of the five fills for each basic shape, in the order of the ids."""
    classes = []
    for s, shape in enumerate(SEEN_NAMES[:NUM_BASIC_SHAPES]):
        for f, fill in enumerate(FILL_NAMES):
            if (f + s) % 5 not in (0, 3):
                classes.append(ObjectClass(f"{fill} {shape}", shape, fill, id=f"s{s + 1:04d}{f + 1:04d}"))
    return tuple(classes)


def _subset(classes: Sequence[ObjectClass], count: int, step: int) -> tuple[ObjectClass, ...]:
    """`count` classes, `step` apart in a ring, in alphabetical order, so that labels differ from the whole list."""
    picked = [classes[position * step % len(classes)] for position in range(count)]
    return tuple(sorted(picked, key=lambda cls: cls.name))


SHAPESNET = _shapesnet()
SHAPESNET_A = _subset(SHAPESNET, count=16, step=7)
SHAPESNET_R = _subset(SHAPESNET, count=24, step=5)
SILHOUETTES = tuple(ObjectClass(name, shape=name, fill="solid") for name in SEEN_NAMES)
GADGETS = tuple(ObjectClass(name, shape=name) for name in UNSEEN_NAMES)
PAINTS = tuple(
    ObjectClass(f"{colour} {fill} shape", fill=fill, colour=colour)
    for c, colour in enumerate(COLOUR_NAMES)
    for f, fill in enumerate(FILL_NAMES)
    if (c + f) % 2 == 0
)
