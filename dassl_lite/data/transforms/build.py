"""The transforms named in the config as one torchvision transform, built from a registry of Dassl's choices.

``TRANSFORMS`` has an entry for each choice, with its line in the log and its transform, in the order of application. A
plug-in adds its own with ``TRANSFORMS.register(lambda cfg: Step("+ mine", Mine()), name="mine")``; it is applied to the
PIL image, after all others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image
from torch import Tensor
from yacs.config import CfgNode

from dassl_lite.config import completed
from dassl_lite.data.transforms.augmentations import (
    ENLARGEMENT,
    Cutout,
    GaussianNoise,
    InstanceNormalization,
    PadToSize,
    RandAugment,
    RandAugment2,
    RandAugmentFixMatch,
    Random2DTranslation,
    ResizeKeepRatio,
)
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.lazy import lazy_module
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.registry import Registry

if TYPE_CHECKING:
    from torchvision import transforms as T
    from torchvision.transforms import InterpolationMode

    from dassl_lite.data.transforms import policies
else:
    T = lazy_module("torchvision.transforms")
    policies = lazy_module("dassl_lite.data.transforms.policies")

logger = get_logger(__name__)

Transform = Callable[[Image.Image], Tensor]

_INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
RESIZE_MODES = ("shortest", "squash", "longest", "cover")
DEFAULT_CHOICES = ("random_resized_crop", "random_flip", "normalize")  # the field's protocol for CLIP


class Step(NamedTuple):
    """A transform of PIL images or of tensors, and its line in the log."""

    line: str
    transform: Callable[[Image.Image], Image.Image | Tensor] | Callable[[Tensor], Tensor]


TRANSFORMS = Registry("transform")  # name -> function from cfg to Step, in the order of application


def interpolation(cfg: CfgNode) -> InterpolationMode:
    """The config's interpolation as a constant of torchvision's."""
    return T.InterpolationMode(cfg.INPUT.INTERPOLATION)


def _choice(make: Callable[[CfgNode], Step]) -> Callable[[CfgNode], Step]:
    """Register a function under its name without the leading underscore."""
    return TRANSFORMS.register(make, name=make.__name__.lstrip("_"))


@_choice
def _random_translation(cfg: CfgNode) -> Step:
    """With probability 0.5, enlarge by an eighth and crop at random."""
    return Step("+ random translation", Random2DTranslation(*cfg.INPUT.SIZE))


@_choice
def _random_crop(cfg: CfgNode) -> Step:
    """Pad by CROP_PADDING pixels and crop at random."""
    padding = cfg.INPUT.CROP_PADDING
    return Step(f"+ random crop (padding = {padding})", T.RandomCrop(tuple(cfg.INPUT.SIZE), padding=padding))


@_choice
def _random_resized_crop(cfg: CfgNode) -> Step:
    """Crop a random fraction of the area, in RRCROP_SCALE, and resize it."""
    size, scale = tuple(cfg.INPUT.SIZE), tuple(cfg.INPUT.RRCROP_SCALE)
    crop = T.RandomResizedCrop(size, scale=scale, interpolation=interpolation(cfg))
    return Step(f"+ random resized crop (size={size}, scale={scale})", crop)


@_choice
def _center_crop(cfg: CfgNode) -> Step:
    """Enlarge by an eighth and crop the centre."""
    size = tuple(cfg.INPUT.SIZE)
    larger = tuple(int(side * ENLARGEMENT) for side in size)
    enlarge = T.Resize(larger, interpolation=interpolation(cfg))
    return Step("+ center crop (on 1.125x enlarged input)", T.Compose([enlarge, T.CenterCrop(size)]))


@_choice
def _random_flip(cfg: CfgNode) -> Step:
    """Flip horizontally with probability 0.5."""
    return Step("+ random flip", T.RandomHorizontalFlip())


@_choice
def _imagenet_policy(cfg: CfgNode) -> Step:
    """AutoAugment's policy for ImageNet."""
    return Step("+ imagenet policy", policies.ImageNetPolicy())


@_choice
def _cifar10_policy(cfg: CfgNode) -> Step:
    """AutoAugment's policy for CIFAR-10."""
    return Step("+ cifar10 policy", policies.CIFAR10Policy())


@_choice
def _svhn_policy(cfg: CfgNode) -> Step:
    """AutoAugment's policy for SVHN."""
    return Step("+ svhn policy", policies.SVHNPolicy())


@_choice
def _randaugment(cfg: CfgNode) -> Step:
    """RANDAUGMENT_N random operations of magnitude RANDAUGMENT_M."""
    n, m = cfg.INPUT.RANDAUGMENT_N, cfg.INPUT.RANDAUGMENT_M
    return Step(f"+ randaugment (n={n}, m={m})", RandAugment(n, m))


@_choice
def _randaugment_fixmatch(cfg: CfgNode) -> Step:
    """RANDAUGMENT_N operations of FixMatch's list."""
    n = cfg.INPUT.RANDAUGMENT_N
    return Step(f"+ randaugment_fixmatch (n={n})", RandAugmentFixMatch(n))


@_choice
def _randaugment2(cfg: CfgNode) -> Step:
    """RANDAUGMENT_N operations, each with a random probability and magnitude."""
    n = cfg.INPUT.RANDAUGMENT_N
    return Step(f"+ randaugment2 (n={n})", RandAugment2(n))


@_choice
def _colorjitter(cfg: CfgNode) -> Step:
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
def _randomgrayscale(cfg: CfgNode) -> Step:
    """Turn grey with probability RGS_P."""
    return Step("+ random gray scale", T.RandomGrayscale(p=cfg.INPUT.RGS_P))


@_choice
def _gaussian_blur(cfg: CfgNode) -> Step:
    """Blur with probability GB_P and kernel size GB_K."""
    kernel = cfg.INPUT.GB_K
    blur = T.RandomApply([T.GaussianBlur(kernel)], p=cfg.INPUT.GB_P)
    return Step(f"+ gaussian blur (kernel={kernel})", blur)


def to_tensor(cfg: CfgNode) -> Step:
    """The step between the transforms of images and those of tensors."""
    return Step("+ to torch tensor of range [0, 1]", T.ToTensor())


@_choice
def _cutout(cfg: CfgNode) -> Step:
    """Set CUTOUT_N squares of side CUTOUT_LEN to zero."""
    n, length = cfg.INPUT.CUTOUT_N, cfg.INPUT.CUTOUT_LEN
    return Step(f"+ cutout (n_holes={n}, length={length})", Cutout(n, length))


@_choice
def _normalize(cfg: CfgNode) -> Step:
    """Subtract PIXEL_MEAN and divide by PIXEL_STD."""
    mean, std = list(cfg.INPUT.PIXEL_MEAN), list(cfg.INPUT.PIXEL_STD)
    return Step(f"+ normalization (mean={mean}, std={std})", T.Normalize(mean, std))


@_choice
def _gaussian_noise(cfg: CfgNode) -> Step:
    """Add Gaussian noise with mean GN_MEAN and standard deviation GN_STD."""
    mean, std = cfg.INPUT.GN_MEAN, cfg.INPUT.GN_STD
    return Step(f"+ gaussian noise (mean={mean}, std={std})", GaussianNoise(mean, std))


@_choice
def _instance_norm(cfg: CfgNode) -> Step:
    """Normalise each channel by its own mean and standard deviation."""
    return Step("+ instance normalization", InstanceNormalization())


ON_TENSORS = ("cutout", "normalize", "gaussian_noise", "instance_norm")
AVAI_CHOICES = TRANSFORMS.registered_names()  # Dassl's name for the list


# Keys of INPUT that only some of these transforms read.
_READ_BY = {
    "CROP_PADDING": ("random_crop",),
    "RRCROP_SCALE": ("random_resized_crop",),
    "CUTOUT_N": ("cutout",),
    "CUTOUT_LEN": ("cutout",),
    "GN_MEAN": ("gaussian_noise",),
    "GN_STD": ("gaussian_noise",),
    "RANDAUGMENT_N": ("randaugment", "randaugment_fixmatch", "randaugment2"),
    "RANDAUGMENT_M": ("randaugment",),
    **dict.fromkeys(("COLORJITTER_B", "COLORJITTER_C", "COLORJITTER_S", "COLORJITTER_H"), ("colorjitter",)),
    "RGS_P": ("randomgrayscale",),
    "GB_P": ("gaussian_blur",),
    "GB_K": ("gaussian_blur",),
    "PIXEL_MEAN": ("normalize",),
    "PIXEL_STD": ("normalize",),
}


def idle_keys(cfg: CfgNode) -> dict[str, str]:
    """Keys of INPUT that the chosen transforms do not read, each with the reason."""
    chosen = cfg.INPUT.TRANSFORMS or DEFAULT_CHOICES
    if not set(chosen) <= set(AVAI_CHOICES):  # a plug-in's may read any
        return {}
    unread = {key: names for key, names in _READ_BY.items() if not set(names) & set(chosen)}
    idle = {key: f"{' or '.join(names)} is not among INPUT.TRANSFORMS" for key, names in unread.items()}
    return idle if cfg.INPUT.RESIZE_MODE == "longest" else {**idle, "FILL_COLOR": "INPUT.RESIZE_MODE is not longest"}


def build_transform(cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None) -> T.Compose | None:
    """Build a transform from a PIL image to a tensor (3, H, W), or None if ``INPUT.NO_TRANSFORM`` is True.

    In training, the ``choices`` are applied in the order of Dassl's list. In testing, the image is resized to
    ``INPUT.SIZE`` as ``INPUT.RESIZE_MODE`` says: by default, the smaller side is resized to the larger of the two
    target sides and the centre is cropped. Of the choices, only ``normalize`` and ``instance_norm`` are applied.

    Args:
        choices: names in ``TRANSFORMS``; by default ``INPUT.TRANSFORMS``, or the protocol's if that is empty.

    Raises:
        UserError: a choice is unknown, or ``INPUT`` has an invalid size, interpolation, way of resizing, mean or
            standard deviation.
    """
    cfg = completed(cfg)
    if cfg.INPUT.NO_TRANSFORM:
        logger.info("Note: no transform is applied!")
        return None
    if choices is None:
        choices = cfg.INPUT.TRANSFORMS or DEFAULT_CHOICES
    for choice in choices:
        if choice not in TRANSFORMS:
            raise unknown("transform", choice, TRANSFORMS.registered_names(), "See INPUT.TRANSFORMS.")
    _check_input(cfg, choices)
    logger.info(f"Building transform_{'train' if is_train else 'test'}")
    steps = list(_train_steps(cfg, choices) if is_train else _test_steps(cfg, choices))
    for step in steps:
        logger.info(step.line)
    return T.Compose([step.transform for step in steps])


def _train_steps(cfg: CfgNode, choices: Sequence[str]) -> Iterable[Step]:
    height, width = cfg.INPUT.SIZE
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        # No other choice gives the target size.
        resize = T.Resize((height, width), interpolation=interpolation(cfg))
        yield Step(f"+ resize to {height}x{width}", resize)
    chosen = [name for name in TRANSFORMS if name in choices]
    yield from (TRANSFORMS.get(name)(cfg) for name in chosen if name not in ON_TENSORS)
    yield to_tensor(cfg)
    yield from (TRANSFORMS.get(name)(cfg) for name in chosen if name in ON_TENSORS)


def _test_steps(cfg: CfgNode, choices: Sequence[str]) -> Iterable[Step]:
    yield from _resize_steps(cfg)
    yield to_tensor(cfg)
    yield from (TRANSFORMS.get(name)(cfg) for name in ("normalize", "instance_norm") if name in choices)


def _resize_steps(cfg: CfgNode) -> Iterable[Step]:
    """To the target size, in testing."""
    size = height, width = tuple(cfg.INPUT.SIZE)
    mode, fill = cfg.INPUT.RESIZE_MODE or RESIZE_MODES[0], tuple(cfg.INPUT.FILL_COLOR) or (0, 0, 0)
    if mode == "squash":
        yield Step(f"+ resize to {height}x{width}", T.Resize(size, interpolation=interpolation(cfg)))
        return
    if mode == "longest":
        yield Step(f"+ resize to fit into {height}x{width}", ResizeKeepRatio(size, interpolation(cfg), inside=True))
        yield Step(f"+ fill up to {height}x{width} with {fill}", PadToSize(size, fill))
        return
    if mode == "cover":
        yield Step(f"+ resize to cover {height}x{width}", ResizeKeepRatio(size, interpolation(cfg), inside=False))
    else:
        side = max(size)
        yield Step(f"+ resize the smaller edge to {side}", T.Resize(side, interpolation=interpolation(cfg)))
    yield Step(f"+ {height}x{width} center crop", T.CenterCrop(size))


def _check_input(cfg: CfgNode, choices: Sequence[str]) -> None:
    node = cfg.INPUT
    if len(node.SIZE) != 2 or any(not isinstance(side, int) or side < 1 for side in node.SIZE):
        raise UserError(f"INPUT.SIZE {tuple(node.SIZE)} should be (height, width) in pixels, such as (224, 224)")
    if node.INTERPOLATION not in _INTERPOLATIONS:
        raise unknown("INPUT.INTERPOLATION", node.INTERPOLATION, _INTERPOLATIONS)
    if (node.RESIZE_MODE or RESIZE_MODES[0]) not in RESIZE_MODES:
        raise unknown("INPUT.RESIZE_MODE", node.RESIZE_MODE, RESIZE_MODES)
    if "normalize" in choices and not (len(node.PIXEL_MEAN) == len(node.PIXEL_STD) == 3 and all(node.PIXEL_STD)):
        raise UserError(
            "INPUT.PIXEL_MEAN and INPUT.PIXEL_STD should have three numbers, for red, green and blue, and no standard "
            f"deviation of 0; they are {list(node.PIXEL_MEAN)} and {list(node.PIXEL_STD)}"
        )


@functools.cache
def _interpolation_modes() -> dict[str, InterpolationMode]:
    """Dassl's table of torchvision's constants, by name."""
    return {mode: T.InterpolationMode(mode) for mode in _INTERPOLATIONS}


def __getattr__(name: str) -> Any:
    if name == "INTERPOLATION_MODES":  # torchvision is slow to load
        return _interpolation_modes()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
