"""Config keys of a method, each declared once: name, default, what it may be, what it does.

    keys = (
        key("SIDE", "image", one_of("image", "text", "both"), "which features have an adapter"),
        key("RATIO", 0.2, number(above=0, at_most=1), "share of the adapter's output"),
    )

A class adds to the keys of its bases; a key of the same name replaces theirs. What depends on two keys at once belongs
in the method's ``check_cfg``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode

from dassl_lite.utils.errors import UserError, unknown

Rule = Callable[[str, Any], None]  # (key, value): raises a UserError for a value that is not allowed


@dataclass(frozen=True)
class Key:
    """One config key.

    Attributes:
        name: below the method's node, such as "RATIO".
        default: its type is the type that yaml files and the command line must give.
        rule: raises a UserError for a value that is not allowed; None: anything of that type.
        about: what it does, in a few words, for ``--help-trainer``.
    """

    name: str
    default: Any
    rule: Rule | None = None
    about: str = ""


def key(name: str, default: Any, rule: Rule | None = None, about: str = "") -> Key:
    """Declare a config key; see `Key`."""
    return Key(name, default, rule, about)


def keys_of(trainer: type) -> dict[str, Key]:
    """The keys that a class and its bases declare, by name, the bases' first."""
    found: dict[str, Key] = {}
    for cls in reversed(trainer.__mro__):
        declared = vars(cls).get("keys")  # a third party's trainer may call something else by that name
        if isinstance(declared, tuple):
            found.update({one.name: one for one in declared if isinstance(one, Key)})
    return found


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
        if declared.rule is not None:
            declared.rule(f"TRAINER.{node}.{name}", cfg.TRAINER[node][name])


def one_of(*choices: str, hint: str = "") -> Rule:
    """One of these words."""

    def check(name: str, value: Any) -> None:
        if value not in choices:
            raise unknown(f"value of {name}", value, choices, hint)

    return check


def some_of(*choices: str) -> Rule:
    """A list of these words, at least one."""

    def check(name: str, value: Any) -> None:
        for word in value:
            if word not in choices:
                raise unknown(f"value in {name}", word, choices)
        if not value:
            raise UserError(f"{name} is {value}; it must be some of {', '.join(choices)}")

    return check


def number(
    *, at_least: float = -math.inf, above: float = -math.inf, at_most: float = math.inf, below: float = math.inf
) -> Rule:
    """A finite number within the given bounds."""
    bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    expected = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))

    def holds(value: float) -> bool:
        return math.isfinite(value) and at_least <= value <= at_most and above < value < below

    return satisfying(holds, expected or "a finite number")


def satisfying(holds: Callable[[Any], bool], expected: str) -> Rule:
    """A value for which ``holds`` is true; ``expected`` completes "it must be ..."."""

    def check(name: str, value: Any) -> None:
        if not holds(value):
            shown = f"'{value}'" if isinstance(value, str) else value
            raise UserError(f"{name} is {shown}; it must be {expected}")

    return check
