"""What the feature cache must know about a transform: whether it is random, and a text that identifies it.

Ours and those of libraries are identified by name and settings. Of other people's code, names do not say what it does:
its instructions belong to the text, and the values of whatever they read, wherever that is: defaults, closures, class
attributes, global names, other functions, classes and modules of theirs.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from dassl_lite.data.transforms.augmentations import (
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
from dassl_lite.utils.lazy import is_loaded, lazy_module

if TYPE_CHECKING:
    from torchvision import transforms as T
    from torchvision.transforms import v2
else:
    T, v2 = lazy_module("torchvision.transforms"), lazy_module("torchvision.transforms.v2")

# Descriptions are part of the keys of feature caches on disk, so a class that has moved keeps its first module's name.
_FIRST_MODULE: dict[type, str] = {
    **dict.fromkeys((Cutout, GaussianNoise, InstanceNormalization, Random2DTranslation), "custom"),
    **dict.fromkeys((RandAugment, RandAugment2, RandAugmentFixMatch), "randaugment"),
}
_POLICIES = "dassl_lite.data.transforms.policies"  # were in autoaugment


@functools.cache
def _deterministic_of_torchvision() -> tuple[type, ...]:
    """These give the same result for the same image; all others count as random."""
    return (
        *(T.Resize, T.CenterCrop, T.ToTensor, T.PILToTensor, T.ConvertImageDtype, T.Normalize, T.Grayscale, T.Pad),
        *(v2.Resize, v2.CenterCrop, v2.ToImage, v2.PILToTensor, v2.ToDtype, v2.Normalize, v2.Grayscale, v2.Pad, v2.RGB),
    )


def _is_deterministic(transform: object) -> bool:
    if isinstance(transform, (InstanceNormalization, PadToSize, ResizeKeepRatio)):
        return True
    return is_loaded("torchvision") and isinstance(transform, _deterministic_of_torchvision())


def is_random(transform: object) -> bool:
    """Whether two calls with the same image may give different results.

    An unknown transform counts as random, unless it has the attribute ``deterministic = True``.
    """
    parts = _parts(transform)
    if parts is not None:
        return any(map(is_random, parts))
    return not (_is_deterministic(transform) or getattr(transform, "deterministic", False))


def describe(transform: object) -> str:
    """A text that identifies a transform, the same in every process; but see :func:`undescribed`."""
    return _Describer().transform(transform)


def undescribed(transform: object) -> list[str]:
    """What a transform depends on and its description does not say, such as the state of an open file.

    The features of such a transform must not be kept: its next version could have the same description.
    """
    describer = _Describer()
    describer.transform(transform)
    return sorted(set(describer.unknown))


def _parts(transform: object) -> Iterable[object] | None:
    """The transforms in a sequence of transforms; None for a single one."""
    if is_loaded("torchvision") and isinstance(transform, (T.Compose, v2.Compose)):
        return list(transform.transforms)
    if isinstance(transform, (list, tuple)) and all(map(callable, transform)):
        return transform
    return None


_BOOKKEEPING = frozenset(vars(torch.nn.Module()))  # hooks and the like, not settings
_MOST_VALUES = 10_000  # that a description follows
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type(Ellipsis), enum.Enum, range, slice)
# What Python keeps in a class besides the author's attributes.
_OF_EVERY_CLASS = frozenset(
    f"__{name}__"
    for name in (
        *("module", "dict", "weakref", "doc", "qualname", "annotations", "firstlineno", "static_attributes"),
        *("orig_bases", "parameters", "abstractmethods", "slots", "annotate_func", "annotations_cache"),
        *("dataclass_fields", "dataclass_params", "match_args"),
    )
) | {"_abc_impl"}


class _Describer:
    """Describes values, and what a function or class of other people depends on.

    Attributes:
        unknown: what could not be described.
    """

    def __init__(self) -> None:
        self.unknown: list[str] = []
        self._texts: dict[int, tuple[object, str]] = {}  # by identity; a function may call itself, or others in common

    def transform(self, transform: object) -> str:
        parts = _parts(transform)
        if parts is not None:
            return f"{_name(type(transform))}({', '.join(map(self.transform, parts))})"
        return self.value(transform)

    def value(self, value: object) -> str:
        if isinstance(value, _PLAIN):
            return repr(value)
        if id(value) not in self._texts:
            if len(self._texts) > _MOST_VALUES:
                self.unknown.append(f"more than {_MOST_VALUES:,} values")
                return "?"
            self._texts[id(value)] = value, "..."
            self._texts[id(value)] = value, self._value(value)
        return self._texts[id(value)][1]

    def _value(self, value: Any) -> str:
        if isinstance(value, (FunctionType, MethodType, functools.partial)):
            return self._function(value)
        if isinstance(value, torch.Tensor):
            return f"tensor({value.tolist()})"
        if isinstance(value, np.ndarray):  # its own text leaves out the middle
            content = self._items(value.tolist()) if value.dtype.hasobject else _digest(value.tobytes())
            return f"array({value.dtype.str}, {value.shape}, {content})"
        if isinstance(value, Image.Image):
            return f"image({value.mode}, {value.size}, {value.getpalette()}, {_digest(value.tobytes())})"
        if isinstance(value, re.Pattern):  # so does its
            return f"re.compile({value.pattern!r}, {value.flags})"
        if isinstance(value, (list, tuple)):
            return f"[{self._items(value)}]"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{key!r}: {self.value(value[key])}' for key in sorted(value, key=str))}}}"
        if isinstance(value, (set, frozenset)):  # the order of a set differs between processes
            return f"{{{', '.join(sorted(map(self.value, value)))}}}"
        if isinstance(value, type):
            return f"{_name(value)}{self._class(value)}"
        if isinstance(value, ModuleType):
            if not _is_library(value.__name__):
                self.unknown.append(f"module {value.__name__}")
            return value.__name__
        return self._object(value)

    def _items(self, values: Iterable[object]) -> str:
        return ", ".join(map(self.value, values))

    def _object(self, value: object) -> str:
        theirs = not _is_library(type(value).__module__)
        slots = {slot for kind in type(value).__mro__ for slot in _slots(kind)} if theirs else set()
        if not theirs and (not hasattr(value, "__dict__") or _has_stable_repr(value)):
            return self._repr(value)
        # torchvision's reprs round numbers, and those of other classes may contain an address.
        settings = {key: item for key, item in getattr(value, "__dict__", {}).items() if key not in _BOOKKEEPING}
        settings |= {slot: getattr(value, slot) for slot in slots if hasattr(value, slot)}
        settings |= {f"modules.{key}": item for key, item in getattr(value, "_modules", {}).items()}
        if isinstance(value, torch.nn.Module):
            settings |= {f"tensors.{key}": item for key, item in (*value._parameters.items(), *value._buffers.items())}
        listed = ", ".join(f"{key}={self.value(settings[key])}" for key in sorted(settings))
        return f"{_name(type(value))}({listed}){self._class(type(value))}"

    def _repr(self, value: object) -> str:
        """The text of a library's object: its own, unless that only says what kind of object it is."""
        text = repr(value)
        if isinstance(value, BuiltinFunctionType):
            return text if " at 0x" not in text else str(value.__qualname__)  # of an object
        if not text.startswith("<") and " at 0x" not in text:
            return text
        try:
            return f"{_name(type(value))}({_digest(pickle.dumps(value))})"
        except Exception:  # whatever its own code raises  # noqa: BLE001
            self.unknown.append(_name(type(value)))
            return f"{_name(type(value))}(?)"

    def _class(self, kind: type) -> str:
        """A digest of other people's classes among ``kind`` and its bases: their methods and attributes."""
        found = []
        for base in kind.__mro__:
            if _is_library(base.__module__):
                continue
            for key, item in sorted(vars(base).items()):
                if key not in _OF_EVERY_CLASS and type(item).__name__ not in ("member_descriptor", "getset_descriptor"):
                    parts = _functions_in(item)
                    found.append(f"{base.__qualname__}.{key}={self._items(parts) if parts else self.value(item)}")
        return f"[{_digest('; '.join(found).encode())}]" if found else ""

    def _function(self, function: Callable[..., Any]) -> str:
        if isinstance(function, functools.partial):
            given = [*map(self.value, function.args), self.value(function.keywords)]
            return f"partial({self.value(function.func)}, {', '.join(given)})"
        if isinstance(function, MethodType):
            return f"{self.value(function.__self__)}.{function.__name__}"
        assert isinstance(function, FunctionType)
        held = [self.value(cell.cell_contents) for cell in function.__closure__ or () if _is_filled(cell)]
        held += map(self.value, function.__defaults__ or ())
        if function.__kwdefaults__:
            held.append(self.value(function.__kwdefaults__))
        code = _digest(repr(self._code(function.__code__)).encode())
        if not _is_library(function.__module__):
            read = [f"{name}={self.value(item)}" for name, item in self._read_by(function)]
            read += [f".{key}={self.value(item)}" for key, item in sorted(vars(function).items())]
            held += [_digest("; ".join(read).encode())] if read else []
        return f"{_name(function)}({code}{', ' if held else ''}{', '.join(held)})"

    def _code(self, code: CodeType) -> tuple[Any, ...]:
        """What a function does, without its location: instructions, constants (with inner functions), names."""
        constants = tuple(
            self._code(item) if isinstance(item, CodeType) else self.value(item) for item in code.co_consts
        )
        return code.co_code, constants, code.co_names

    def _read_by(self, function: FunctionType) -> list[tuple[str, Any]]:
        """Names and values that a function's code, and that of its inner functions, takes from other places."""
        found: dict[str, Any] = {}
        for code in _codes(function.__code__):
            instructions = list(dis.get_instructions(code))
            for place, instruction in enumerate(instructions):
                name = str(instruction.argval)
                if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and name in function.__globals__:
                    self._follow(name, function.__globals__[name], instructions[place + 1 :], found)
                elif instruction.opname == "IMPORT_NAME" and (module := sys.modules.get(name)) is not None:
                    taken = instructions[place + 1 :]
                    names = [str(one.argval) for one in taken if one.opname == "IMPORT_FROM"]
                    for one in names if not _is_library(name) else ():
                        found[f"{name}.{one}"] = getattr(module, one, None)
                    if not names and not _is_library(name):
                        found[name] = module
        return sorted(found.items())

    def _follow(self, name: str, value: Any, following: list[dis.Instruction], found: dict[str, Any]) -> None:
        """Add what is read: of a module, the attribute that the next instructions take from it."""
        for instruction in following:
            if not isinstance(value, ModuleType) or instruction.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                break
            if _is_library(value.__name__):
                return
            name = f"{name}.{instruction.argval}"
            value = getattr(value, str(instruction.argval), None)
        if not (isinstance(value, ModuleType) and _is_library(value.__name__)):
            found[name] = value


def _has_stable_repr(value: object) -> bool:
    """True for enumerations, dtypes and the like."""
    return (
        type(value).__repr__ is not object.__repr__ and not isinstance(value, torch.nn.Module) and not callable(value)
    )


def _functions_in(item: object) -> list[object]:
    """The functions in a method, property or the like."""
    if isinstance(item, (staticmethod, classmethod)):
        return [item.__func__]
    if isinstance(item, property):
        return [one for one in (item.fget, item.fset) if one is not None]
    return [item.func] if isinstance(item, functools.cached_property) else []


def _slots(kind: type) -> Iterable[str]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else slots


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions in it."""
    yield code
    for item in code.co_consts:
        if isinstance(item, CodeType):
            yield from _codes(item)


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # a name that has no value yet
        return False
    return True


def _is_library(module: str) -> bool:
    """Whether a module is Python's, ours or an installed one: its names say what it does."""
    root = module.partition(".")[0]
    if root in ("dassl_lite", "builtins") or root in sys.stdlib_module_names:
        return True
    if root in ("torch", "torchvision", "numpy", "PIL"):
        return True
    parts = Path(getattr(sys.modules.get(module), "__file__", None) or "").parts
    return "site-packages" in parts or "dist-packages" in parts


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _name(thing: Any) -> str:
    first = _FIRST_MODULE.get(thing) if isinstance(thing, type) else None
    if thing.__module__ == _POLICIES:
        first = "autoaugment"
    module = f"dassl_lite.data.transforms.{first}" if first else thing.__module__
    return f"{module}.{thing.__qualname__}"
