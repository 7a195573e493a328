"""Folders without permission, and the files that a run writes to a dataset's folder."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_data_dataset import ROWS, Toy, config, lay_out

from dassl_lite.data import Split, read_split, split_folders
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import cache_root

Forbid = Callable[[Path], None]


@pytest.fixture
def forbid(monkeypatch: pytest.MonkeyPatch) -> Forbid:
    """``forbid(folder)``: simulate missing permissions, which root (who may run the tests) would bypass."""

    def forbid(folder: Path) -> None:
        for name in ("listdir", "scandir"):
            real = getattr(os, name)

            def refuse(path: Any = ".", *, real: Any = real) -> Any:
                if not isinstance(path, int) and Path(path) == folder:  # shutil.rmtree works on descriptors
                    raise PermissionError(errno.EACCES, "Permission denied", str(path))
                return real(path)

            monkeypatch.setattr(os, name, refuse)

    return forbid


class FromFolders(Toy):
    def make_split(self) -> Split:
        return split_folders(self.image_dir)


def lay_out_folders(root: Path, size: int = 10) -> None:
    lay_out(root, [(f"{name}/{i}.png", 0, name) for name in ("ant", "bee") for i in range(size)])
    (root / "toy" / "split_Toy.json").unlink()


@pytest.mark.parametrize("folder", ["toy/images", "toy/images/bee"])
def test_a_folder_without_permission_is_reported_as_such(tmp_path: Path, forbid: Forbid, folder: str) -> None:
    lay_out(tmp_path)
    forbid(tmp_path / folder)
    with pytest.raises(UserError, match=f"cannot read the folder '.*{folder}': Permission denied") as raised:
        Toy(config(tmp_path))
    assert "\n" not in str(raised.value)


def test_a_class_folder_without_permission_stops_the_split(tmp_path: Path, forbid: Forbid) -> None:
    lay_out_folders(tmp_path)
    forbid(tmp_path / "toy" / "images" / "bee")
    with pytest.raises(UserError, match=r"FromFolders cannot be read: .*Permission denied: '.*images/bee'"):
        FromFolders(config(tmp_path))
    assert not (tmp_path / "toy" / "split_Toy.json").exists()


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    lay_out_folders(tmp_path)
    (tmp_path / "toy" / "images" / "cat").mkdir()
    with pytest.raises(UserError, match=r"class folder '.*images/cat' contains no images"):
        FromFolders(config(tmp_path))


def test_a_run_writes_only_the_split_and_the_draw(tmp_path: Path) -> None:
    lay_out_folders(tmp_path)
    before = set(tmp_path.rglob("*"))
    FromFolders(config(tmp_path, NUM_SHOTS=1))
    FromFolders(config(tmp_path, NUM_SHOTS=1, SUBSAMPLE_CLASSES="base"))
    left = {str(path.relative_to(tmp_path / "toy")) for path in tmp_path.rglob("*") if path not in before}
    assert left == {"split_Toy.json", "split_fewshot", "split_fewshot/shot_1-seed_1.json"}


def test_an_interrupted_write_of_the_split_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out_folders(tmp_path)

    def torn(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", torn)
    with pytest.raises(KeyboardInterrupt):
        FromFolders(config(tmp_path))
    assert sorted(path.name for path in (tmp_path / "toy").iterdir()) == ["images"]


def test_a_read_only_dataset_keeps_its_split_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dassl_lite.data import splits

    lay_out_folders(tmp_path)
    write = splits.write_listing

    def refuse(content: Any, path: Any) -> None:
        if tmp_path in Path(path).parents:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        write(content, path)

    monkeypatch.setattr(splits, "write_listing", refuse)
    monkeypatch.setattr("dassl_lite.data.fewshot.write_listing", refuse)
    random.seed(1)
    first = FromFolders(config(tmp_path, NUM_SHOTS=2))
    random.seed(2)
    again = FromFolders(config(tmp_path, NUM_SHOTS=2))
    assert (again.train_x, again.test) == (first.train_x, first.test)
    assert list(cache_root().rglob("FromFolders-*/split_Toy.json"))
    assert sorted(path.name for path in (tmp_path / "toy").iterdir()) == ["images"]


def test_an_unreadable_folder_of_draws_counts_as_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    stat = os.stat

    def refuse(path: Any, *arguments: Any, **options: Any) -> Any:
        if "split_fewshot" in str(path) and str(tmp_path) in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refuse)
    assert len(Toy(config(tmp_path, NUM_SHOTS=2)).train_x) == 6


@pytest.mark.parametrize("what", ["folder", "text"])
def test_a_split_file_that_cannot_be_read_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "split.json"
    if what == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"cannot read '.*split\.json' as JSON"):
        read_split(path, "images")


def test_a_wrong_root_is_explained(tmp_path: Path) -> None:
    lay_out(tmp_path, ROWS)
    for root in (tmp_path / "toy", tmp_path / "toy" / "split_Toy.json"):
        with pytest.raises(
            UserError, match=r"is missing: there is no folder .* should be the folder that contains 'toy'"
        ):
            Toy(config(root))
