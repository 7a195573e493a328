"""What values a method's config keys may have: declared beside the keys, checked before anything is built.

    key_rules = rules(SIDE=one_of("image", "text"), RATIO=number(above=0, at_most=1))

A class adds to the rules of its bases. What depends on two keys at once stands in the method's ``check_cfg``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from yacs.config import CfgNode

from dassl_lite.utils.errors import UserError, unknown

Rule = Callable[[str, Any], None]  # (key, value): raises a UserError for a value that cannot be


def rules(**by_key: Rule) -> Mapping[str, Rule]:
    """A rule for each of these keys."""
    return by_key


def one_of(*choices: str) -> Rule:
    """One of these words."""

    def check(key: str, value: Any) -> None:
        if value not in choices:
            raise unknown(f"value of {key}", value, choices)

    return check


def some_of(*choices: str) -> Rule:
    """A list of these words, at least one."""

    def check(key: str, value: Any) -> None:
        for word in value:
            if word not in choices:
                raise unknown(f"value in {key}", word, choices)
        if not value:
            raise UserError(f"{key} is {value}; it must be some of {', '.join(choices)}")

    return check


def number(
    *, at_least: float = -math.inf, above: float = -math.inf, at_most: float = math.inf, below: float = math.inf
) -> Rule:
    """A finite number within the bounds that are given."""
    bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    expected = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))

    def holds(value: float) -> bool:
        return math.isfinite(value) and at_least <= value <= at_most and above < value < below

    return satisfying(holds, expected or "a finite number")


def satisfying(holds: Callable[[Any], bool], expected: str) -> Rule:
    """A value of which ``holds`` is true; ``expected`` ends the sentence "it must be ..."."""

    def check(key: str, value: Any) -> None:
        if not holds(value):
            shown = f"'{value}'" if isinstance(value, str) else value
            raise UserError(f"{key} is {shown}; it must be {expected}")

    return check


def check_keys(trainer: type, node: CfgNode, name: str) -> None:
    """Check the keys of a method's config node, ``name`` (such as ``TRAINER.TaskRes``), by the rules of the class
    ``trainer`` and its bases.

    Raises:
        UserError: for the first value that breaks one.
    """
    found: dict[str, Rule] = {}
    for cls in reversed(trainer.__mro__):
        found.update(vars(cls).get("key_rules", {}))
    for key, check in found.items():
        check(f"{name}.{key}", node[key])
