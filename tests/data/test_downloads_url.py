"""Dassl's download_url: the file and its folder, or nothing of that name."""

from __future__ import annotations

from pathlib import Path

import pytest
from download_server import Server

from dassl_lite.data.downloads.url import download_url
from dassl_lite.utils import UserError


def test_a_file_or_the_folder_it_belongs_into_is_not_made(server: Server, tmp_path: Path) -> None:
    server.add("weights", b"abc" * 1000)
    download_url(server.url("weights"), str(tmp_path / "new" / "folder" / "w.pth"))
    assert (tmp_path / "new" / "folder" / "w.pth").read_bytes() == b"abc" * 1000


def test_what_is_not_the_file_gets_its_name(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the server answers 404"):
        download_url(server.url("none"), tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()
