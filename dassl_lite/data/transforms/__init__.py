"""From an image to the tensor that the encoder takes: Dassl's choices by name, and what a cache must know of them."""

from __future__ import annotations

from dassl_lite.data.transforms.autoaugment import CIFAR10Policy, ImageNetPolicy, SVHNPolicy
from dassl_lite.data.transforms.build import DEFAULT_CHOICES, INTERPOLATION_MODES, build_transform
from dassl_lite.data.transforms.custom import Cutout, GaussianNoise, InstanceNormalization, Random2DTranslation
from dassl_lite.data.transforms.describe import describe, is_random
from dassl_lite.data.transforms.randaugment import RandAugment, RandAugment2, RandAugmentFixMatch
from dassl_lite.data.transforms.steps import AVAI_CHOICES, TRANSFORMS

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
