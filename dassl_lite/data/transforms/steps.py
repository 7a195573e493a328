"""Dassl's choices of training transforms, one entry each: what is logged and what is done, in the order applied.

A plug-in adds its own: ``TRANSFORMS.register(lambda cfg: Step("+ mine", Mine()), name="mine")``; it is applied
to the image before it becomes a tensor, after all others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

from dassl_lite.data.transforms.autoaugment import CIFAR10Policy, ImageNetPolicy, SVHNPolicy
from dassl_lite.data.transforms.custom import (
    ENLARGEMENT,
    Cutout,
    GaussianNoise,
    InstanceNormalization,
    Random2DTranslation,
)
from dassl_lite.data.transforms.randaugment import RandAugment, RandAugment2, RandAugmentFixMatch
from dassl_lite.utils.registry import Registry


class Step(NamedTuple):
    """One transform and its line in the log."""

    line: str
    transform: Callable[[Any], Any]


TRANSFORMS = Registry("transform")  # name -> function from cfg to Step, in the order in which they are applied


def interpolation(cfg: Any) -> InterpolationMode:
    """The config's interpolation as torchvision names it."""
    return InterpolationMode(cfg.INPUT.INTERPOLATION)


def _choice(make: Callable[[Any], Step]) -> Callable[[Any], Step]:
    """Register a function under its name without the leading underscore."""
    return TRANSFORMS.register(make, name=make.__name__.lstrip("_"))


@_choice
def _random_translation(cfg: Any) -> Step:
    """Enlarge by an eighth with probability 0.5, and crop at random."""
    return Step("+ random translation", Random2DTranslation(*cfg.INPUT.SIZE))


@_choice
def _random_crop(cfg: Any) -> Step:
    """Pad by CROP_PADDING pixels and crop at random."""
    padding = cfg.INPUT.CROP_PADDING
    return Step(f"+ random crop (padding = {padding})", T.RandomCrop(tuple(cfg.INPUT.SIZE), padding=padding))


@_choice
def _random_resized_crop(cfg: Any) -> Step:
    """Crop a random part with an area in RRCROP_SCALE, and resize it."""
    size, scale = tuple(cfg.INPUT.SIZE), tuple(cfg.INPUT.RRCROP_SCALE)
    crop = T.RandomResizedCrop(size, scale=scale, interpolation=interpolation(cfg))
    return Step(f"+ random resized crop (size={size}, scale={scale})", crop)


@_choice
def _center_crop(cfg: Any) -> Step:
    """Enlarge by an eighth and crop the centre."""
    size = tuple(cfg.INPUT.SIZE)
    larger = tuple(int(side * ENLARGEMENT) for side in size)
    enlarge = T.Resize(larger, interpolation=interpolation(cfg))
    return Step("+ center crop (on 1.125x enlarged input)", T.Compose([enlarge, T.CenterCrop(size)]))


@_choice
def _random_flip(cfg: Any) -> Step:
    """Flip horizontally with probability 0.5."""
    return Step("+ random flip", T.RandomHorizontalFlip())


@_choice
def _imagenet_policy(cfg: Any) -> Step:
    """AutoAugment's policy for ImageNet."""
    return Step("+ imagenet policy", ImageNetPolicy())


@_choice
def _cifar10_policy(cfg: Any) -> Step:
    """AutoAugment's policy for CIFAR-10."""
    return Step("+ cifar10 policy", CIFAR10Policy())


@_choice
def _svhn_policy(cfg: Any) -> Step:
    """AutoAugment's policy for SVHN."""
    return Step("+ svhn policy", SVHNPolicy())


@_choice
def _randaugment(cfg: Any) -> Step:
    """RANDAUGMENT_N random operations of magnitude RANDAUGMENT_M."""
    n, m = cfg.INPUT.RANDAUGMENT_N, cfg.INPUT.RANDAUGMENT_M
    return Step(f"+ randaugment (n={n}, m={m})", RandAugment(n, m))


@_choice
def _randaugment_fixmatch(cfg: Any) -> Step:
    """RANDAUGMENT_N operations of FixMatch's list."""
    n = cfg.INPUT.RANDAUGMENT_N
    return Step(f"+ randaugment_fixmatch (n={n})", RandAugmentFixMatch(n))


@_choice
def _randaugment2(cfg: Any) -> Step:
    """RANDAUGMENT_N operations, each with a random probability and magnitude."""
    n = cfg.INPUT.RANDAUGMENT_N
    return Step(f"+ randaugment2 (n={n})", RandAugment2(n))


@_choice
def _colorjitter(cfg: Any) -> Step:
    """Change brightness, contrast, saturation and hue (COLORJITTER_*)."""
    values = {
        "brightness": cfg.INPUT.COLORJITTER_B,
        "contrast": cfg.INPUT.COLORJITTER_C,
        "saturation": cfg.INPUT.COLORJITTER_S,
        "hue": cfg.INPUT.COLORJITTER_H,
    }
    listed = ", ".join(f"{name}={value}" for name, value in values.items())
    return Step(f"+ color jitter ({listed})", T.ColorJitter(**values))


@_choice
def _randomgrayscale(cfg: Any) -> Step:
    """Turn grey with probability RGS_P."""
    return Step("+ random gray scale", T.RandomGrayscale(p=cfg.INPUT.RGS_P))


@_choice
def _gaussian_blur(cfg: Any) -> Step:
    """Blur with probability GB_P and kernel size GB_K."""
    kernel = cfg.INPUT.GB_K
    blur = T.RandomApply([T.GaussianBlur(kernel)], p=cfg.INPUT.GB_P)
    return Step(f"+ gaussian blur (kernel={kernel})", blur)


def to_tensor(cfg: Any) -> Step:
    """The step between those on images and those on tensors."""
    return Step("+ to torch tensor of range [0, 1]", T.ToTensor())


@_choice
def _cutout(cfg: Any) -> Step:
    """Cut CUTOUT_N squares of side CUTOUT_LEN out."""
    n, length = cfg.INPUT.CUTOUT_N, cfg.INPUT.CUTOUT_LEN
    return Step(f"+ cutout (n_holes={n}, length={length})", Cutout(n, length))


@_choice
def _normalize(cfg: Any) -> Step:
    """Subtract PIXEL_MEAN and divide by PIXEL_STD."""
    mean, std = list(cfg.INPUT.PIXEL_MEAN), list(cfg.INPUT.PIXEL_STD)
    return Step(f"+ normalization (mean={mean}, std={std})", T.Normalize(mean, std))


@_choice
def _gaussian_noise(cfg: Any) -> Step:
    """Add noise of mean GN_MEAN and deviation GN_STD."""
    mean, std = cfg.INPUT.GN_MEAN, cfg.INPUT.GN_STD
    return Step(f"+ gaussian noise (mean={mean}, std={std})", GaussianNoise(mean, std))


@_choice
def _instance_norm(cfg: Any) -> Step:
    """Normalise each channel by its own mean and deviation."""
    return Step("+ instance normalization", InstanceNormalization())


ON_TENSORS = ("cutout", "normalize", "gaussian_noise", "instance_norm")
AVAI_CHOICES = TRANSFORMS.registered_names()  # Dassl's name for the list
