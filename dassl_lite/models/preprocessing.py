"""How a backbone expects its images, as open_clip and transformers describe it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dassl_lite.utils.errors import UserError, shown

__all__ = ["Preprocessing", "described_by_open_clip", "described_by_transformers"]

# OpenAI's, which are open_clip's defaults.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
# open_clip draws "random" in training and takes bicubic otherwise.
_INTERPOLATIONS = {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}
_PIL_FILTERS = {2: "bilinear", 3: "bicubic"}  # transformers uses Pillow's numbers
_RESIZE_MODES = ("shortest", "squash", "longest")
# Steps of transformers' image processors. Ours are always RGB, so `do_convert_rgb` changes none.
_STEPS = {"do_resize", "do_rescale", "do_normalize", "default_to_square"}
_OPTIONAL_STEPS = {"do_center_crop", "do_convert_rgb"}  # processors save null for steps that they lack
_OTHER_STEPS = ("rescale_offset", "crop_pct")  # beside every other `do_...`


@dataclass(frozen=True)
class Preprocessing:
    """How a backbone expects its images.

    Attributes:
        size: (height, width) in pixels.
        mean, std: of the red, green and blue channels, for values between 0 and 1.
        interpolation: "bicubic" or "bilinear", for resizing.
        resize_mode: "shortest" (the shorter side fits and the rest is cut off), "squash" (both sides fit), "longest"
            (the longer side fits and the rest is filled) or "cover" (shortest, for sides that differ).
        fill_color: red, green and blue of the filled area, 0 to 255.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: tuple[int, ...] = (0, 0, 0)


def described_by_open_clip(config: Mapping[str, Any], size: int | Sequence[int], source: str) -> Preprocessing:
    """From a ``preprocess_cfg`` or the entry of published weights; OpenAI's values where it gives none.

    Args:
        size: side, or (height, width), in pixels.
        source: named if it is refused.

    Raises:
        UserError: a value is invalid.
    """
    height, width = _pair(size, source)
    default = Preprocessing((height, width))
    interpolation = config.get("interpolation") or default.interpolation
    mode = config.get("resize_mode") or default.resize_mode
    if interpolation not in _INTERPOLATIONS:
        raise UserError(f"{source}: interpolation {shown(interpolation)} is not one of {', '.join(_INTERPOLATIONS)}")
    if mode not in _RESIZE_MODES:
        raise UserError(f"{source}: resize_mode {shown(mode)} is not one of {', '.join(_RESIZE_MODES)}")
    return Preprocessing(
        default.size,
        _channels(config.get("mean"), "mean", source) or default.mean,
        _channels(config.get("std"), "std", source, least=1e-12) or default.std,
        _INTERPOLATIONS[interpolation],
        "cover" if mode == "shortest" and height != width else mode,
        tuple(map(int, _channels(config.get("fill_color"), "fill_color", source, 0, 255) or default.fill_color)),
    )


def described_by_transformers(config: Mapping[str, Any], size: int | Sequence[int], source: str) -> Preprocessing:
    """From a ``preprocessor_config.json`` with the defaults of its kind of model; otherwise as for open_clip.

    Args:
        size: size of the model's input; the file's own sizes must result in it.
    """
    height, width = _pair(size, source)
    _check_steps(config, source)
    square = _is_square(config, source)
    resized, cropped = _sides(config.get("size")), _sides(config.get("crop_size"))
    crops = bool(config.get("do_center_crop"))
    if not config.get("do_resize", True) or not config.get("do_rescale", True):
        raise UserError(f"{source}: images that are not resized, or not scaled to 0 to 1, are not supported")
    made = (cropped or resized) if crops else resized
    if (made or (height, width)) != (height, width):
        raise UserError(f"{source}: images of {shown(made)} are made for a model that takes {(height, width)}")
    least = (height, width) if square else (max(height, width),) * 2
    if crops and (resized or least) != least:
        raise UserError(f"{source}: images are resized to {shown(resized)} and cropped to {(height, width)}")
    if not crops and not square:
        raise UserError(f"{source}: images are resized by their shorter edge and not cropped, so their sizes differ")
    resample = config.get("resample", 3)
    if resample not in _PIL_FILTERS:
        raise UserError(f"{source}: resample {shown(resample)} is neither 2 (bilinear) nor 3 (bicubic)")
    normalised = config.get("do_normalize", True)
    described = {
        "mean": config.get("image_mean") if normalised else 0.0,
        "std": config.get("image_std") if normalised else 1.0,
        "interpolation": _PIL_FILTERS[resample],
        "resize_mode": "squash" if square else "shortest",
    }
    return described_by_open_clip(described, (height, width), source)


def _check_steps(config: Mapping[str, Any], source: str) -> None:
    """Refuse steps that this preprocessing does not support."""
    named = f"{source}: preprocessor_config.json: "
    for key, value in config.items():
        if key in _STEPS or (key in _OPTIONAL_STEPS and value is not None):
            if not isinstance(value, bool):
                raise UserError(f"{named}{key} {shown(value)} is neither true nor false")
        elif value not in (None, False) and (key.startswith("do_") or key in _OTHER_STEPS):
            raise UserError(f"{named}{key} {shown(value)} is not supported")
    factor = config.get("rescale_factor", 1 / 255)
    plain = isinstance(factor, int | float) and not isinstance(factor, bool)
    if not plain or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise UserError(f"{named}rescale_factor {shown(factor)} is not supported; 1/255 (0.00392156862745098) is")


def _is_square(config: Mapping[str, Any], source: str) -> bool:
    """Whether both sides are resized, not only the shorter one."""
    size = config.get("size")
    if not isinstance(size, Mapping):
        return bool(config.get("default_to_square", not config.get("do_center_crop")))
    keys = {key for key, side in size.items() if side is not None}
    if keys not in ({"shortest_edge"}, {"height", "width"}):
        raise UserError(f"{source}: preprocessor_config.json: size {shown(dict(size))} is neither a shortest_edge nor "
                        "a height and a width")  # fmt: skip
    return "shortest_edge" not in keys


def _sides(size: Any) -> tuple[int, int] | None:
    """(height, width) of a size as transformers writes it; None if there is none."""
    if isinstance(size, Mapping):
        side = size.get("shortest_edge")
        return (side, side) if side is not None else (size["height"], size["width"])
    return None if size is None else (size, size)


def _pair(size: int | Sequence[int], source: str) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and 0 < side <= 4096 for side in sides):
        raise UserError(f"{source}: the image size {shown(size)} is invalid")
    return sides[0], sides[1]


def _channels(value: Any, name: str, source: str, least: float = -1e6, most: float = 1e6) -> tuple[float, ...] | None:
    """Three numbers, one per channel; a single number is repeated. None if there are none."""
    if value is None or value == []:
        return None
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    plain = all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers)
    if len(numbers) != 3 or not plain or not all(math.isfinite(one) and least <= one <= most for one in numbers):
        raise UserError(f"{source}: {name} {shown(value)} is not one number for red, green and blue each")
    return numbers
