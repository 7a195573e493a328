"""Transforms: from a PIL image to the tensor that the encoder takes.

``build`` turns the config's choices, which have Dassl's names, into one torchvision transform. ``augmentations`` has
the steps that torchvision lacks. ``describe`` tells the feature cache whether a transform is random, and identifies it.
"""

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
    Transform,
    build_transform,
)
from dassl_lite.data.transforms.describe import describe, is_random, undescribed

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
