"""What a backbone expects of its images, told without loading its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import open_clip

from dassl_lite.models import names, openai_format, weights


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared.

    Attributes:
        size: (height, width) in pixels.
        mean, std: of the red, green and blue channel, for values between 0 and 1.
        interpolation: "bicubic" or "bilinear", for resizing.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = open_clip.OPENAI_DATASET_MEAN
    std: tuple[float, ...] = open_clip.OPENAI_DATASET_STD
    interpolation: str = "bicubic"


def preprocessing(name: str) -> Preprocessing:
    """What the backbone `name` expects of its images. Raises UserError as `load_clip` does."""
    return preprocessing_of(names.parse(name))


def preprocessing_of(backbone: names.BackboneName) -> Preprocessing:
    """The same for a name that was taken apart. Only a local file is opened."""
    if backbone.kind == "hub":
        config = weights.hub_config(backbone.architecture)
        return _published(config.get("preprocess_cfg", {}), config["model_cfg"]["vision_cfg"]["image_size"])
    if backbone.kind == "file":
        architecture = openai_format.architecture_of(*openai_format.read(backbone.file))
        return _published({}, architecture["vision_cfg"]["image_size"])
    size = open_clip.get_model_config(backbone.architecture)["vision_cfg"]["image_size"]
    return _published(open_clip.get_pretrained_cfg(backbone.architecture, backbone.tag), size)


def _published(config: Mapping[str, Any], size: Any) -> Preprocessing:
    """From open_clip's description of published weights; what that leaves out is as OpenAI has it."""
    height, width = (size, size) if isinstance(size, int) else size
    own = Preprocessing((int(height), int(width)))
    return Preprocessing(
        own.size,
        tuple(config.get("mean") or own.mean),
        tuple(config.get("std") or own.std),
        config.get("interpolation") or own.interpolation,
    )
