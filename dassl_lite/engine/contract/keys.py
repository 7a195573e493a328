"""Config keys of a method, each declared once with its name, default, rule and description.

    keys = (
        key("SIDE", "image", one_of("image", "text", "both"), "which features have an adapter"),
        key("RATIO", 0.2, number(above=0, at_most=1), "share of the adapter's output"),
    )

A class adds to the keys of its bases; a key of the same name replaces theirs. Checks that involve two keys belong in
the method's ``check_cfg``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode

from dassl_lite.config.check import Rule, each, number, one_of, sane, satisfying, some_of
from dassl_lite.utils.errors import UserError, shown

__all__ = [
    "Key",
    "Rule",
    "check_keys",
    "declare_keys",
    "each",
    "idle_if",
    "idle_keys",
    "key",
    "keys_of",
    "number",
    "one_of",
    "satisfying",
    "some_of",
]


@dataclass(frozen=True)
class Key:
    """One config key.

    Attributes:
        name: name under the method's node, such as "RATIO".
        default: default value; values from yaml files and the command line must have its type.
        rule: raises a UserError for a value that is not allowed; None allows any finite number or any text.
        about: short description for ``--help-trainer``.
        idle: given the built trainer, returns why the key has no effect in its run, or ""; a user who set such a key
            gets a warning. See `idle_if`.
    """

    name: str
    default: Any
    rule: Rule | None = None
    about: str = ""
    idle: Callable[[Any], str] = lambda trainer: ""


def key(
    name: str, default: Any, rule: Rule | None = None, about: str = "", idle: Callable[[Any], str] = Key.idle
) -> Key:
    """Declare a config key; see `Key`."""
    return Key(name, default, rule, about, idle)


def idle_if(name: str, *values: Any) -> Callable[[Any], str]:
    """``idle`` for a key that has no effect while the method's key ``name`` has one of ``values``."""

    def reason(trainer: Any) -> str:
        value = trainer.method_cfg[name]
        return f"{name} is {value}" if value in values else ""

    return reason


def idle_keys(trainer: Any, node: str) -> dict[str, str]:
    """The trainer's own keys that have no effect in its run, by dotted name, each with the reason."""
    declared = keys_of(type(trainer)).items()
    return {f"TRAINER.{node}.{name}": reason for name, key in declared if (reason := key.idle(trainer))}


def keys_of(trainer: type) -> dict[str, Key]:
    """The keys that a class and its bases declare, by name; those of the bases come first."""
    keys: dict[str, Key] = {}
    for cls in reversed(trainer.__mro__):
        declared = vars(cls).get("keys")  # in a third-party trainer, "keys" may be something else
        if isinstance(declared, tuple):
            keys.update({key.name: key for key in declared if isinstance(key, Key)})
    return keys


def declare_keys(trainer: type, cfg: CfgNode, node: str) -> None:
    """Add the keys of a class, with their defaults, to ``cfg.TRAINER.<node>``."""
    for name, declared in keys_of(trainer).items():
        cfg.TRAINER.setdefault(node, CfgNode())[name] = declared.default


def check_keys(trainer: type, cfg: CfgNode, node: str) -> None:
    """Check the values in ``cfg.TRAINER.<node>`` against the rules of a class.

    Raises:
        UserError: for the first value that breaks its rule.
    """
    for name, declared in keys_of(trainer).items():
        value = cfg.TRAINER[node][name]
        if not _matches_type(value, declared.default):
            raise UserError(f"TRAINER.{node}.{name} is {shown(value)}; it must be like {declared.default!r}")
        for rule in (declared.rule, sane):
            if rule is not None:
                rule(f"TRAINER.{node}.{name}", value)


def _matches_type(value: Any, default: Any) -> bool:
    """Whether a value has the type of its default, by the rules for merging configs."""
    if default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    kinds = {float: (int, float), list: (list, tuple), tuple: (list, tuple)}
    return isinstance(value, kinds.get(type(default), type(default)))
