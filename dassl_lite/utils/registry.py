"""Tables of classes by name, for looking up a config's trainer, dataset or evaluator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar, overload

from dassl_lite.utils.errors import unknown
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

T = TypeVar("T", bound=Callable[..., Any])


class Registry:
    """A table of registered classes or functions.

    Args:
        kind: what the table holds, for error messages, such as "trainer".

    Example:
        >>> TRAINER_REGISTRY = Registry("trainer")
        >>> @TRAINER_REGISTRY.register()
        ... class MyTrainer: ...
        >>> TRAINER_REGISTRY.get("MyTrainer")
    """

    # Set by dassl_lite.compat, for code written for Dassl: classes of other packages replace ours of the same name
    # (every fork has its CoOp), and values that Dassl accepts are accepted.
    others_win = False

    def __init__(self, kind: str) -> None:
        self.kind = kind.lower()
        self._table: dict[str, Any] = {}
        self.replaced: dict[str, Any] = {}  # name -> our class, where one from another package replaced it

    @overload
    def register(self, obj: None = None, *, name: str | None = None, force: bool = False) -> Callable[[T], T]: ...

    @overload
    def register(self, obj: T, *, name: str | None = None, force: bool = False) -> T: ...

    def register(self, obj: Any = None, *, name: str | None = None, force: bool = False) -> Any:
        """Register ``obj``; usable as a decorator.

        Args:
            obj: a class or function; left out in ``@register()``.
            name: defaults to the object's own name.
            force: replace an object that has that name.

        Raises:
            KeyError: another module has registered that name, and ``force`` is not set.
        """
        if obj is None:
            return lambda o: self.register(o, name=name, force=force)
        key = name or obj.__name__
        held = self._table.get(key)
        # Importing the same definition again (a reload, a script run by path) is fine.
        if held is not None and not force and _origin(held) != _origin(obj):
            if self.others_win and is_ours(held) != is_ours(obj):
                return self._let_others_win(key, held, obj)
            raise KeyError(
                f"{self.kind} '{key}' is registered twice: by {held.__module__} and by {obj.__module__}. "
                "Rename one, or register it with force=True."
            )
        self._table[key] = obj
        return obj

    def _let_others_win(self, key: str, held: T, obj: T) -> T:
        """Keep the definition from another package, whichever came first; returns ``obj``."""
        ours, theirs = (held, obj) if is_ours(held) else (obj, held)
        self._table[key], self.replaced[key] = theirs, ours
        logger.info(f"{self.kind} '{key}' of {theirs.__module__} replaces the built-in one")
        return obj

    def get(self, name: str) -> Any:
        """The object registered as ``name``.

        Raises:
            UserError: no such name; the message lists the choices.
        """
        if name not in self._table:
            raise unknown(self.kind, name, self._table)
        return self._table[name]

    def registered_names(self) -> list[str]:
        """All names in order of registration (Dassl's method name)."""
        return list(self._table)

    def __contains__(self, name: str) -> bool:
        return name in self._table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)


def _origin(obj: Callable[..., object]) -> tuple[str, str]:
    return obj.__module__, obj.__qualname__


def is_ours(obj: Callable[..., object]) -> bool:
    """Whether a class or function is defined in this package, not by a third party."""
    return obj.__module__.split(".")[0] == __name__.split(".")[0]
