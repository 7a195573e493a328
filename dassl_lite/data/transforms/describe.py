"""What a cache of features must know of a transform: whether it draws at random, and a text that identifies it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torchvision import transforms as T
from torchvision.transforms import v2

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

# Descriptions name feature caches on disk, so a class that has moved keeps the module in which it began.
_FIRST_MODULE: dict[type, str] = {
    **dict.fromkeys((Cutout, GaussianNoise, InstanceNormalization, Random2DTranslation), "custom"),
    **dict.fromkeys((RandAugment, RandAugment2, RandAugmentFixMatch), "randaugment"),
    **dict.fromkeys((CIFAR10Policy, ImageNetPolicy, SVHNPolicy), "autoaugment"),
}

# Those that give the same result for the same image; every other is taken to draw at random.
_DETERMINISTIC: tuple[type, ...] = (
    InstanceNormalization,
    *(T.Resize, T.CenterCrop, T.ToTensor, T.PILToTensor, T.ConvertImageDtype, T.Normalize, T.Grayscale, T.Pad),
    *(v2.Resize, v2.CenterCrop, v2.ToImage, v2.PILToTensor, v2.ToDtype, v2.Normalize, v2.Grayscale, v2.Pad, v2.RGB),
)


def is_random(transform: Any) -> bool:
    """Whether two calls on one image may differ.

    What cannot be known is taken to be random: a transform of one's own says otherwise by an attribute
    ``deterministic = True``.
    """
    parts = _parts(transform)
    if parts is not None:
        return any(map(is_random, parts))
    return not (isinstance(transform, _DETERMINISTIC) or getattr(transform, "deterministic", False))


def describe(transform: Any) -> str:
    """A text that is the same for the same transform, in every process, and another for another.

    Built of class names and settings; a function adds its code, since its name says nothing of what it does.
    """
    parts = _parts(transform)
    if parts is not None:
        return f"{_name(type(transform))}({', '.join(map(describe, parts))})"
    return _describe_value(transform)


def _parts(transform: Any) -> Iterable[Any] | None:
    """The transforms that are applied one after the other, if this is a chain of them."""
    if isinstance(transform, (T.Compose, v2.Compose)):
        return transform.transforms
    if isinstance(transform, (list, tuple)) and all(map(callable, transform)):
        return transform
    return None


def _describe_value(value: Any) -> str:
    if isinstance(value, (FunctionType, MethodType, functools.partial)):
        return _describe_function(value)
    if isinstance(value, torch.Tensor):
        return f"tensor({value.tolist()})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_describe_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_describe_value(value[key])}' for key in sorted(value, key=str))}}}"
    if isinstance(value, (set, frozenset)):  # their own order differs from process to process
        return f"{{{', '.join(sorted(map(_describe_value, value)))}}}"
    if isinstance(value, type) or not hasattr(value, "__dict__") or _plain(value):
        return _name(value) if isinstance(value, type) else repr(value)
    # torchvision's own texts round their numbers, and those of other classes may hold an address.
    settings = {key: item for key, item in vars(value).items() if key not in _BOOKKEEPING}
    settings |= {f"modules.{key}": item for key, item in getattr(value, "_modules", {}).items()}
    listed = ", ".join(f"{key}={_describe_value(settings[key])}" for key in sorted(settings))
    return f"{_name(type(value))}({listed})"


_BOOKKEEPING = frozenset(vars(torch.nn.Module()))  # hooks and the like, none of them a setting


def _plain(value: Any) -> bool:
    """Enumerations and dtypes and such, whose text is stable."""
    return (
        type(value).__repr__ is not object.__repr__ and not isinstance(value, torch.nn.Module) and not callable(value)
    )


def _describe_function(function: Callable[..., Any]) -> str:
    if isinstance(function, functools.partial):
        given = [*map(_describe_value, function.args), _describe_value(function.keywords)]
        return f"partial({_describe_value(function.func)}, {', '.join(given)})"
    if isinstance(function, MethodType):
        return f"{_describe_value(function.__self__)}.{function.__name__}"
    assert isinstance(function, FunctionType)
    held = [_describe_value(cell.cell_contents) for cell in function.__closure__ or ()]
    held += map(_describe_value, function.__defaults__ or ())
    code = hashlib.sha256(repr(_code(function.__code__)).encode()).hexdigest()[:16]
    return f"{_name(function)}({code}{', ' if held else ''}{', '.join(held)})"


def _code(code: CodeType) -> tuple[Any, ...]:
    """What a function does, without where it stands: instructions, constants (code of inner functions too), names."""
    constants = tuple(_code(item) if isinstance(item, CodeType) else _describe_value(item) for item in code.co_consts)
    return code.co_code, constants, code.co_names


def _name(thing: Any) -> str:
    first = _FIRST_MODULE.get(thing)
    module = f"dassl_lite.data.transforms.{first}" if first else thing.__module__
    return f"{module}.{thing.__qualname__}"
