"""Name -> class tables, with which trainers, datasets and evaluators are found by the name in the config."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar, overload

from dassl_lite.utils.errors import unknown

T = TypeVar("T", bound=Callable[..., Any])


class Registry:
    """A table of registered classes or functions.

    Args:
        kind: what it holds, as error messages should call it ("trainer").

    Example:
        >>> TRAINER_REGISTRY = Registry("trainer")
        >>> @TRAINER_REGISTRY.register()
        ... class MyTrainer: ...
        >>> TRAINER_REGISTRY.get("MyTrainer")
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind.lower()
        self._table: dict[str, Any] = {}

    @overload
    def register(self, obj: None = None, *, name: str | None = None, force: bool = False) -> Callable[[T], T]: ...

    @overload
    def register(self, obj: T, *, name: str | None = None, force: bool = False) -> T: ...

    def register(self, obj: Any = None, *, name: str | None = None, force: bool = False) -> Any:
        """Register ``obj`` under ``name`` (its own name unless given); usable as a decorator.

        Raises:
            KeyError: the name is taken by another module and ``force`` is not set; both modules are named.
        """
        if obj is None:
            return lambda o: self.register(o, name=name, force=force)
        key = name or obj.__name__
        held = self._table.get(key)
        # The same definition imported again (a reload, a script run by path) replaces itself.
        if held is not None and not force and _origin(held) != _origin(obj):
            raise KeyError(
                f"{self.kind} '{key}' is registered twice: by {held.__module__} and by {obj.__module__}. "
                "Rename one, or register it with force=True."
            )
        self._table[key] = obj
        return obj

    def get(self, name: str) -> Any:
        """The object registered as ``name``; a UserError lists the choices otherwise."""
        if name not in self._table:
            raise unknown(self.kind, name, self._table)
        return self._table[name]

    def registered_names(self) -> list[str]:
        """All names, in the order of registration (Dassl's method name)."""
        return list(self._table)

    def __contains__(self, name: str) -> bool:
        return name in self._table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)


def _origin(obj: Any) -> tuple[str, str]:
    return obj.__module__, obj.__qualname__
