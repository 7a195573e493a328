"""Archives and answers that lie: each ends in one line, in little memory, and leaves nothing behind."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from download_server import IMPATIENT, Server
from test_downloads_archives import check_refused, make_tar, make_zip, place, special

from dassl_lite.downloads import fetch as fetching
from dassl_lite.downloads.archives import unpack
from dassl_lite.downloads.fetch import DownloadError, Part, check_digest, check_reachable, fetch
from dassl_lite.utils.errors import UserError

__all__ = ["place"]

END = b"\0" * 1024


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = special(name, kind)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 512)


def pax(records: dict[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A pax header with these records."""
    body = b""
    for key, value in records.items():
        text = f" {key}={value}\n".encode()
        length = len(text) + 1
        while len(str(length)) + len(text) != length:
            length = len(str(length)) + len(text)
        body += str(length).encode() + text
    return header("pax", len(body), kind) + padded(body)


def sparse_chain(blocks: int) -> bytes:
    """An old-GNU sparse file whose map goes on for ``blocks`` blocks."""
    first = bytearray(header("sparse", 0, tarfile.GNUTYPE_SPARSE))
    first[482] = 1  # the map goes on
    first[148:156] = b" " * 8
    first[148:156] = b"%06o\0 " % sum(first)
    entry = b"%011o\0%011o\0" % (512, 512)
    return bytes(first) + (entry * 21 + b"\1" + b"\0" * 7) * blocks


TARS: dict[str, bytes] = {
    "a sparse chain": sparse_chain(1000) + END,
    "a sparse map that is none": pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x"})
    + header("x", 512)
    + b"x" * 512
    + END,
    "a sparse map in attributes": pax({"GNU.sparse.map": "1,x,3", "GNU.sparse.size": "9"}) + header("x") + END,
    "sparse offsets that are none": pax({"GNU.sparse.size": "none"}) + header("x") + END,
    "a chain of long names": (header("././@LongLink", 5, tarfile.GNUTYPE_LONGNAME) + padded(b"name\0")) * 3000 + END,
    "a chain of attributes": pax({"path": "x"}) * 3000 + header("x") + END,
    "a chain of attributes for all": pax({"comment": "x" * 4000}, tarfile.XGLTYPE) * 3000 + header("x") + END,
    "attributes for all between members": b"".join(
        pax({f"a{n}": "x" * 4000}, tarfile.XGLTYPE) + header(f"f{n}") for n in range(1000)
    )
    + END,
    "a name of 300 bytes": pax({"path": "x" * 300}) + header("x") + END,
    "folders 2,000 deep": pax({"path": "x/" * 2000 + "x"}) + header("x") + END,
    "a size of exabytes": pax({"size": str(2**62)}) + header("x") + END,
    "a size below zero": pax({"size": "-512"}) + header("x") + END,
    "a length of 5,000 digits": header("pax", 5010, tarfile.XHDTYPE) + padded(b"9" * 5000 + b" path=y\n") + END,
    "a damaged header": header("a") + b"x" * 512 + header("b") + END,
    "a file without a name": header("") + END,
    "a file called .": header(".") + END,
    "a name with NUL": pax({"path": "a\0b"}) + header("x") + END,
    "text": b"This is no archive.\n" * 100,
    "nothing": b"",
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.slow
@pytest.mark.parametrize("packed", ["plain", "gzip"])
@pytest.mark.parametrize("kind", TARS)
def test_a_hostile_tar_is_refused(tmp_path: Path, place: Path, kind: str, packed: str) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(PACKED[packed](TARS[kind]))
    check_refused(archive, place, "archive")


@pytest.mark.parametrize("kind", ["a chain of long names", "attributes for all between members", "a damaged header"])
def test_a_hostile_tar_is_refused_by_pythons_that_parse_headers_privately(
    tmp_path: Path, place: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As newer ones do: what a subclass puts in the place of ``frombuf`` is not called."""
    parse = tarfile.TarInfo.frombuf.__func__  # type: ignore[attr-defined]

    def fromtarfile(cls: Any, archive: Any) -> Any:
        member = parse(cls, archive.fileobj.read(512), archive.encoding, archive.errors)
        member.offset = archive.fileobj.tell() - 512
        return member._proc_member(archive)

    monkeypatch.setattr(tarfile.TarInfo, "fromtarfile", classmethod(fromtarfile))
    archive = tmp_path / "a.tar"
    archive.write_bytes(TARS[kind])
    check_refused(archive, place, "archive")


@pytest.mark.slow
@pytest.mark.parametrize("packed", ["gzip", "bz2", "xz"])
def test_a_flipped_byte_is_refused(tmp_path: Path, place: Path, packed: str) -> None:
    rng = random.Random(3)
    archive = make_tar(tmp_path / "a.tar", *((f"{n}.txt", rng.randbytes(3000)) for n in range(20)), mode="w")
    data = PACKED[packed](archive.read_bytes())
    for position in (10, 60, len(data) // 2, len(data) - 12):
        damaged = bytearray(data)
        damaged[position] ^= 0x55
        archive.write_bytes(damaged)
        check_refused(archive, place, "is broken")


@pytest.mark.parametrize("name", ["", ".", "./", "x" * 256, "é" * 200, "a/" * 500 + "b"])
def test_a_name_that_no_disk_holds_in_a_zip_is_refused(tmp_path: Path, place: Path, name: str) -> None:
    archive = make_zip(tmp_path / "a.zip", ("ok.txt", b"1"), ("Q", b"2"))
    data = archive.read_bytes()
    if name in ("", "."):  # zipfile writes no such name
        old, new = b"Q", name.encode()
        local, central = data.rindex(b"PK\x03\x04"), data.rindex(b"PK\x01\x02")
        parts = [bytearray(data[:local]), bytearray(data[local:central]), bytearray(data[central:])]
        for part, length_at, name_at in ((parts[1], 26, 30), (parts[2], 28, 46)):
            assert part[name_at : name_at + 1] == old
            part[length_at : length_at + 2] = struct.pack("<H", len(new))
            part[name_at : name_at + 1] = new
        if not new:
            end = parts[2].rindex(b"PK\x05\x06")
            size, offset = struct.unpack("<II", parts[2][end + 12 : end + 20])
            parts[2][end + 12 : end + 20] = struct.pack("<II", size - 1, offset - 1)
        archive.write_bytes(b"".join(parts))
    elif name != "./":
        make_zip(archive, ("ok.txt", b"1"), (name, b"2"))
    else:
        make_zip(archive, ("./", b""))
    check_refused(archive, place, "archive")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "tar", "gzip"])
def test_damage_at_random_is_refused_or_harmless(tmp_path: Path, kind: str) -> None:
    rng = random.Random(4)
    files = [(f"folder/{n}.txt", rng.randbytes(300)) for n in range(10)]
    right = (make_zip if kind == "zip" else make_tar)(tmp_path / "a", *files)
    data = right.read_bytes() if kind != "tar" else gzip.decompress(right.read_bytes())
    refused = 0
    for number in range(300):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 5)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        right.write_bytes(damaged)
        try:
            unpack(right, tmp_path / "into" / str(number))
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
    assert refused > 50
    assert {path.name for path in tmp_path.iterdir()} == {"a", "into"}


BOMBS = """
import resource, sys
from pathlib import Path
from typing import Any
from dassl_lite.downloads.archives import ArchiveError, unpack
for name in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        unpack(Path(name), Path(name + ".into"))
        outcome = "unpacked"
    except ArchiveError:
        outcome = "refused"
    print(outcome, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, name)
"""


@pytest.mark.slow
def test_no_archive_takes_memory_before_a_budget_counts(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    bombs = {
        "sparse": sparse_chain(900_000),
        "skipped": b"".join(header("__MACOSX/x", 100 << 20) + b"\0" * (100 << 20) for _ in range(4)) + END,
        "names": (header("././@LongLink", 1 << 19, tarfile.GNUTYPE_LONGNAME) + b"x" * (1 << 19)) * 800,
    }
    paths = []
    for name, data in bombs.items():
        paths.append(tmp_path / f"{name}.tar.gz")
        paths[-1].write_bytes(gzip.compress(data, 1))
    command = [sys.executable, "-c", BOMBS, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == len(paths), done.stderr
    for outcome, mib, name in lines:
        assert outcome == "refused", name
        assert int(mib) < 150, name


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder"])
def test_only_a_regular_file_is_unpacked_or_hashed(tmp_path: Path, place: Path, kind: str) -> None:
    path = tmp_path / "a.zip"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(kind)
    for reader in (lambda: unpack(path, place), lambda: check_digest(path, "md5:00")):
        with pytest.raises((UserError, OSError), match="not a file|directory"):
            reader()


# ---- answers of servers ----------------------------------------------------------------------------------------------


def test_a_server_that_sends_more_than_the_known_size_is_given_up(server: Server, tmp_path: Path) -> None:
    server.add("a", b"x" * 3_000_000, length=False)
    with pytest.raises(DownloadError, match="sends more than 1,000 bytes"):
        fetch(server.url("a"), tmp_path / "a", size=1000, patience=IMPATIENT)
    assert not list(tmp_path.iterdir())


def test_a_file_of_unknown_size_has_a_ceiling_and_leaves_space(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("a", b"x" * 3_000_000, length=False)
    monkeypatch.setattr(fetching, "_UNDECLARED", 2_000_000)
    with pytest.raises(DownloadError, match="sends more than 2,000,000 bytes"):
        fetch(server.url("a"), tmp_path / "a", patience=IMPATIENT)
    monkeypatch.setattr(fetching, "_UNDECLARED", 1 << 40)
    monkeypatch.setattr(fetching, "_CHECKED", 1 << 20)
    monkeypatch.setattr(fetching, "_SPARE", 1 << 60)
    with pytest.raises(UserError, match="not enough space"):
        fetch(server.url("a"), tmp_path / "a", patience=IMPATIENT)


def test_the_size_of_the_first_answer_is_remembered_when_the_next_says_416(server: Server, tmp_path: Path) -> None:
    content = b"0123456789" * 1000
    server.add("a", content, cuts=[4000, 0, 0])
    with pytest.raises(DownloadError):
        fetch(server.url("a"), tmp_path / "a", patience=IMPATIENT)
    part = Part(tmp_path / "a", server.url("a"))
    kept = part.size
    assert 0 < kept < len(content)
    assert part.total == len(content)
    server.add("a", content[:kept])  # now it says that there is no more
    fetch(server.url("a"), tmp_path / "a", patience=IMPATIENT)
    assert (tmp_path / "a").read_bytes() == content[:kept]  # as one whole answer, not as a part that ended
    assert server.pages["/a"].asked[-1] == ""


def test_a_malformed_note_beside_a_part_is_ignored(server: Server, tmp_path: Path) -> None:
    server.add("a", b"content")
    for note in (b"[" * 100_000, b"[]", b'{"url": 3}', b'{"url": "%b", "version": [1], "total": "x"}'):
        (tmp_path / "a.part").write_bytes(b"con")
        (tmp_path / "a.part.json").write_bytes(note.replace(b"%b", server.url("a").encode()))
        fetch(server.url("a"), tmp_path / "a", patience=IMPATIENT)
        assert (tmp_path / "a").read_bytes() == b"content"


LOCATIONS = [
    "http://[::1",
    "http://[",
    "file:///etc/passwd",
    "//",
    "http://a b/",
    "http://\xff\xfe/",
    "http://:99999/",
    "x:",
]


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_malformed_location_is_one_line(tmp_path: Path, location: str) -> None:
    with answering(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n") as url:
        for reader in (
            lambda: fetch(url, tmp_path / "a", patience=IMPATIENT),
            lambda: check_reachable(url, IMPATIENT),
        ):
            try:
                reader()
            except UserError as error:
                assert "\n" not in str(error)  # noqa: PT017
    assert not (tmp_path / "a").exists()


ANSWERS = {
    "no HTTP": "hello\r\n\r\n",
    "no status": "HTTP/1.1\r\n\r\n",
    "a status that is no number": "HTTP/1.1 two Found\r\n\r\n",
    "words that act": "HTTP/1.1 404 \x1b]0;owned\x07\r\nContent-Length: 0\r\n\r\n",
    "a length of 5,000 digits": "HTTP/1.1 200 OK\r\nContent-Length: " + "9" * 5000 + "\r\n\r\n",
    "a length below zero": "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    "a superscript length": "HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n",
    "10,000 headers": "HTTP/1.1 200 OK\r\n" + "".join(f"A{n}: b\r\n" for n in range(10_000)) + "\r\n",
    "a header of a megabyte": "HTTP/1.1 200 OK\r\nA: " + "b" * 1_000_000 + "\r\n\r\n",
    "chunks that are none": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc",
    "a range that is none": "HTTP/1.1 206 OK\r\nContent-Range: bytes x-y/z\r\nContent-Length: 1\r\n\r\na",
    "416 from the start": "HTTP/1.1 416 No\r\nContent-Range: bytes */0\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("kind", ANSWERS)
def test_a_malformed_answer_is_one_line(tmp_path: Path, kind: str) -> None:
    with answering(ANSWERS[kind]) as url, pytest.raises(UserError) as raised:
        fetch(url, tmp_path / "a", size=100, patience=IMPATIENT)
    assert "\n" not in str(raised.value)
    assert "\x1b" not in str(raised.value)
    assert not (tmp_path / "a").exists()


class answering:  # noqa: N801 (reads as a verb)
    """A server that gives every request the same raw answer; its address."""

    def __init__(self, answer: str) -> None:
        self.answer = answer.encode("latin-1")

    def __enter__(self) -> str:
        import socketserver
        import threading

        answer = self.answer

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.recv(65536)
                self.request.sendall(answer)

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return f"http://127.0.0.1:{self.server.server_address[1]}/a"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(timeout=5)
