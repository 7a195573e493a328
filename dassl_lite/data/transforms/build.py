"""build_transform: the config's choices as one torchvision transform."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

from dassl_lite.data.transforms.steps import ON_TENSORS, TRANSFORMS, Step, interpolation, to_tensor
from dassl_lite.utils.errors import UserError, unknown

logger = logging.getLogger(__name__)

INTERPOLATION_MODES = {mode: InterpolationMode(mode) for mode in ("bilinear", "bicubic", "nearest")}
DEFAULT_CHOICES = ("random_resized_crop", "random_flip", "normalize")  # the field's protocol for CLIP


def build_transform(cfg: Any, is_train: bool = True, choices: Sequence[str] | None = None) -> T.Compose | None:
    """A transform from a PIL image to a tensor (3, H, W); None if ``INPUT.NO_TRANSFORM``.

    For training the ``choices`` are applied in the order of Dassl's list, whatever theirs. For testing: resize
    to the larger of the two sides, centre crop, and of the choices ``normalize`` and ``instance_norm``.

    Args:
        choices: names; by default ``INPUT.TRANSFORMS``, and if that is empty the protocol's.

    Raises:
        UserError: a choice, size, interpolation or statistic that cannot be.
    """
    if cfg.INPUT.NO_TRANSFORM:
        logger.info("Note: no transform is applied!")
        return None
    if choices is None:
        choices = cfg.INPUT.TRANSFORMS or DEFAULT_CHOICES
    for choice in choices:
        if choice not in TRANSFORMS:
            raise unknown("transform", choice, TRANSFORMS.registered_names(), "See INPUT.TRANSFORMS.")
    _check_input(cfg, choices)
    logger.info("Building transform_%s", "train" if is_train else "test")
    steps = list(_train_steps(cfg, choices) if is_train else _test_steps(cfg, choices))
    for step in steps:
        logger.info("%s", step.line)
    return T.Compose([step.transform for step in steps])


def _train_steps(cfg: Any, choices: Sequence[str]) -> Iterable[Step]:
    height, width = cfg.INPUT.SIZE
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        # Nothing else makes the size right.
        resize = T.Resize((height, width), interpolation=interpolation(cfg))
        yield Step(f"+ resize to {height}x{width}", resize)
    chosen = [name for name in TRANSFORMS if name in choices]
    yield from (TRANSFORMS.get(name)(cfg) for name in chosen if name not in ON_TENSORS)
    yield to_tensor(cfg)
    yield from (TRANSFORMS.get(name)(cfg) for name in chosen if name in ON_TENSORS)


def _test_steps(cfg: Any, choices: Sequence[str]) -> Iterable[Step]:
    height, width = cfg.INPUT.SIZE
    side = max(height, width)
    yield Step(f"+ resize the smaller edge to {side}", T.Resize(side, interpolation=interpolation(cfg)))
    yield Step(f"+ {height}x{width} center crop", T.CenterCrop((height, width)))
    yield to_tensor(cfg)
    yield from (TRANSFORMS.get(name)(cfg) for name in ("normalize", "instance_norm") if name in choices)


def _check_input(cfg: Any, choices: Sequence[str]) -> None:
    node = cfg.INPUT
    if len(node.SIZE) != 2 or any(not isinstance(side, int) or side < 1 for side in node.SIZE):
        raise UserError(f"INPUT.SIZE {tuple(node.SIZE)} should be (height, width) in pixels, such as (224, 224)")
    if node.INTERPOLATION not in INTERPOLATION_MODES:
        raise unknown("INPUT.INTERPOLATION", node.INTERPOLATION, INTERPOLATION_MODES)
    if "normalize" in choices and not (len(node.PIXEL_MEAN) == len(node.PIXEL_STD) == 3 and all(node.PIXEL_STD)):
        raise UserError(
            "INPUT.PIXEL_MEAN and INPUT.PIXEL_STD should have three numbers, for red, green and blue, and no deviation "
            f"of 0; they are {list(node.PIXEL_MEAN)} and {list(node.PIXEL_STD)}"
        )
