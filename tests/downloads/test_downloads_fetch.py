"""Downloading from a server that cuts, stalls, lies, or sends a web page."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections import namedtuple
from pathlib import Path

import pytest
from download_server import IMPATIENT, Server

from dassl_lite.downloads.fetch import WebPageError, WrongFileError, check_file, fetch
from dassl_lite.downloads.sources import File
from dassl_lite.utils.errors import UserError

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "file.bin"


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_whole_file_and_nothing_else_is_left(server: Server, target: Path) -> None:
    server.add("f", CONTENT)
    fetch(server.url("f"), target, len(CONTENT), IMPATIENT)
    assert target.read_bytes() == CONTENT
    assert left_in(target.parent) == ["file.bin"]


def test_cut_download_goes_on_where_it_was(server: Server, target: Path) -> None:
    page = server.add("f", CONTENT, cuts=[1000, 500])
    fetch(server.url("f"), target, 0, IMPATIENT)
    assert target.read_bytes() == CONTENT
    assert page.asked == ["", "bytes=1000-", "bytes=1500-"]


def test_next_call_goes_on_after_the_first_gave_up(server: Server, target: Path) -> None:
    page = server.add("f", CONTENT, cuts=[1000, 0, 0])
    with pytest.raises(UserError, match=r"1,000 bytes that have come are kept.*run this again"):
        fetch(server.url("f"), target, 0, IMPATIENT)
    assert not target.exists()
    fetch(server.url("f"), target, 0, IMPATIENT)
    assert target.read_bytes() == CONTENT
    assert page.asked[-1] == "bytes=1000-"


def test_server_that_ignores_range_gives_no_doubled_beginning(server: Server, target: Path) -> None:
    server.add("f", CONTENT, cuts=[1000], ranges=False)
    fetch(server.url("f"), target, 0, IMPATIENT)
    assert target.read_bytes() == CONTENT


def test_file_that_changed_in_between_is_not_glued_together(server: Server, target: Path) -> None:
    server.add("f", b"old" * 1000, cuts=[1000, 0, 0])
    with pytest.raises(UserError):
        fetch(server.url("f"), target, 0, IMPATIENT)
    server.add("f", CONTENT, etag='"second"')
    fetch(server.url("f"), target, 0, IMPATIENT)
    assert target.read_bytes() == CONTENT


def test_part_from_another_address_is_not_continued(server: Server, target: Path) -> None:
    server.add("old", b"old" * 1000, cuts=[1000, 0, 0])
    with pytest.raises(UserError):
        fetch(server.url("old"), target, 0, IMPATIENT)
    page = server.add("new", CONTENT)
    fetch(server.url("new"), target, 0, IMPATIENT)
    assert target.read_bytes() == CONTENT
    assert page.asked == [""]


def test_part_that_is_whole_is_not_fetched_again(server: Server, target: Path) -> None:
    server.add("f", CONTENT)
    target.with_name("file.bin.part").write_bytes(CONTENT)
    origin = {"url": server.url("f"), "version": '"first"'}
    target.with_name("file.bin.part.json").write_text(json.dumps(origin))
    fetch(server.url("f"), target, 0, IMPATIENT)
    assert target.read_bytes() == CONTENT


def test_part_longer_than_the_file_is_thrown_away(server: Server, target: Path) -> None:
    server.add("f", CONTENT)
    target.with_name("file.bin.part").write_bytes(CONTENT + b"more")
    target.with_name("file.bin.part.json").write_text(json.dumps({"url": server.url("f")}))
    fetch(server.url("f"), target, 0, IMPATIENT)
    assert target.read_bytes() == CONTENT


def test_slow_server_is_waited_for(server: Server, target: Path) -> None:
    page = server.add("f", CONTENT, slow=0.1)  # 1 s in all, twice the patience, but never silent for that long
    fetch(server.url("f"), target, 0, IMPATIENT)
    assert target.read_bytes() == CONTENT
    assert page.asked == [""]


def test_silent_server_is_asked_again(server: Server, target: Path) -> None:
    page = server.add("f", CONTENT, stalls=[2000])
    fetch(server.url("f"), target, 0, IMPATIENT)
    assert target.read_bytes() == CONTENT
    assert len(page.asked) == 2


def test_busy_server_is_asked_again_and_a_missing_page_is_not(server: Server, target: Path) -> None:
    page = server.add("f", CONTENT, states=[503, 429])
    fetch(server.url("f"), target, 0, IMPATIENT)
    assert target.read_bytes() == CONTENT
    gone = server.add("gone", b"", states=[404] * 5)
    with pytest.raises(UserError, match=r"gone: the server answers 404"):
        fetch(server.url("gone"), target.with_name("other"), 0, IMPATIENT)
    assert (len(page.asked), len(gone.asked)) == (3, 1)


def test_web_page_is_not_taken_for_the_file(server: Server, target: Path) -> None:
    server.add("f", b"<html>log in</html>", kind="text/html; charset=utf-8")
    with pytest.raises(WebPageError, match="web page instead of the file"):
        fetch(server.url("f"), target, 0, IMPATIENT)
    assert not target.exists()


def test_other_size_than_known_is_told_before_anything_comes(server: Server, target: Path) -> None:
    server.add("f", CONTENT)
    with pytest.raises(UserError, match=r"has 10,240 bytes, not 9,999"):
        fetch(server.url("f"), target, 9999, IMPATIENT)


def test_no_network_is_one_line(target: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=r"cannot download .*: Connection refused; check the network") as caught:
        fetch(f"http://127.0.0.1:{port}/f", target, 0, IMPATIENT)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot download nowhere"):
        fetch("nowhere", target, 0, IMPATIENT)


def test_too_little_space_is_told_beforehand(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 0, 100))
    server.add("f", CONTENT)
    with pytest.raises(UserError, match=r"100 bytes free, but 10,240 of file.bin are to come"):
        fetch(server.url("f"), target, 0, IMPATIENT)


def test_cut_is_seen_by_the_size_where_no_length_is_told(server: Server, target: Path) -> None:
    server.add("f", CONTENT, length=False, cuts=[700])
    fetch(server.url("f"), target, 0, IMPATIENT)
    with pytest.raises(WrongFileError, match=r"700 bytes, not 10,240"):
        check_file(target, File("file.bin", size=len(CONTENT)))


@pytest.mark.parametrize(
    ("name", "content", "known", "error"),
    [
        ("a.bin", b"", {}, "is empty"),
        ("a.bin", b"12345", {"size": 4}, "has 5 bytes, not 4"),
        ("a.bin", b"12345", {"digest": "md5:00"}, "md5 digest 827ccb0eea8a706c4c34a16891f84e7b, not 00"),
        ("a.json", b'{"train": [', {}, "is not JSON"),
        ("a.bin", b"\xef\xbb\xbf \n<!DOCTYPE HTML><title>Quota exceeded", {}, "is a web page"),
        ("a.bin", b"  <html lang=en>", {}, "is a web page"),
    ],
)
def test_wrong_files_are_told_apart(tmp_path: Path, name: str, content: bytes, known: dict, error: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=error):
        check_file(path, File(name, **known))


def test_right_file_passes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"[1]")
    check_file(path, File("a.json", size=3, digest="md5:35dba5d75538a9bbe0b4da4422759a0e"))
    assert os.listdir(tmp_path) == ["a.json"]
