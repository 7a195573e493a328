"""AutoAugment's learned policies (Cubuk et al., arXiv 1805.09501): torchvision's under Dassl's names."""

from __future__ import annotations

from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2


class _Policy(v2.AutoAugment):
    """Applies one of the policy's pairs of operations, drawn at random, to a PIL image.

    Args:
        fillcolor: red, green and blue of the areas that a shear, a shift or a rotation leaves empty.
    """

    learned_on: AutoAugmentPolicy

    def __init__(self, fillcolor: tuple[int, int, int] = (128, 128, 128)) -> None:
        super().__init__(self.learned_on, interpolation=InterpolationMode.BICUBIC, fill=list(fillcolor))


class ImageNetPolicy(_Policy):
    """Learned on ImageNet."""

    learned_on = AutoAugmentPolicy.IMAGENET


class CIFAR10Policy(_Policy):
    """Learned on CIFAR-10."""

    learned_on = AutoAugmentPolicy.CIFAR10


class SVHNPolicy(_Policy):
    """Learned on SVHN."""

    learned_on = AutoAugmentPolicy.SVHN
