"""Installing a dataset from a server on loopback: once, complete, in the right layout; and the errors."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from download_server import IMPATIENT, Server

from dassl_lite.downloads import SOURCES, prepare
from dassl_lite.downloads.fetch import Patience
from dassl_lite.downloads.sources import File, Source, Unpack
from dassl_lite.utils.errors import UserError

FILES = {"pets/images/cat/1.jpg": b"cat", "pets/images/dog/2.jpg": b"dog", "pets/README": b"read me"}
SPLIT = json.dumps({"train": [], "val": [], "test": []}).encode()


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


@pytest.fixture
def archive() -> bytes:
    return tar_of(FILES)


@pytest.fixture
def source(server: Server, archive: bytes) -> Source:
    """A dataset of a split file and an archive, both on the server."""
    server.add("split.json", SPLIT)
    server.add("pets.tar.gz", archive)
    return Source(
        "oxford",
        (
            File("split.json", (server.url("split.json"),)),
            File(
                "pets.tar.gz", (server.url("pets.tar.gz"),), digest=sha256(archive), unpack=Unpack("pets/images", "img")
            ),
        ),
        images=(1, None, 1),
        classes=2,
    )


@pytest.fixture
def get(tmp_path: Path) -> Callable[..., None]:
    """``get(source)`` prepares it under the test's folder."""

    def get(source: Source, **options: object) -> None:
        prepare("Pets", tmp_path, patience=IMPATIENT, sources={"Pets": source}, **options)  # type: ignore[arg-type]

    return get


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def requests(server: Server) -> int:
    return sum(len(page.asked) for page in server.pages.values())


def test_folder_contains_exactly_the_files_of_the_layout(source: Source, get: Callable, tmp_path: Path) -> None:
    get(source)
    assert files_in(tmp_path) == {"oxford/split.json", "oxford/img/cat/1.jpg", "oxford/img/dog/2.jpg"}
    assert not (tmp_path / "oxford/.prepare").exists()


def test_second_run_downloads_nothing(source: Source, get: Callable, server: Server) -> None:
    get(source)
    asked = requests(server)
    get(source)
    assert requests(server) == asked


def test_archive_is_kept_on_request(source: Source, get: Callable, tmp_path: Path, archive: bytes) -> None:
    get(source, keep_archives=True)
    assert (tmp_path / "oxford/pets.tar.gz").read_bytes() == archive


def test_whole_archive_goes_into_the_folder_itself(source: Source, get: Callable, tmp_path: Path) -> None:
    whole = File("pets.tar.gz", source.files[1].urls, unpack=Unpack("pets", ""), provides="images")
    (tmp_path / "oxford").mkdir()
    (tmp_path / "oxford/README").write_text("mine")
    get(Source("oxford", (whole,), (1, None, 1), 2))
    assert files_in(tmp_path / "oxford") == {"images/cat/1.jpg", "images/dog/2.jpg", "README"}
    assert (tmp_path / "oxford/README").read_text() == "mine"


def test_archive_in_an_archive_is_unpacked(server: Server, get: Callable, tmp_path: Path, archive: bytes) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as outer:
        outer.writestr("top/pets.tar.gz", archive)
        outer.writestr("top/notes.pdf", b"1")
    server.add("top.zip", buffer.getvalue())
    file = File("top.zip", (server.url("top.zip"),), unpack=Unpack("pets/images", "img", inner="top/pets.tar.gz"))
    get(Source("oxford", (file,), (1, None, 1), 2))
    assert files_in(tmp_path) == {"oxford/img/cat/1.jpg", "oxford/img/dog/2.jpg"}


def test_archive_supplied_by_the_user_is_checked_unpacked_and_kept(
    source: Source, get: Callable, tmp_path: Path, server: Server, archive: bytes
) -> None:
    supplied = Source(
        "oxford", (File("pets.tar.gz", digest=sha256(archive), unpack=Unpack("pets", "img")),), (1, 1, 1), 2
    )
    (tmp_path / "oxford").mkdir()
    (tmp_path / "oxford/pets.tar.gz").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"pets.tar.gz' is not the expected file: .* digest"):
        get(supplied)
    (tmp_path / "oxford/pets.tar.gz").write_bytes(archive)
    get(supplied)
    assert (tmp_path / "oxford/img/images/cat/1.jpg").read_bytes() == b"cat"
    assert (tmp_path / "oxford/pets.tar.gz").exists()


def test_existing_images_are_left_untouched(source: Source, get: Callable, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine.jpg").write_bytes(b"1")
    (tmp_path / "oxford").mkdir()
    (tmp_path / "oxford/img").symlink_to(tmp_path / "elsewhere")
    get(source)
    assert files_in(tmp_path / "elsewhere") == {"mine.jpg"}
    assert (tmp_path / "oxford/split.json").exists()


def test_file_with_a_wrong_digest_is_set_aside_and_named(
    source: Source, get: Callable, server: Server, tmp_path: Path
) -> None:
    page = server.add("pets.tar.gz", b"something else")
    with pytest.raises(UserError, match=r"Pets is not complete: pets.tar.gz has the sha256 digest") as caught:
        get(source)
    aside = tmp_path / "oxford/.prepare/rejected/pets.tar.gz"
    assert str(aside) in str(caught.value)
    assert aside.read_bytes() == b"something else"
    assert not (tmp_path / "oxford/img").exists()
    assert (tmp_path / "oxford/split.json").exists(), "the other files should be installed"
    with pytest.raises(UserError):
        get(source)
    assert page.asked == ["", ""], "a rejected file is downloaded anew"


def test_second_url_is_tried(source: Source, get: Callable, server: Server, tmp_path: Path) -> None:
    file = source.files[1]
    mirrored = File(file.name, (server.url("gone"), *file.urls), unpack=file.unpack)
    get(Source("oxford", (mirrored,), (1, None, 1), 2))
    assert (tmp_path / "oxford/img/cat/1.jpg").exists()
    nowhere = File(file.name, (server.url("gone"), server.url("gone too")), unpack=Unpack("pets", "other"))
    with pytest.raises(UserError, match=r"gone: the server answered 404 .*; .*gone too: the server answered 404"):
        get(Source("oxford", (nowhere,), (1, None, 1), 2))


def test_web_page_instead_of_the_file_says_what_to_do(source: Source, get: Callable, server: Server) -> None:
    server.add("split.json", b"<!DOCTYPE html><html><title>Log in</title>")
    with pytest.raises(
        UserError, match=r"returned a web page instead of split.json: .* save the file as '.*split.json'"
    ):
        get(source)


@pytest.mark.slow
def test_unavailable_optional_file_is_only_a_warning(
    source: Source, get: Callable, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    optional = File("names.txt", (server.url("gone"),), optional=True)
    get(Source("oxford", (optional, *source.files), (1, None, 1), 2))
    assert "404" in caplog.text
    assert "works without it" in caplog.text


def test_file_of_another_dataset_is_copied(source: Source, server: Server, tmp_path: Path) -> None:
    server.add("names.txt", b"n01440764 tench")
    names = File("names.txt", (server.url("names.txt"),))
    table = {name: Source(name.lower(), (names,), (None, None, 1), 1) for name in ("A", "B")}
    for name in table:
        prepare(name, tmp_path, patience=IMPATIENT, sources=table)
    assert files_in(tmp_path) == {"a/names.txt", "b/names.txt"}
    assert requests(server) == 1


def test_files_to_download_manually_are_listed_with_places_and_digests(
    source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cars = SOURCES["StanfordCars"]
    only_manual = Source(cars.folder, cars.files[1:], cars.images, cars.classes, cars.manual)
    with pytest.raises(UserError, match=r"download cars_train.tgz, cars_test.tgz manually, as listed above"):
        prepare("StanfordCars", tmp_path, sources={"StanfordCars": only_manual})
    assert "979,269,282 bytes, sha256 512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288" in caplog.text
    assert str(tmp_path / "stanford_cars/cars_train.tgz") in caplog.text
    assert str(tmp_path / "stanford_cars/cars_train/") in caplog.text
    assert "cars_test_annos_withlabels.mat (optional)" in caplog.text


@pytest.mark.parametrize("name", ["SUN397", "ImageNet"])
def test_dataset_behind_a_login_says_where_its_images_go(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = SOURCES[name]
    manual = tuple(file for file in source.files if not file.urls)
    with pytest.raises(UserError, match="manually"):
        prepare(name, tmp_path, sources={name: Source(source.folder, manual, (1, 1, 1), 1, source.manual)})
    wanted = {"SUN397": ["sun397/SUN397/"], "ImageNet": ["imagenet/images/train/", "imagenet/images/val/"]}[name]
    assert all(str(tmp_path / place) in caplog.text for place in wanted)


def test_unknown_name_is_refused_with_the_likely_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'Eurosat'. Did you mean 'EuroSAT'\?"):
        prepare("Eurosat", tmp_path)


def test_full_disk_and_unwritable_root_are_reported_in_one_line(
    source: Source, get: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("dassl_lite.downloads.preparation.unpack", full)
        with pytest.raises(UserError, match=r"the disk of '.*oxford' is full; free some space, then run this again"):
            get(source)
    get(source)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to .*: Not a directory"):
        prepare("Pets", tmp_path / "file", sources={"Pets": source})


KILLED = """
import sys, time
from pathlib import Path
from dassl_lite.downloads import prepare, archives
from dassl_lite.downloads.sources import File, Source, Unpack
members = archives._tar_members
def slow(archive):
    for member in members(archive):
        yield member
        print("written", flush=True)
        time.sleep(60)
archives._tar_members = slow
file = File("pets.tar.gz", (sys.argv[2],), unpack=Unpack("pets/images", "img"))
prepare("Pets", Path(sys.argv[1]), sources={"Pets": Source("oxford", (file,), (1, None, 1), 2)})
"""


@pytest.mark.slow
def test_killed_unpacking_is_repeated_by_the_next_run(
    source: Source, get: Callable, server: Server, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), server.url("pets.tar.gz")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    with pytest.raises(UserError, match="another process is preparing"):
        get(source)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()
    assert files_in(tmp_path / "oxford") - {"split.json"} == {
        ".prepare/pets.tar.gz",
        ".prepare/unpacking/whole/cat/1.jpg",
    }
    get(source)
    assert files_in(tmp_path / "oxford") == {"split.json", "img/cat/1.jpg", "img/dog/2.jpg"}
    assert server.pages["/pets.tar.gz"].asked == [""], "the archive was complete"


@pytest.mark.slow
def test_silent_server_is_given_up_after_the_last_attempt(source: Source, server: Server, tmp_path: Path) -> None:
    page = server.add("split.json", SPLIT, stalls=[0] * 9)
    patience = Patience(read=0.05, tries=3, pause=0.0)
    with pytest.raises(UserError, match="no answer in time"):
        prepare("Pets", tmp_path, patience=patience, sources={"Pets": source})
    assert page.asked == ["", "", ""]
