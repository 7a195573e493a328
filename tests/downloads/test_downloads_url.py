"""Dassl's download_url and download_data."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from download_server import Server

from dassl_lite.data import DatasetBase, Datum
from dassl_lite.downloads import url as url_module
from dassl_lite.downloads.url import download_url
from dassl_lite.utils import UserError


def test_file_and_its_folder_are_created(server: Server, tmp_path: Path) -> None:
    server.add("weights", b"abc" * 1000)
    download_url(server.url("weights"), str(tmp_path / "new" / "folder" / "w.pth"))
    assert (tmp_path / "new" / "folder" / "w.pth").read_bytes() == b"abc" * 1000


def test_failed_download_leaves_no_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the server answered 404"):
        download_url(server.url("none"), tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()


def archive_of(**files: str) -> bytes:
    """A zip with files by name; two underscores for a slash."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/"), text)
    return held.getvalue()


@pytest.fixture
def dataset() -> DatasetBase:
    return DatasetBase(train_x=[Datum("x.png", 0)])


def test_dassl_dataset_downloads_and_unpacks_its_archive(server: Server, tmp_path: Path, dataset: DatasetBase) -> None:
    server.add("pacs.zip", archive_of(pacs__art__1="one", pacs__art__2="two"))
    for _ in range(2):  # the second call changes nothing
        dataset.download_data(server.url("pacs.zip"), str(tmp_path / "data" / "pacs.zip"), from_gdrive=False)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["pacs", "pacs.zip"]
    assert (tmp_path / "data" / "pacs" / "art" / "2").read_text() == "two"


def test_archive_that_points_outside_its_folder_is_refused(
    server: Server, tmp_path: Path, dataset: DatasetBase
) -> None:
    server.add("pacs.zip", archive_of(**{"..__evil": "out", "pacs__1": "in"}))
    with pytest.raises(UserError, match="evil"):
        dataset.download_data(server.url("pacs.zip"), str(tmp_path / "data" / "pacs.zip"), from_gdrive=False)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["data", "pacs.zip"]


@pytest.mark.parametrize("shape", ["https://drive.google.com/uc?id={}", "https://drive.google.com/file/d/{}/view"])
def test_file_id_is_found_in_a_google_drive_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: DatasetBase, shape: str
) -> None:
    def fetch(url: str, target: Path) -> None:
        assert url == "drive:1a_B-2"
        target.write_bytes(archive_of(pacs__1="one"))

    monkeypatch.setattr(url_module, "fetch", fetch)
    dataset.download_data(shape.format("1a_B-2"), str(tmp_path / "new" / "pacs.zip"))
    assert (tmp_path / "new" / "pacs" / "1").read_text() == "one"
    with pytest.raises(UserError, match="contains no Google Drive file id"):
        dataset.download_data("https://drive.google.com/uc", str(tmp_path / "pacs.zip"))
