"""Downloads from a server that drops the connection, stalls, lies, or sends a web page."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from download_server import IMPATIENT, Server

from dassl_lite.downloads.fetch import (
    DownloadError,
    Patience,
    WebPageError,
    WrongFileError,
    check_file,
    check_reachable,
    fetch,
)
from dassl_lite.utils.errors import UserError

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "file.bin"


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_download_leaves_the_complete_file_alone_in_the_folder(server: Server, target: Path) -> None:
    server.add("f", CONTENT)
    fetch(server.url("f"), target, size=len(CONTENT), patience=IMPATIENT)
    assert target.read_bytes() == CONTENT
    assert left_in(target.parent) == ["file.bin"]


def test_interrupted_download_resumes_where_it_stopped(server: Server, target: Path) -> None:
    page = server.add("f", CONTENT, cuts=[1000, 500])
    fetch(server.url("f"), target, patience=IMPATIENT)
    assert target.read_bytes() == CONTENT
    assert page.asked == ["", "bytes=1000-", "bytes=1500-"]


def test_next_call_resumes_after_the_first_gave_up(server: Server, target: Path) -> None:
    page = server.add("f", CONTENT, cuts=[1000, 0, 0])
    with pytest.raises(
        UserError, match=r"the connection was closed; the 1,000 bytes received are kept; .*run this again"
    ):
        fetch(server.url("f"), target, patience=IMPATIENT)
    assert not target.exists()
    fetch(server.url("f"), target, patience=IMPATIENT)
    assert target.read_bytes() == CONTENT
    assert page.asked[-1] == "bytes=1000-"


def test_server_that_ignores_range_is_asked_for_the_whole_file(server: Server, target: Path) -> None:
    server.add("f", CONTENT, cuts=[1000], ranges=False)
    fetch(server.url("f"), target, patience=IMPATIENT)
    assert target.read_bytes() == CONTENT


def test_file_that_changed_in_between_is_downloaded_anew(server: Server, target: Path) -> None:
    server.add("f", b"old" * 1000, cuts=[1000, 0, 0])
    with pytest.raises(UserError):
        fetch(server.url("f"), target, patience=IMPATIENT)
    server.add("f", CONTENT, etag='"second"')
    fetch(server.url("f"), target, patience=IMPATIENT)
    assert target.read_bytes() == CONTENT


def test_part_from_another_url_is_discarded(server: Server, target: Path) -> None:
    server.add("old", b"old" * 1000, cuts=[1000, 0, 0])
    with pytest.raises(UserError):
        fetch(server.url("old"), target, patience=IMPATIENT)
    page = server.add("new", CONTENT)
    fetch(server.url("new"), target, patience=IMPATIENT)
    assert target.read_bytes() == CONTENT
    assert page.asked == [""]


def test_complete_part_is_used_as_it_is(server: Server, target: Path) -> None:
    server.add("f", CONTENT)
    target.with_name("file.bin.part").write_bytes(CONTENT)
    origin = {"url": server.url("f"), "version": '"first"'}
    target.with_name("file.bin.part.json").write_text(json.dumps(origin))
    fetch(server.url("f"), target, patience=IMPATIENT)
    assert target.read_bytes() == CONTENT


def test_part_longer_than_the_file_is_discarded(server: Server, target: Path) -> None:
    server.add("f", CONTENT)
    target.with_name("file.bin.part").write_bytes(CONTENT + b"more")
    target.with_name("file.bin.part.json").write_text(json.dumps({"url": server.url("f")}))
    fetch(server.url("f"), target, patience=IMPATIENT)
    assert target.read_bytes() == CONTENT


@pytest.mark.slow
def test_slow_server_that_keeps_sending_is_waited_for(server: Server, target: Path) -> None:
    page = server.add("f", CONTENT, slow=0.1)  # 1 s in all, twice the patience, but never silent for that long
    fetch(server.url("f"), target, patience=IMPATIENT)
    assert target.read_bytes() == CONTENT
    assert page.asked == [""]


@pytest.mark.slow
def test_silent_server_is_asked_again(server: Server, target: Path) -> None:
    page = server.add("f", CONTENT, stalls=[2000])
    fetch(server.url("f"), target, patience=IMPATIENT)
    assert target.read_bytes() == CONTENT
    assert len(page.asked) == 2


def test_busy_server_is_asked_again_and_a_missing_file_only_once(server: Server, target: Path) -> None:
    page = server.add("f", CONTENT, states=[503, 429])
    fetch(server.url("f"), target, patience=IMPATIENT)
    assert target.read_bytes() == CONTENT
    gone = server.add("gone", b"", states=[404] * 5)
    with pytest.raises(UserError, match=r"gone: the server answered 404"):
        fetch(server.url("gone"), target.with_name("other"), patience=IMPATIENT)
    assert (len(page.asked), len(gone.asked)) == (3, 1)


def test_web_page_instead_of_the_file_is_refused(server: Server, target: Path) -> None:
    server.add("f", b"<html>log in</html>", kind="text/html; charset=utf-8")
    with pytest.raises(WebPageError, match="web page instead of the file"):
        fetch(server.url("f"), target, patience=IMPATIENT)
    assert not target.exists()


def test_unexpected_size_is_refused_before_the_transfer(server: Server, target: Path) -> None:
    server.add("f", CONTENT)
    with pytest.raises(UserError, match=r"has 10,240 bytes, not 9,999"):
        fetch(server.url("f"), target, size=9999, patience=IMPATIENT)
    assert not target.with_name("file.bin.part").exists()


def test_right_digest_whole_or_its_first_digits_is_accepted(server: Server, target: Path) -> None:
    page = server.add("f", CONTENT)
    for digest in (SHA256, SHA256[:8]):
        fetch(server.url("f"), target, digest=f"sha256:{digest}", patience=IMPATIENT)
        assert left_in(target.parent) == ["file.bin"]
    assert len(page.asked) == 2


def test_wrong_digest_is_refused_and_the_file_deleted(server: Server, target: Path) -> None:
    server.add("f", CONTENT)
    with pytest.raises(WrongFileError, match=f"file.bin has the sha256 digest {SHA256}, not 00ff"):
        fetch(server.url("f"), target, digest="sha256:00ff", patience=IMPATIENT)
    assert left_in(target.parent) == []


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL at which nothing listens."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/f"


def test_unreachable_server_is_reported_in_one_line(closed: str, target: Path) -> None:
    with pytest.raises(DownloadError, match=r"cannot download .*: Connection refused; check the network") as caught:
        fetch(closed, target, patience=IMPATIENT)
    assert "\n" not in str(caught.value)
    assert caught.value.reason == "Connection refused"
    with pytest.raises(UserError, match="cannot download nowhere"):
        fetch("nowhere", target, patience=IMPATIENT)


@pytest.mark.parametrize(("retry", "pauses"), [(True, [1.0, 2.0]), (False, [])])
def test_unreachable_server_is_retried_only_on_request(
    closed: str, target: Path, monkeypatch: pytest.MonkeyPatch, retry: bool, pauses: list[float]
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("dassl_lite.downloads.fetch.time", SimpleNamespace(sleep=slept.append))
    with pytest.raises(DownloadError, match="Connection refused"):
        fetch(closed, target, patience=Patience(tries=3, retry_unreachable=retry))
    assert slept == pauses


def test_server_that_responded_once_is_retried_whatever_the_request(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dassl_lite.downloads.fetch.time", SimpleNamespace(sleep=lambda seconds: None))
    page = server.add("f", CONTENT, cuts=[1000], states=[503])
    fetch(server.url("f"), target, patience=Patience(retry_unreachable=False))
    assert page.asked == ["", "", "bytes=1000-"]


def test_invalid_certificate_is_reported_at_once(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def get(url: str, **options: object) -> None:
        asked.append(url)
        raise requests.exceptions.SSLError("certificate has expired")

    monkeypatch.setattr(requests, "get", get)
    with pytest.raises(DownloadError, match="certificate is not valid .*expired.*REQUESTS_CA_BUNDLE"):
        fetch("https://example.org/f", target)
    assert len(asked) == 1


def test_probe_tells_reachable_files_from_missing_ones(server: Server, closed: str) -> None:
    server.add("f", CONTENT)
    check_reachable(server.url("f"), IMPATIENT)
    with pytest.raises(DownloadError, match="the server answered 404"):
        check_reachable(server.url("gone"), IMPATIENT)
    with pytest.raises(DownloadError, match="Connection refused"):
        check_reachable(closed, IMPATIENT)


def test_too_little_space_is_reported_before_the_transfer(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 0, 100))
    server.add("f", CONTENT)
    with pytest.raises(UserError, match=r"not enough space in .*: file.bin needs 10,240 bytes, 100 are free"):
        fetch(server.url("f"), target, patience=IMPATIENT)


def test_truncation_without_a_declared_length_is_noticed_by_the_known_size(server: Server, target: Path) -> None:
    server.add("f", CONTENT, length=False, cuts=[700])
    fetch(server.url("f"), target, patience=IMPATIENT)
    with pytest.raises(WrongFileError, match=r"700 bytes, not 10,240"):
        check_file(target, size=len(CONTENT))


@pytest.mark.parametrize(
    ("name", "content", "known", "error"),
    [
        ("a.bin", b"", {}, "is empty"),
        ("a.bin", b"12345", {"size": 4}, "has 5 bytes, not 4"),
        ("a.bin", b"12345", {"digest": "md5:00"}, "md5 digest 827ccb0eea8a706c4c34a16891f84e7b, not 00"),
        ("a.bin", b"12345", {"digest": "sha256:"}, "sha256 digest .*, not $"),
        ("a.json", b'{"train": [', {}, "is not JSON"),
        ("a.bin", b"\xef\xbb\xbf \n<!DOCTYPE HTML><title>Quota exceeded", {}, "is a web page"),
        ("a.bin", b"  <html lang=en>", {}, "is a web page"),
    ],
)
def test_wrong_file_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: bytes, known: dict, error: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=error):
        check_file(path, **known)


def test_right_file_passes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"[1]")
    check_file(path, size=3, digest="md5:35dba5d75538a9bbe0b4da4422759a0e")
    assert os.listdir(tmp_path) == ["a.json"]
