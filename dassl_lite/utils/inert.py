"""Inert objects: what a pickle says of an object whose class is not ours to build, kept as data.

Nothing of the named class is imported or run. A pickle that calls what must be a function, such as `os.system`, is
refused as a whole, as nobody saves such a thing by chance.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

# What pickles of harmless objects call: containers, dates, the rebuilding of arrays. Here it makes an Inert.
_HARMLESS_CALLS = frozenset(
    {
        *(f"collections.{name}" for name in ("defaultdict", "deque")),
        *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
        *(f"builtins.{name}" for name in ("bool", "bytearray", "bytes", "float", "int", "list", "object", "range")),
        *(f"builtins.{name}" for name in ("slice", "str", "tuple")),
        *("copy_reg._reconstructor", "copyreg._reconstructor", "functools.partial"),
    }
)
_ACTING_MODULES = frozenset({"os", "posix", "nt", "subprocess", "multiprocessing", "socket", "ctypes", "threading"})


class RefusedCallError(pickle.UnpicklingError):
    """A pickle that would call a function, which none that holds weights and settings does."""


def _is_function(name: str) -> bool:
    """Whether a global that a pickle calls is a function, by its name; a class makes an object, which stays inert."""
    root, last = name.partition(".")[0], name.rpartition(".")[2]
    if root in _ACTING_MODULES:
        return True
    return not last[:1].isupper() and name not in _HARMLESS_CALLS and root not in ("torch", "numpy", "__torch__")


class _Called(type):
    """Hears of a pickle's calls: making an instance (NEWOBJ) does not go through here."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if _is_function(cls.name):  # type: ignore[attr-defined]
            raise RefusedCallError(f"it would call {cls.name}")  # type: ignore[attr-defined]
        return super().__call__(*args, **kwargs)


class Inert(metaclass=_Called):
    """An object of a class that is not ours to build: its name and what the pickle held for it, as data.

    Attributes:
        name: qualified name, such as "torch.optim.adam.Adam".
        args, kwargs: the arguments of the call that was not made.
        state: what would have been given to `__setstate__` (mostly the instance's `__dict__`), or None.
        items: values that would have been appended, or (key, value) pairs that would have been set.
    """

    name: str = ""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: Any
    items: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        self = super().__new__(cls)
        self.args, self.kwargs = args, kwargs
        self.state, self.items = None, []
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept any arguments; `__new__` has kept them already."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        self.items.append(value)

    def extend(self, values: Sequence[Any]) -> None:
        self.items.extend(values)

    def add(self, value: Any) -> None:
        self.items.append(value)

    def __repr__(self) -> str:
        return f"<inert {self.name}>"
