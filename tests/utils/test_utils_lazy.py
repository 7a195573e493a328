"""Modules of optional libraries."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from dassl_lite.utils.errors import UserError
from dassl_lite.utils.lazy import REPORTING, lazy_module, optional_module


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


@pytest.mark.parametrize(("own", "seen"), [(None, "1"), ("0", "0")])
def test_a_library_that_reports_its_use_is_kept_from_it_unless_the_user_says(
    own: str | None, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = REPORTING["onnxruntime"]
    (tmp_path / "onnxruntime.py").write_text(f"import os\nfound = os.environ.get({name!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.delenv(name, raising=False)
    if own is not None:
        monkeypatch.setenv(name, own)
    try:
        assert optional_module("onnxruntime", "onnx", "ONNX export").found == seen
    finally:
        sys.modules.pop("onnxruntime", None)  # monkeypatch puts back the one that was there
    assert os.environ.get(name) == own


def test_what_is_taken_from_a_loaded_module_does_not_make_garbage_permanent(monkeypatch: pytest.MonkeyPatch) -> None:
    """`gc.freeze` keeps what is alive for good, so a tool calls it when a module is loaded, and only then."""
    calls: list[str] = []
    monkeypatch.setattr("dassl_lite.startup._is_ours", True)
    monkeypatch.setattr("gc.freeze", lambda: calls.append("freeze"))
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    module = lazy_module("colorsys")
    for _ in range(3):
        assert module.rgb_to_hsv(1, 1, 1) == (0.0, 0.0, 1)
    assert calls == ["freeze"]
