"""Transforms: from a PIL image to the tensor that the encoder takes.

``build`` turns the config's choices, which have Dassl's names, into one torchvision transform. ``augmentations`` has
the steps that torchvision lacks. ``describe`` tells the feature cache whether a transform is random, and identifies it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dassl_lite.data.transforms import augmentations, build
from dassl_lite.data.transforms.augmentations import (
    Cutout,
    GaussianNoise,
    InstanceNormalization,
    RandAugment,
    RandAugment2,
    RandAugmentFixMatch,
    Random2DTranslation,
)
from dassl_lite.data.transforms.build import (
    AVAI_CHOICES,
    DEFAULT_CHOICES,
    TRANSFORMS,
    Transform,
    build_transform,
)
from dassl_lite.data.transforms.describe import describe, is_random, undescribed

if TYPE_CHECKING:
    from torchvision.transforms import InterpolationMode

    from dassl_lite.data.transforms.policies import CIFAR10Policy, ImageNetPolicy, SVHNPolicy

    INTERPOLATION_MODES: dict[str, InterpolationMode]

__all__ = [
    "AVAI_CHOICES",
    "DEFAULT_CHOICES",
    "INTERPOLATION_MODES",
    "TRANSFORMS",
    "CIFAR10Policy",
    "Cutout",
    "GaussianNoise",
    "ImageNetPolicy",
    "InstanceNormalization",
    "RandAugment",
    "RandAugment2",
    "RandAugmentFixMatch",
    "Random2DTranslation",
    "SVHNPolicy",
    "Transform",
    "build_transform",
    "describe",
    "is_random",
    "undescribed",
]


def __getattr__(name: str) -> Any:
    """What needs torchvision, which is slow to load."""
    if name == "INTERPOLATION_MODES":
        return build.INTERPOLATION_MODES
    if name in ("CIFAR10Policy", "ImageNetPolicy", "SVHNPolicy"):
        return getattr(augmentations, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
