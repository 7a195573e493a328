"""What the feature cache must know about a transform: whether it is random, and a text that identifies it."""

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

# Descriptions are part of the keys of feature caches on disk, so a class that has moved keeps its first module's name.
_FIRST_MODULE: dict[type, str] = {
    **dict.fromkeys((Cutout, GaussianNoise, InstanceNormalization, Random2DTranslation), "custom"),
    **dict.fromkeys((RandAugment, RandAugment2, RandAugmentFixMatch), "randaugment"),
    **dict.fromkeys((CIFAR10Policy, ImageNetPolicy, SVHNPolicy), "autoaugment"),
}

# These give the same result for the same image; all others count as random.
_DETERMINISTIC: tuple[type, ...] = (
    InstanceNormalization,
    *(T.Resize, T.CenterCrop, T.ToTensor, T.PILToTensor, T.ConvertImageDtype, T.Normalize, T.Grayscale, T.Pad),
    *(v2.Resize, v2.CenterCrop, v2.ToImage, v2.PILToTensor, v2.ToDtype, v2.Normalize, v2.Grayscale, v2.Pad, v2.RGB),
)


def is_random(transform: object) -> bool:
    """Whether two calls with the same image may give different results.

    An unknown transform counts as random, unless it has the attribute ``deterministic = True``.
    """
    parts = _parts(transform)
    if parts is not None:
        return any(map(is_random, parts))
    return not (isinstance(transform, _DETERMINISTIC) or getattr(transform, "deterministic", False))


def describe(transform: object) -> str:
    """A text that identifies a transform, the same in every process.

    It consists of class names and settings. Functions add a digest of their code, because a name does not identify
    them.
    """
    parts = _parts(transform)
    if parts is not None:
        return f"{_name(type(transform))}({', '.join(map(describe, parts))})"
    return _describe_value(transform)


def _parts(transform: object) -> Iterable[object] | None:
    """The transforms in a sequence of transforms; None for a single one."""
    if isinstance(transform, (T.Compose, v2.Compose)):
        return list(transform.transforms)
    if isinstance(transform, (list, tuple)) and all(map(callable, transform)):
        return transform
    return None


def _describe_value(value: object) -> str:
    if isinstance(value, (FunctionType, MethodType, functools.partial)):
        return _describe_function(value)
    if isinstance(value, torch.Tensor):
        return f"tensor({value.tolist()})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_describe_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_describe_value(value[key])}' for key in sorted(value, key=str))}}}"
    if isinstance(value, (set, frozenset)):  # the order of a set differs between processes
        return f"{{{', '.join(sorted(map(_describe_value, value)))}}}"
    if isinstance(value, type) or not hasattr(value, "__dict__") or _has_stable_repr(value):
        return _name(value) if isinstance(value, type) else repr(value)
    # torchvision's reprs round numbers, and those of other classes may contain an address.
    settings = {key: item for key, item in vars(value).items() if key not in _BOOKKEEPING}
    settings |= {f"modules.{key}": item for key, item in getattr(value, "_modules", {}).items()}
    listed = ", ".join(f"{key}={_describe_value(settings[key])}" for key in sorted(settings))
    return f"{_name(type(value))}({listed})"


_BOOKKEEPING = frozenset(vars(torch.nn.Module()))  # hooks and the like, not settings


def _has_stable_repr(value: object) -> bool:
    """True for enumerations, dtypes and the like."""
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
    """What a function does, without its location: instructions, constants (with the code of inner functions), names."""
    constants = tuple(_code(item) if isinstance(item, CodeType) else _describe_value(item) for item in code.co_consts)
    return code.co_code, constants, code.co_names


def _name(thing: type | FunctionType) -> str:
    first = _FIRST_MODULE.get(thing) if isinstance(thing, type) else None
    module = f"dassl_lite.data.transforms.{first}" if first else thing.__module__
    return f"{module}.{thing.__qualname__}"
