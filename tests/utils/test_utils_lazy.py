"""Modules of optional libraries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dassl_lite.utils.errors import UserError
from dassl_lite.utils.lazy import optional_module


def test_an_installed_module_is_returned() -> None:
    assert optional_module("json", "html", "--html") is json


def test_a_missing_library_names_its_extra() -> None:
    with pytest.raises(UserError, match=r"^--html needs absent_library: pip install \"dassl-lite\[html\]\"$"):
        optional_module("absent_library.part", "html", "--html")


def test_what_an_installed_library_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import absent_library", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="^--html needs absent_library: "):
        optional_module("half_installed", "html", "--html")
