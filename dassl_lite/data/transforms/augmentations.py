"""Dassl's transforms that torchvision lacks, or has in a different form.

They use the same random generators as Dassl, so that a seed gives the same images.

RandAugment applies a few randomly drawn operations one after the other. There are three variants; torchvision's has
other operations (no inversion, no cutout) and another scale of magnitudes.

- RandAugment: Cubuk et al. (arXiv 1909.13719), one magnitude for all operations.
- RandAugment2: a random magnitude for each operation, which is applied with probability ``p``.
- RandAugmentFixMatch: Sohn et al. (arXiv 2001.07685), Table 12: milder enhancements, no inversion.

AutoAugment's learned policies (Cubuk et al., arXiv 1805.09501) are torchvision's under Dassl's names; they are in
`policies`, so that this module is imported without torchvision.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from dassl_lite.utils.errors import UserError
from dassl_lite.utils.lazy import lazy_module

if TYPE_CHECKING:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F
else:
    F = lazy_module("torchvision.transforms.functional")

ENLARGEMENT = 1.125


@dataclass
class Random2DTranslation:
    """With probability ``p``, resize to 1.125 times the target size and crop at random; else resize to the target size.

    Args:
        height, width: target size in pixels.
        p: probability of the crop.
        interpolation: used by both resizes.
    """

    height: int
    width: int
    p: float = 0.5
    interpolation: InterpolationMode = field(default_factory=lambda: F.InterpolationMode.BILINEAR)

    def __call__(self, image: Image.Image) -> Image.Image:
        size = [self.height, self.width]
        if random.uniform(0, 1) > self.p:
            return F.resize(image, size, self.interpolation)
        larger = [round(side * ENLARGEMENT) for side in size]
        left = round(random.uniform(0, larger[1] - self.width))
        top = round(random.uniform(0, larger[0] - self.height))
        return F.crop(F.resize(image, larger, self.interpolation), top, left, self.height, self.width)


@dataclass
class ResizeKeepRatio:
    """Resize so that one side has its target size and the other is not longer, or not shorter, than its own.

    Args:
        size: target (height, width) in pixels.
        interpolation: of the resize.
        inside: True: neither side exceeds its target; False: neither falls short of it.
    """

    size: tuple[int, int]
    interpolation: InterpolationMode
    inside: bool

    def __call__(self, image: Image.Image) -> Image.Image:
        sides = image.size[::-1]
        ratios = [side / target for side, target in zip(sides, self.size, strict=True)]
        ratio = max(ratios) if self.inside else min(ratios)
        return F.resize(image, [max(1, round(side / ratio)) for side in sides], self.interpolation)


@dataclass
class PadToSize:
    """Put an image in the centre of a larger one.

    Args:
        size: (height, width) of the larger one in pixels.
        fill: its red, green and blue, 0 to 255.
    """

    size: tuple[int, int]
    fill: tuple[int, ...]

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = (target - side for target, side in zip(self.size[::-1], image.size, strict=True))
        border = [width // 2, height // 2, (width + 1) // 2, (height + 1) // 2]
        return F.pad(image, border, fill=self.fill if image.mode == "RGB" else self.fill[0])


@dataclass
class InstanceNormalization:
    """Scale each channel of an image (3, H, W) to mean 0 and standard deviation 1.

    Ulyanov et al., Instance Normalization: The Missing Ingredient for Fast Stylization (arXiv 1607.08022).
    """

    eps: float = 1e-8

    def __call__(self, image: Tensor) -> Tensor:
        std, mean = torch.std_mean(image, dim=(1, 2), keepdim=True)
        return (image - mean) / (std + self.eps)


@dataclass
class Cutout:
    """Set ``n_holes`` squares of an image (3, H, W), centred anywhere in it, to zero.

    DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout (arXiv 1708.04552).

    Args:
        n_holes: number of squares.
        length: side of a square in pixels; squares are clipped at the border.
    """

    n_holes: int = 1
    length: int = 16

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        half = self.length // 2
        result = image.clone()
        for _ in range(self.n_holes):
            y, x = np.random.randint(height), np.random.randint(width)
            result[..., max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
        return result


@dataclass
class GaussianNoise:
    """With probability ``p``, add Gaussian noise to an image tensor (3, H, W).

    Args:
        mean, std: of the noise, on the scale of the tensor after the earlier transforms.
        p: probability of adding noise.
    """

    mean: float = 0.0
    std: float = 0.15
    p: float = 0.5

    def __call__(self, image: Tensor) -> Tensor:
        if random.uniform(0, 1) > self.p:
            return image
        return image + torch.randn_like(image) * self.std + self.mean


# (operation, magnitude at 0, magnitude at 1)
Operation = tuple[Callable[[Image.Image, float], Image.Image], float, float]

_GREY = (125, 123, 114)  # ImageNet's mean colour, with which cutout fills


def _random_sign(value: float) -> float:
    return -value if random.random() > 0.5 else value


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def shear_x(image: Image.Image, v: float) -> Image.Image:
    return _affine(image, 1, _random_sign(v), 0, 0, 1, 0)


def shear_y(image: Image.Image, v: float) -> Image.Image:
    return _affine(image, 1, 0, 0, _random_sign(v), 1, 0)


def translate_x(image: Image.Image, v: float) -> Image.Image:
    """``v`` in image widths."""
    return translate_x_pixels(image, v * image.width)


def translate_y(image: Image.Image, v: float) -> Image.Image:
    """``v`` in image heights."""
    return translate_y_pixels(image, v * image.height)


def translate_x_pixels(image: Image.Image, v: float) -> Image.Image:
    return _affine(image, 1, 0, _random_sign(v), 0, 1, 0)


def translate_y_pixels(image: Image.Image, v: float) -> Image.Image:
    return _affine(image, 1, 0, 0, 0, 1, _random_sign(v))


def rotate(image: Image.Image, v: float) -> Image.Image:
    """``v`` in degrees."""
    return image.rotate(_random_sign(v))


def autocontrast(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.autocontrast(image)


def invert(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.invert(image)


def equalize(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.equalize(image)


def identity(image: Image.Image, _: float) -> Image.Image:
    return image


def solarize(image: Image.Image, v: float) -> Image.Image:
    """Invert pixels of value ``v`` and above."""
    return ImageOps.solarize(image, int(v))


def solarize_add(image: Image.Image, v: float) -> Image.Image:
    """Add ``v``, then invert pixels of value 128 and above."""
    brighter = np.clip(np.asarray(image, dtype=np.int64) + int(v), 0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(brighter), 128)


def posterize(image: Image.Image, v: float) -> Image.Image:
    """Keep ``v`` bits per channel."""
    return ImageOps.posterize(image, int(v))


def contrast(image: Image.Image, v: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(v)


def color(image: Image.Image, v: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(v)


def brightness(image: Image.Image, v: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(v)


def sharpness(image: Image.Image, v: float) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(v)


def cutout(image: Image.Image, v: float) -> Image.Image:
    """Fill a square of side ``v`` pixels, centred at random, with grey."""
    x, y = (max(0.0, np.random.uniform(side) - v / 2) for side in image.size)
    filled = image.copy()
    corner = (min(image.width, int(x) + v), min(image.height, int(y) + v))
    ImageDraw.Draw(filled).rectangle((int(x), int(y), *corner), _GREY)
    return filled


ORIGINAL: tuple[Operation, ...] = (
    (autocontrast, 0, 1),
    (equalize, 0, 1),
    (invert, 0, 1),
    (rotate, 0, 30),
    (posterize, 4, 8),
    (solarize, 0, 256),
    (solarize_add, 0, 110),
    (color, 0.1, 1.9),
    (contrast, 0.1, 1.9),
    (brightness, 0.1, 1.9),
    (sharpness, 0.1, 1.9),
    (shear_x, 0.0, 0.3),
    (shear_y, 0.0, 0.3),
    (cutout, 0, 40),
    (translate_x_pixels, 0.0, 100),
    (translate_y_pixels, 0.0, 100),
)


def _per_operation(lowest: float, highest: float) -> tuple[Operation, ...]:
    """Operations whose magnitude is drawn each time.

    Args:
        lowest, highest: range of the factors for brightness, colour, contrast and sharpness.
    """
    return (
        (autocontrast, 0, 1),
        (brightness, lowest, highest),
        (color, lowest, highest),
        (contrast, lowest, highest),
        (equalize, 0, 1),
        (identity, 0, 1),
        (posterize, 4, 8),
        (rotate, -30, 30),
        (sharpness, lowest, highest),
        (shear_x, -0.3, 0.3),
        (shear_y, -0.3, 0.3),
        (solarize, 0, 256),
        (translate_x, -0.3, 0.3),
        (translate_y, -0.3, 0.3),
    )


FIXMATCH = _per_operation(0.05, 0.95)
SECOND: tuple[Operation, ...] = (*_per_operation(0.1, 1.9), (invert, 0, 1))


@dataclass
class RandAugment:
    """``n`` operations at magnitude ``m`` of 30."""

    n: int = 2
    m: float = 10

    def __post_init__(self) -> None:
        if not 0 <= self.m <= 30:
            raise UserError(f"INPUT.RANDAUGMENT_M {self.m} is out of range: 0 to 30")

    def __call__(self, image: Image.Image) -> Image.Image:
        for operation, low, high in random.choices(ORIGINAL, k=self.n):
            image = operation(image, low + (high - low) * self.m / 30)
        return image


@dataclass
class RandAugment2:
    """``n`` operations, each with probability ``p`` and a random magnitude."""

    n: int = 2
    p: float = 0.6

    def __call__(self, image: Image.Image) -> Image.Image:
        for operation, low, high in random.choices(SECOND, k=self.n):
            if random.random() <= self.p:
                image = operation(image, low + (high - low) * random.random())
        return image


@dataclass
class RandAugmentFixMatch:
    """``n`` operations, each with a random magnitude."""

    n: int = 2

    def __call__(self, image: Image.Image) -> Image.Image:
        for operation, low, high in random.choices(FIXMATCH, k=self.n):
            image = operation(image, low + (high - low) * random.random())
        return image


def __getattr__(name: str) -> Any:
    """AutoAugment's policies, which are subclasses of one of torchvision's."""
    if name in ("CIFAR10Policy", "ImageNetPolicy", "SVHNPolicy"):
        from dassl_lite.data.transforms import policies

        return getattr(policies, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
