"""Registries: names, duplicates and helpful errors."""

from __future__ import annotations

import pytest

from dassl_lite.utils import Registry, UserError


def test_decorator_and_call_register_under_own_or_given_name() -> None:
    registry = Registry("trainer")

    @registry.register()
    class First: ...

    class Second: ...

    registry.register(Second, name="Other")
    assert registry.get("First") is First
    assert registry.get("Other") is Second
    assert registry.registered_names() == ["First", "Other"]
    assert "Second" not in registry


def test_second_registration_names_both_modules() -> None:
    registry = Registry("trainer")
    first = type("Same", (), {"__module__": "package_one"})
    second = type("Same", (), {"__module__": "package_two"})
    registry.register(first)
    with pytest.raises(KeyError, match=r"package_one.*package_two"):
        registry.register(second)
    registry.register(second, force=True)
    assert registry.get("Same") is second


def test_unknown_name_lists_choices_and_the_nearest() -> None:
    registry = Registry("trainer")
    registry.register(type("TaskRes", (), {}))
    registry.register(type("CoOp", (), {}))
    with pytest.raises(UserError, match=r"unknown trainer 'taskers'. Did you mean 'TaskRes'\? Choices: CoOp, TaskRes"):
        registry.get("taskers")
