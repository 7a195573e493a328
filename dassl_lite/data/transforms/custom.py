"""The transforms of Dassl's list that torchvision does not have.

They draw from the generators that the reference's draw from, so that a seed gives the same images.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

ENLARGEMENT = 1.125


@dataclass
class Random2DTranslation:
    """With probability ``p`` enlarge to 1.125 times the target size and crop it at random, else resize to it.

    Args:
        height, width: size of the result in pixels.
        p: probability of the crop.
        interpolation: of both resizes.
    """

    height: int
    width: int
    p: float = 0.5
    interpolation: InterpolationMode = InterpolationMode.BILINEAR

    def __call__(self, image: Image.Image) -> Image.Image:
        size = [self.height, self.width]
        if random.uniform(0, 1) > self.p:
            return F.resize(image, size, self.interpolation)
        larger = [round(side * ENLARGEMENT) for side in size]
        left = round(random.uniform(0, larger[1] - self.width))
        top = round(random.uniform(0, larger[0] - self.height))
        return F.crop(F.resize(image, larger, self.interpolation), top, left, self.height, self.width)


@dataclass
class InstanceNormalization:
    """Each channel of an image (3, H, W) to mean 0 and standard deviation 1.

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
        length: their side in pixels; one that reaches over the border is cut there.
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
    """With probability ``p`` add normal noise to an image tensor, on the scale that it has by then."""

    mean: float = 0.0
    std: float = 0.15
    p: float = 0.5

    def __call__(self, image: Tensor) -> Tensor:
        if random.uniform(0, 1) > self.p:
            return image
        return image + torch.randn_like(image) * self.std + self.mean
