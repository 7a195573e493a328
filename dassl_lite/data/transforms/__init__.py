"""From an image to the tensor that the encoder takes: Dassl's choices by name, and what a cache must know of them."""

from __future__ import annotations

from dassl_lite.data.transforms.augmentations import (
    CIFAR10Policy,
    Cutout,
    GaussianNoise,
    ImageNetPolicy,
    InstanceNormalization,
    RandAugment,
    RandAugment2,
    RandAugmentFixMatch,
    Random2DTranslation,
    SVHNPolicy,
)
from dassl_lite.data.transforms.build import (
    AVAI_CHOICES,
    DEFAULT_CHOICES,
    INTERPOLATION_MODES,
    TRANSFORMS,
    build_transform,
)
from dassl_lite.data.transforms.describe import describe, is_random

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
    "build_transform",
    "describe",
    "is_random",
]
