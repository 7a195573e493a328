"""Name -> class tables, with which trainers, datasets and evaluators are found by the name in the config."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, overload

from dassl_lite.utils.errors import unknown

logger = logging.getLogger(__name__)

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

    # Set by dassl_lite.compat: a class from elsewhere takes the name of one of ours, as every fork brings its CoOp.
    others_win = False

    def __init__(self, kind: str) -> None:
        self.kind = kind.lower()
        self._table: dict[str, Any] = {}
        self.stood_in_for: dict[str, Any] = {}  # name -> ours, where another's stands in its place

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
            if self.others_win and _is_ours(held) != _is_ours(obj):
                return self._let_others_win(key, held, obj)
            raise KeyError(
                f"{self.kind} '{key}' is registered twice: by {held.__module__} and by {obj.__module__}. "
                "Rename one, or register it with force=True."
            )
        self._table[key] = obj
        return obj

    def _let_others_win(self, key: str, held: Any, obj: Any) -> Any:
        """Keep of two definitions the one that is not ours, whichever came first; returns ``obj``."""
        ours, theirs = (held, obj) if _is_ours(held) else (obj, held)
        self._table[key], self.stood_in_for[key] = theirs, ours
        logger.info("%s '%s' is that of %s, in place of ours", self.kind, key, theirs.__module__)
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


def _is_ours(obj: Any) -> bool:
    return obj.__module__.split(".")[0] == __name__.split(".")[0]
