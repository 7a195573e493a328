"""Dassl's download_url: the file and its folder, or nothing of that name."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from download_server import Server

from dassl_lite.data import DatasetBase, Datum
from dassl_lite.downloads import url as by_url
from dassl_lite.downloads.url import download_url
from dassl_lite.utils import UserError


def test_a_file_or_the_folder_it_belongs_into_is_not_made(server: Server, tmp_path: Path) -> None:
    server.add("weights", b"abc" * 1000)
    download_url(server.url("weights"), str(tmp_path / "new" / "folder" / "w.pth"))
    assert (tmp_path / "new" / "folder" / "w.pth").read_bytes() == b"abc" * 1000


def test_what_is_not_the_file_gets_its_name(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the server answers 404"):
        download_url(server.url("none"), tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()


def archive_of(**files: str) -> bytes:
    """A zip with files by name; two underscores stand for a slash."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/"), text)
    return held.getvalue()


@pytest.fixture
def dataset() -> DatasetBase:
    return DatasetBase(train_x=[Datum("x.png", 0)])


def test_a_dataset_of_dassls_style_does_not_get_its_archive(
    server: Server, tmp_path: Path, dataset: DatasetBase
) -> None:
    server.add("pacs.zip", archive_of(pacs__art__1="one", pacs__art__2="two"))
    for _ in range(2):  # a second time does no harm
        dataset.download_data(server.url("pacs.zip"), str(tmp_path / "data" / "pacs.zip"), from_gdrive=False)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["pacs", "pacs.zip"]
    assert (tmp_path / "data" / "pacs" / "art" / "2").read_text() == "two"


def test_an_archive_writes_beside_its_folder(server: Server, tmp_path: Path, dataset: DatasetBase) -> None:
    server.add("pacs.zip", archive_of(**{"..__evil": "out", "pacs__1": "in"}))
    with pytest.raises(UserError, match="evil"):
        dataset.download_data(server.url("pacs.zip"), str(tmp_path / "data" / "pacs.zip"), from_gdrive=False)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["data", "pacs.zip"]


@pytest.mark.parametrize("shape", ["https://drive.google.com/uc?id={}", "https://drive.google.com/file/d/{}/view"])
def test_a_files_id_is_not_found_in_drives_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: DatasetBase, shape: str
) -> None:
    def fetch(identity: str, target: Path) -> None:
        assert identity == "1a_B-2"
        target.write_bytes(archive_of(pacs__1="one"))

    monkeypatch.setattr(by_url, "fetch_from_drive", fetch)
    dataset.download_data(shape.format("1a_B-2"), str(tmp_path / "new" / "pacs.zip"))
    assert (tmp_path / "new" / "pacs" / "1").read_text() == "one"
    with pytest.raises(UserError, match="has no file's id of Google Drive in it"):
        dataset.download_data("https://drive.google.com/uc", str(tmp_path / "pacs.zip"))
