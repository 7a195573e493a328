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

# The first 60 of the 80 templates that CLIP's authors wrote for ImageNet, as PromptSRC averages them for every dataset.
IMAGENET_TEMPLATES_60: tuple[str, ...] = (
    "a photo of a {}.",
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
)
