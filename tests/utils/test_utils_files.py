"""Files: atomic writes, JSON, the cache folder."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from dassl_lite.utils import atomic_path, cache_root, digest_of, listdir_nohidden, read_json, write_json


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json({"old": 1}, path)

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed here")

    with pytest.raises(RuntimeError, match="killed here"):
        fail()
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_written_files_follow_the_umask(tmp_path: Path) -> None:
    plain, atomic = tmp_path / "plain", tmp_path / "atomic"
    plain.write_text("x")
    with atomic_path(atomic) as temporary:
        temporary.write_text("x")
    assert stat.S_IMODE(atomic.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_json_keeps_every_file_name_and_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "n.json"
    names = {"name": "café", "not utf-8": "\udcff"}
    write_json(names, path)
    assert json.loads(path.read_text(encoding="utf-8")) == names


def test_hidden_names_are_left_out(tmp_path: Path) -> None:
    for name in ("b", ".hidden", "a"):
        (tmp_path / name).touch()
    assert listdir_nohidden(tmp_path, sort=True) == ["a", "b"]


def test_cache_root_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DASSL_LITE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("DASSL_LITE_CACHE")
    assert cache_root() == tmp_path / "xdg" / "dassl_lite"


def test_digest_depends_on_content_not_on_key_order() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})
