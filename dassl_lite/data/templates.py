"""Prompt templates that several parts share."""

from __future__ import annotations

# The seven that CLIP's authors select out of their eighty for ImageNet.
IMAGENET_TEMPLATES_SELECT: tuple[str, ...] = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
