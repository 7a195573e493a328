"""How a backbone expects its images, as open_clip describes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from dassl_lite.utils.errors import UserError, shown

__all__ = ["Preprocessing", "described_by_open_clip"]

# open_clip draws "random" in training and takes bicubic otherwise.
_INTERPOLATIONS = {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}
_RESIZE_MODES = ("shortest", "squash", "longest")


@dataclass(frozen=True)
class Preprocessing:
    """How a backbone expects its images.

    Attributes:
        size: (height, width) in pixels.
        mean, std: of the red, green and blue channels, for values between 0 and 1.
        interpolation: "bicubic" or "bilinear", for resizing.
        resize_mode: "shortest" (the shorter side fits and the rest is cut off), "squash" (both sides fit), "longest"
            (the longer side fits and the rest is filled) or "cover" (shortest, for sides that differ).
        fill_color: red, green and blue of what is filled, 0 to 255.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = OPENAI_DATASET_MEAN
    std: tuple[float, ...] = OPENAI_DATASET_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: tuple[int, ...] = (0, 0, 0)


def described_by_open_clip(config: Mapping[str, Any], size: int | Sequence[int], source: str) -> Preprocessing:
    """From a ``preprocess_cfg`` or the entry of published weights; OpenAI's values where it gives none.

    Args:
        size: side, or (height, width), in pixels.
        source: named if it is refused.

    Raises:
        UserError: a value is none that a preprocessing can have.
    """
    height, width = _pair(size, source)
    default = Preprocessing((height, width))
    interpolation = config.get("interpolation") or default.interpolation
    mode = config.get("resize_mode") or default.resize_mode
    if interpolation not in _INTERPOLATIONS:
        raise UserError(f"{source}: interpolation {shown(interpolation)} is none of {', '.join(_INTERPOLATIONS)}")
    if mode not in _RESIZE_MODES:
        raise UserError(f"{source}: resize_mode {shown(mode)} is none of {', '.join(_RESIZE_MODES)}")
    return Preprocessing(
        default.size,
        _channels(config.get("mean"), "mean", source) or default.mean,
        _channels(config.get("std"), "std", source, least=1e-12) or default.std,
        _INTERPOLATIONS[interpolation],
        "cover" if mode == "shortest" and height != width else mode,
        tuple(map(int, _channels(config.get("fill_color"), "fill_color", source, 0, 255) or default.fill_color)),
    )


def _pair(size: int | Sequence[int], source: str) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and 0 < side <= 4096 for side in sides):
        raise UserError(f"{source}: the images' size {shown(size)} is none")
    return sides[0], sides[1]


def _channels(value: Any, name: str, source: str, least: float = -1e6, most: float = 1e6) -> tuple[float, ...] | None:
    """Three numbers, one of which stands for all; None if there are none."""
    if value is None or value == []:
        return None
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    plain = all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers)
    if len(numbers) != 3 or not plain or not all(math.isfinite(one) and least <= one <= most for one in numbers):
        raise UserError(f"{source}: {name} {shown(value)} is not one number for red, green and blue each")
    return numbers
