"""ImageNet's classes as the field uses them: wnids that identify them, names for prompts, prompt templates."""

from __future__ import annotations

import functools
import os
import re

from dassl_lite.data.classes import ClassList
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import open_text

WNID = re.compile(r"n\d{8}")


@functools.cache
def imagenet_classes() -> ClassList:
    """ImageNet-1k's classes in label order (sorted by wnid), with the names that CLIP's authors chose.

    The wnids come from timm, the names from open_clip. Two names occur twice: ``missile`` and ``sunglasses``.
    """
    from open_clip import IMAGENET_CLASSNAMES  # slow to import
    from timm.data import ImageNetInfo

    return ClassList(tuple(IMAGENET_CLASSNAMES), tuple(ImageNetInfo("imagenet-1k").label_names()))


@functools.cache
def imagenet_names() -> dict[str, str]:
    """Class name of each wnid of ImageNet-1k."""
    classes = imagenet_classes()
    return dict(zip(classes.ids, classes.names, strict=True))


def read_classnames(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read a ``classnames.txt`` with a wnid and a class name on each line (``n01440764 tench``).

    Returns:
        Class name of each wnid.

    Raises:
        UserError: a line is not a wnid and a name, or a wnid occurs twice.
        OSError: the file cannot be read.
    """
    names: dict[str, str] = {}
    with open_text(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            wnid, _, name = line.strip().partition(" ")
            if not wnid:
                continue
            if not WNID.fullmatch(wnid) or not name.strip() or wnid in names:
                wrong = "occurs twice" if wnid in names else "should be a wnid and a class name"
                raise UserError(f"'{path}', line {number}: '{line.strip()}' {wrong}")
            names[wnid] = name.strip()
    return names


# The seven of CLIP's 80 ImageNet templates that its authors found to work best together.
IMAGENET_TEMPLATES_SELECT: tuple[str, ...] = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
