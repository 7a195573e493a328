"""Malicious and broken archives: nothing is written outside the folder, and the disk cannot be filled."""

from __future__ import annotations

import io
import random
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dassl_lite.downloads.archives import ArchiveError, unpack
from dassl_lite.downloads.sources import Limits

Entry = tuple[str, bytes] | tarfile.TarInfo


def make_tar(path: Path, *entries: Entry, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                archive.addfile(info, io.BytesIO(entry[1]))
    return path


def make_zip(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zip_special(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (mode | 0o777) << 16
    return info


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder to unpack into; the other content of its parent must stay as it is."""
    (tmp_path / "outside.txt").write_text("mine")
    return tmp_path / "inner" / "into"


def check_refused(archive: Path, place: Path, error: str, limits: Limits | None = None) -> None:
    before = {path for path in place.parent.parent.rglob("*") if path.is_file()}
    with pytest.raises(ArchiveError, match=error) as caught:
        unpack(archive, place, limits=limits)
    assert "\n" not in str(caught.value)
    assert str(archive) in str(caught.value)
    assert not place.exists(), "partial output is still there"
    assert {path for path in place.parent.parent.rglob("*") if path.is_file()} == before
    assert (place.parent.parent / "outside.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["a.tar.gz", "a.tar", "a.tar.bz2", "a.tar.xz", "a.zip", "tar_called.zip"])
def test_files_under_take_are_unpacked(tmp_path: Path, place: Path, kind: str) -> None:
    entries = [("./top/b/c.txt", b"c"), ("top/a.txt", b"a" * 5000), ("other/d.txt", b"d"), ("top/._a.txt", b"")]
    mode = {"a.tar.gz": "w:gz", "a.tar.bz2": "w:bz2", "a.tar.xz": "w:xz"}.get(kind, "w")
    archive = make_zip(tmp_path / kind, *entries) if kind == "a.zip" else make_tar(tmp_path / kind, *entries, mode=mode)
    assert unpack(archive, place, take="top") == 2
    assert {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()} == {"a.txt", "b/c.txt"}
    assert (place / "a.txt").read_bytes() == b"a" * 5000
    assert not (place / "a.txt").stat().st_mode & 0o111


def test_file_modes_of_the_archive_are_ignored(tmp_path: Path, place: Path) -> None:
    info = tarfile.TarInfo("a")
    info.mode = 0o6777
    unpack(make_tar(tmp_path / "a.tar", info, mode="w"), place)
    assert not (place / "a").stat().st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH)


NAMES_OUT = [
    "../out.txt",
    "/out.txt",
    "a/../../out.txt",
    "..\\out.txt",
    "C:\\out.txt",
    "C:out.txt",
    "\\\\host\\s\\out.txt",
]


@pytest.mark.parametrize("name", NAMES_OUT)
@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_path_out_of_the_folder_is_refused(tmp_path: Path, place: Path, name: str, make: Callable[..., Path]) -> None:
    check_refused(make(tmp_path / "a", ("good.txt", b"1"), (name, b"2")), place, "points outside the folder")


LINKS_OUT = [
    (tarfile.SYMTYPE, "a/link", "../../outside.txt"),
    (tarfile.SYMTYPE, "link", "/etc/passwd"),
    (tarfile.SYMTYPE, "link", ".."),
    (tarfile.LNKTYPE, "a/link", "../outside.txt"),
    (tarfile.LNKTYPE, "link", "/etc/passwd"),
]


@pytest.mark.parametrize(("kind", "name", "target"), LINKS_OUT)
def test_link_out_of_the_folder_is_refused(tmp_path: Path, place: Path, kind: bytes, name: str, target: str) -> None:
    archive = make_tar(tmp_path / "a.tar.gz", ("good.txt", b"1"), special(name, kind, target))
    check_refused(archive, place, "link that points outside the folder")


def test_older_pythons_without_the_standard_checks_refuse_as_well(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    check_refused(make_tar(tmp_path / "a.tar", ("../out.txt", b"1")), place, "points outside the folder")
    check_refused(
        make_tar(tmp_path / "b.tar", special("b", tarfile.SYMTYPE, "/etc")),
        place,
        "link that points outside the folder",
    )
    check_refused(make_tar(tmp_path / "c.tar", special("c", tarfile.CHRTYPE)), place, "neither a file nor a folder")
    assert unpack(make_tar(tmp_path / "d.tar", ("f", b"1")), place) == 1


def test_link_out_of_the_folder_in_a_zip_is_refused(tmp_path: Path, place: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", (zip_special("link", stat.S_IFLNK), b"../outside.txt"))
    check_refused(archive, place, "link that points outside the folder")


def test_links_are_never_created(tmp_path: Path, place: Path) -> None:
    """Each link alone stays inside the folder; together they lead out."""
    archive = make_tar(
        tmp_path / "a.tar",
        special("a/b/up", tarfile.SYMTYPE, ".."),
        special("a/b/out", tarfile.SYMTYPE, "up/../.."),
        ("a/b/out/file.txt", b"1"),
    )
    unpack(archive, place)
    assert [path for path in place.rglob("*") if path.is_symlink()] == []
    assert (place / "a/b/out/file.txt").read_bytes() == b"1"


def test_links_inside_are_skipped_with_a_warning(tmp_path: Path, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    archive = make_tar(
        tmp_path / "a.tar", ("a/f", b"1"), special("b", tarfile.SYMTYPE, "a/f"), special("c", tarfile.LNKTYPE, "a/f")
    )
    assert unpack(archive, place) == 1
    assert "Skipped 2 links" in caplog.text


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_and_pipes_are_refused(tmp_path: Path, place: Path, kind: bytes) -> None:
    check_refused(make_tar(tmp_path / "a.tar", special("thing", kind)), place, "neither a file nor a folder")


def test_devices_in_a_zip_are_refused(tmp_path: Path, place: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", (zip_special("thing", stat.S_IFCHR), b""))
    check_refused(archive, place, "neither a file nor a folder")


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_bomb_by_size_is_refused(tmp_path: Path, place: Path, make: Callable[..., Path]) -> None:
    bomb = make(tmp_path / "a", *((f"{i}", b"\0" * (1 << 20)) for i in range(10)))
    check_refused(bomb, place, "unpacks to more than 5,000,000 bytes", Limits(bytes=5_000_000))


@pytest.mark.slow
def test_bomb_by_growth_is_refused(tmp_path: Path, place: Path) -> None:
    bomb = make_tar(tmp_path / "a.tar.gz", ("zeros", b"\0" * (80 << 20)))
    assert bomb.stat().st_size < 1 << 20
    check_refused(bomb, place, r"unpacks to more than \d+")


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_bomb_by_count_is_refused(tmp_path: Path, place: Path, make: Callable[..., Path]) -> None:
    bomb = make(tmp_path / "a", *((f"{i}", b"") for i in range(101)))
    check_refused(bomb, place, "more than 100 files", Limits(files=100))


def test_bomb_of_folders_is_refused(tmp_path: Path, place: Path) -> None:
    bomb = make_tar(tmp_path / "a.tar.gz", *(special(f"{i}/", tarfile.DIRTYPE) for i in range(101)))
    check_refused(bomb, place, "more than 100 files", Limits(files=100))


@pytest.mark.slow
def test_bomb_in_a_header_is_refused_within_little_memory(tmp_path: Path, place: Path) -> None:
    """tarfile would read a name of any length into memory."""
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 100 << 20
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.addfile(name, io.BytesIO(bytes(name.size)))
        archive.addfile(tarfile.TarInfo("f"))
    tracemalloc.start()
    try:
        check_refused(tmp_path / "a.tar.gz", place, "a header of 104,857,600 bytes")
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_zip_that_lies_about_its_sizes_is_refused(tmp_path: Path, place: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", ("f", b"\0" * 100_000))
    content = archive.read_bytes().replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    archive.write_bytes(content)
    check_refused(archive, place, "is broken")


@pytest.mark.parametrize("make", [make_tar, make_zip])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.01, 0.3, 0.9])
def test_truncated_archive_is_refused(tmp_path: Path, place: Path, make: Callable[..., Path], keep: float) -> None:
    contents = [random.Random(i).randbytes(3000) for i in range(10)]
    archive = make(tmp_path / "a", *((f"{i}", content) for i, content in enumerate(contents)))
    archive.write_bytes(archive.read_bytes()[: int(keep * archive.stat().st_size)])
    check_refused(archive, place, "is broken|is truncated|contains no file")


def test_name_used_as_file_and_folder_is_refused(tmp_path: Path, place: Path) -> None:
    check_refused(make_tar(tmp_path / "a.tar", ("f", b"1"), ("f/g", b"2")), place, "both as a file and as a folder")


def test_encrypted_zip_is_refused(tmp_path: Path, place: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", ("f", b"1"))
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    check_refused(archive, place, "is encrypted")


def test_archive_without_the_wanted_folder_says_what_it_contains(tmp_path: Path, place: Path) -> None:
    archive = make_tar(tmp_path / "a.tar", ("photos/1.jpg", b"1"))
    with pytest.raises(ArchiveError, match=r"a\.tar' contains no 'images', only photos"):
        unpack(archive, place, take="images")
    assert not place.exists()
