"""A config key is declared once: its default, its rule and what it does."""

from __future__ import annotations

from typing import Any

import pytest

from dassl_lite.config import get_cfg_default
from dassl_lite.engine import Key, key, number, one_of, satisfying, some_of
from dassl_lite.engine.contract.keys import _matches_type, check_keys, declare_keys, keys_of
from dassl_lite.utils import UserError


class Base:
    keys = (key("RATIO", 0.2, number(above=0, at_most=1), "share"), key("SIDE", "image", one_of("image", "text")))


class Derived(Base):
    keys = (key("RATIO", 0.5, number(above=0), "another share"), key("PARTS", ("q",), some_of("q", "k")))


def declared(cls: type, **values: Any) -> Any:
    cfg = get_cfg_default()
    declare_keys(cls, cfg, "Mine")
    for name, value in values.items():
        cfg.TRAINER.Mine[name] = value
    return cfg


def test_a_class_adds_to_the_keys_of_its_bases_and_replaces_those_of_the_same_name() -> None:
    assert list(keys_of(Derived)) == ["RATIO", "SIDE", "PARTS"]
    assert keys_of(Derived)["RATIO"].about == "another share"
    assert dict(declared(Derived).TRAINER.Mine) == {"RATIO": 0.5, "SIDE": "image", "PARTS": ("q",)}


def test_declaring_keeps_what_another_class_declared_under_the_same_node() -> None:
    cfg = declared(Base)
    cfg.TRAINER.Mine.OTHER = 1
    declare_keys(Derived, cfg, "Mine")
    assert cfg.TRAINER.Mine.OTHER == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"RATIO": 0.0}, "TRAINER.Mine.RATIO is 0.0; it must be above 0"),
        ({"RATIO": float("nan")}, "TRAINER.Mine.RATIO is nan; it must be above 0"),
        ({"SIDE": "txt"}, "unknown value of TRAINER.Mine.SIDE 'txt'. Did you mean 'text'?"),
        ({"PARTS": ("q", "x")}, "unknown value in TRAINER.Mine.PARTS 'x'"),
        ({"PARTS": ()}, "TRAINER.Mine.PARTS is (); it must be some of q, k"),
    ],
)
def test_a_value_that_breaks_its_rule_is_an_error_that_names_the_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        check_keys(Derived, declared(Derived, **values), "Mine")
    assert message in str(error.value)


def test_values_within_the_rules_pass() -> None:
    check_keys(Derived, declared(Derived, RATIO=7.0, SIDE="text", PARTS=("k", "q")), "Mine")


def test_a_custom_rule_says_what_it_expects() -> None:
    even = satisfying(lambda value: value % 2 == 0, "an even number")
    assert Key("N", 2, even).rule is even
    with pytest.raises(UserError, match="N is 3; it must be an even number"):
        even("N", 3)


@pytest.mark.parametrize(
    ("bounds", "wanted"),
    [({}, "a finite number"), ({"at_least": 1, "below": 5}, "at least 1 and below 5"), ({"at_most": 2}, "at most 2")],
)
def test_an_error_about_a_number_states_its_bounds(bounds: dict[str, float], wanted: str) -> None:
    with pytest.raises(UserError, match=rf"X is inf; it must be {wanted}$"):
        number(**bounds)("X", float("inf"))


@pytest.mark.parametrize(
    ("value", "default", "matches"),
    [
        *((True, False, True), (1, True, False), (True, 1, False), (1, 1.0, True), (1.0, 1, False), ("a", "b", True)),
        *(((1,), [2], True), ([1], (2,), True), (1, (2,), False), ("a", 1, False), ("anything", None, True)),
    ],
)
def test_a_value_must_have_the_type_of_its_default(value: Any, default: Any, matches: bool) -> None:
    assert _matches_type(value, default) == matches
