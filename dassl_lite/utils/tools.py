"""Small functions of ``dassl.utils.tools``, for code written for Dassl."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from dassl_lite.utils.env import collect_env_info
from dassl_lite.utils.errors import nearest, unknown
from dassl_lite.utils.files import check_isfile, listdir_nohidden, mkdir_if_missing, read_json, write_json
from dassl_lite.utils.seeding import set_random_seed

T = TypeVar("T")

__all__ = [
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "get_most_similar_str_to_a_from_b",
    "listdir_nohidden",
    "mkdir_if_missing",
    "read_json",
    "set_random_seed",
    "tolist_if_not",
    "write_json",
]


def tolist_if_not(x: T | list[T]) -> list[T]:
    """``x`` if it is a list, else ``[x]``."""
    return x if isinstance(x, list) else [x]


def get_most_similar_str_to_a_from_b(a: str, b: Iterable[str]) -> str | None:
    """The string in ``b`` closest to ``a``, or None if none is close."""
    return nearest(a, b)


def check_availability(requested: str, available: Iterable[str]) -> None:
    """Raise a UserError that lists the choices if ``requested`` is not among them."""
    choices = list(available)
    if requested not in choices:
        raise unknown("name", requested, choices)
