"""Google Drive, with a fake gdown: the file, a quota page, no network."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import gdown
import pytest
import requests

from dassl_lite.downloads import prepare
from dassl_lite.downloads.sources import File, Source, drive
from dassl_lite.utils.errors import UserError

SPLIT = b'{"train": [], "val": [], "test": []}'


@pytest.fixture
def get(tmp_path: Path) -> Callable[[Source], None]:
    return lambda source: prepare("Pets", tmp_path, sources={"Pets": source})


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def on_drive(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A dataset whose one file is on Drive; ``answer(output)`` stands in for gdown."""
    state = SimpleNamespace(calls=[], answer=lambda output: Path(output).write_bytes(SPLIT), gdown=gdown)

    def download(id: str, output: str, quiet: bool, resume: bool, use_cookies: bool) -> str | None:
        state.calls.append((id, resume))
        return output if state.answer(output) else None

    monkeypatch.setattr(gdown, "download", download)
    state.source = Source("oxford", (File("split.json", drive("abc123")),), (1, 1, 1), 1)
    return state


def test_file_on_drive_is_downloaded(on_drive: SimpleNamespace, get: Callable[[Source], None], tmp_path: Path) -> None:
    get(on_drive.source)
    assert files_in(tmp_path) == ["oxford/split.json"]
    assert on_drive.calls == [("abc123", True)]


def test_drive_over_quota_is_reported_with_what_to_do(
    on_drive: SimpleNamespace, get: Callable[[Source], None], tmp_path: Path
) -> None:
    def refuse(output: str) -> bool:
        raise on_drive.gdown.exceptions.FileURLRetrievalError("Cannot retrieve\nthe public link of the file.")

    page = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title>"
    for answer in (refuse, lambda output: None, lambda output: Path(output).write_bytes(page)):
        on_drive.answer = answer
        with pytest.raises(UserError, match=r"download quota is exceeded") as caught:
            get(on_drive.source)
        assert "https://drive.google.com/file/d/abc123/view" in str(caught.value)
        assert f"'{tmp_path / 'oxford/split.json'}'" in str(caught.value)
        assert files_in(tmp_path) == []


def test_unreachable_drive_is_reported_in_one_line(on_drive: SimpleNamespace, get: Callable[[Source], None]) -> None:
    def no_network(output: str) -> bool:
        raise requests.ConnectionError(OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH)))

    on_drive.answer = no_network
    with pytest.raises(UserError, match="from Google Drive: Network is unreachable; check the network"):
        get(on_drive.source)
