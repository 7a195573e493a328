"""Sharded datasets: tar files on disk and behind URLs, and Parquet and Arrow files."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import pickle
import random
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from download_server import Server
from PIL import Image
from torchvision.transforms.functional import to_tensor

from dassl_lite.config import get_cfg_default
from dassl_lite.data import build_dataset, read_image
from dassl_lite.data.doctor import examine
from dassl_lite.data.feature_cache import FeatureSpec, FeatureStore
from dassl_lite.data.images import UnreadableImageError
from dassl_lite.data.sharded import remote
from dassl_lite.data.sharded.remote import dataset_at
from dassl_lite.engine.commands.arguments import own_data
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.tools import prepare
from dassl_lite.utils.errors import UserError

Sample = tuple[str, dict[str, bytes]]
Spoil = Callable[[tarfile.TarFile], None]
NAMES = ("ant", "bee", "cat")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_plugins()
    monkeypatch.setenv("DASSL_LITE_CACHE", str(tmp_path / "cache"))


def png_bytes(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256, 9)).save(file, "PNG")
    return file.getvalue()


def sample(number: int, label: bytes | None = None) -> Sample:
    return f"{number:04}", {"png": png_bytes(number), "cls": label or str(number % 3).encode()}


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    for key, value in fields.items():
        setattr(entry, key, value)
    archive.addfile(entry, io.BytesIO(data))


def shard(path: Path, samples: Iterable[Sample], spoil: Spoil | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, members in samples:
            for ending, data in members.items():
                add(archive, f"{key}.{ending}", data)
        if spoil:
            spoil(archive)
    return path


def shards(folder: Path, numbers: Sequence[int] = range(24), each: int = 12) -> Path:
    """Write training shards of images with these numbers, and a test shard of other images."""
    for start in range(0, len(numbers), each):
        shard(folder / f"train-{start // each:03}.tar", map(sample, numbers[start : start + each]))
    shard(folder / "test-000.tar", map(sample, range(100, 112)))
    return folder


def load(root: Path | str, name: str = "WebDataset", *, seed: int = 1, **keys: Any) -> Any:
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.SEED = name, str(root), seed
    for key, value in keys.items():
        path, _, last = f"DATASET.{key.replace('__', '.')}".rpartition(".")
        node = cfg
        for part in path.split("."):
            node = node[part]
        node[last] = value
    random.seed(seed)
    return build_dataset(cfg)


def colours(items: Iterable[Any]) -> list[int]:
    """The numbers that the images were drawn from."""
    return [int(np.asarray(read_image(item.impath))[0, 0, 0]) for item in items]


def pairs(items: Iterable[Any]) -> list[tuple[int, int]]:
    items = list(items)
    return list(zip(colours(items), (item.label for item in items), strict=True))


def test_a_folder_of_shards_is_recognised_unless_it_also_contains_images(tmp_path: Path) -> None:
    folder = shards(tmp_path / "data")
    assert (dataset_at(folder), dataset_at(folder / "test-000.tar")) == ("WebDataset", "WebDataset")
    assert own_data(str(folder)) == {"DATASET.NAME": "WebDataset", "DATASET.ROOT": str(folder)}
    (folder / "images" / "ant").mkdir(parents=True)
    (folder / "images" / "ant" / "0.PNG").write_bytes(png_bytes(0))
    assert (dataset_at(folder), own_data(str(folder))["DATASET.NAME"]) == ("", "ImageFolder")
    (table := tmp_path / "tables" / "train").mkdir(parents=True)
    (table / "0.parquet").touch()
    assert (dataset_at(table.parent), dataset_at(table / "0.parquet")) == ("HFDataset", "HFDataset")
    (table / "0.tar").touch()
    assert [dataset_at(path) for path in (table, tmp_path / "none", tmp_path)] == ["", "", ""]


def test_prepare_checks_a_folder_of_shards_given_by_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shards(tmp_path / "data")
    assert run_tool(prepare.main, ["--check", str(folder)]) == 0
    output = capsys.readouterr().out
    assert f"{folder}: shards, read as WebDataset" in output
    assert re.search(r"WebDataset +train .* 24 ", output)
    (folder / "train-001.tar").write_bytes(b"no archive")
    assert run_tool(prepare.main, ["--check", str(folder)]) == 1


# ---- datasets of tar shards ------------------------------------------------------------------------------------------


def test_a_folder_of_shards_has_its_splits_labels_and_images(tmp_path: Path) -> None:
    dataset = load(shards(tmp_path / "data"))
    assert sorted(pairs(dataset.train_x)) == [(n, n % 3) for n in range(24)]
    assert sorted(pairs(dataset.test)) == [(n, n % 3) for n in range(100, 112)]
    assert dataset.classnames == ["0", "1", "2"]
    (tmp_path / "data/classnames.txt").write_text("ant\nbee\ncat\n")
    assert load(tmp_path / "data").classnames == list(NAMES)


def test_shards_of_the_webdataset_library_are_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    for part, numbers in (("train", range(9)), ("val", range(20, 26)), ("test", range(30, 36))):
        with webdataset.ShardWriter(str(tmp_path / f"{part}-%03d.tar"), maxcount=4, verbose=0) as writer:
            for n in numbers:
                writer.write(
                    {"__key__": f"a/{n:03}", "png": Image.new("RGB", (4, 4), (n, 0, 0)), "json": {"label": n % 3}}
                )
    dataset = load(tmp_path)
    assert sorted(pairs(dataset.train_x)) == [(n, n % 3) for n in range(9)]
    assert (len(dataset.val), len(dataset.test)) == (6, 6)


def test_brace_ranges_and_keys_name_the_shards_of_each_split(tmp_path: Path) -> None:
    folder = shards(tmp_path / "data")
    by_range = load(f"{folder}/{{train-{{000..001}},test-000}}.tar")
    by_key = load(folder, SHARDS__TRAIN="train-001.tar", SHARDS__TEST="test-{000..000}.tar")
    assert (len(by_range.train_x), len(by_key.train_x), len(by_key.test)) == (24, 12, 12)


def test_labels_may_be_names_and_stored_in_json(tmp_path: Path) -> None:
    def named(n: int) -> Sample:
        return f"{n:03}", {"png": png_bytes(n), "json": json.dumps({"classname": NAMES[n % 3], "label": n}).encode()}

    shard(tmp_path / "train.tar", map(named, range(9)))
    shard(tmp_path / "test.tar", map(named, range(9)))
    dataset = load(tmp_path, SHARDS__LABEL="classname")
    assert dataset.classnames == list(NAMES)
    assert sorted(pairs(dataset.train_x)) == [(n, n % 3) for n in range(9)]


@pytest.mark.slow
def test_a_draw_does_not_depend_on_order_or_sharding(tmp_path: Path) -> None:
    numbers = list(range(24))
    drawn = []
    for name, order, each in (("a", numbers, 12), ("b", numbers[::-1], 5), ("c", numbers[1::2] + numbers[::2], 7)):
        dataset = load(shards(tmp_path / name, order, each), NUM_SHOTS=3)
        drawn.append((pairs(dataset.train_x), dataset.fewshot_digest))
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(drawn[0][0]) == 9


def test_unsplit_shards_are_split_once_regardless_of_sharding(tmp_path: Path) -> None:
    root = tmp_path / "data"
    shard(root / "x.tar", map(sample, range(30)))
    first = load(root)
    (root / "x.tar").unlink()
    shard(root / "y.tar", map(sample, range(29, 14, -1)))
    shard(root / "z.tar", map(sample, range(15)))
    second = load(root)
    assert (
        [colours(part) for part in (first.train_x, first.val, first.test)]
        == [colours(part) for part in (second.train_x, second.val, second.test)]
        != [[], [], []]
    )


def test_features_are_cached_by_the_digest_of_shard_and_member(tmp_path: Path) -> None:
    spec = FeatureSpec("none", "digest", to_tensor, "pixels")
    encoded: list[int] = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        encoded.append(len(images))
        return images.mean(dim=(2, 3))

    def fetch(root: Path) -> torch.Tensor:
        encoded.clear()
        paths = [item.impath for item in load(root).train_x]
        return FeatureStore(spec, tmp_path / "store").fetch(paths, encode).tensor

    before = fetch(shards(tmp_path / "data"))
    assert sum(encoded) == 24
    shutil.move(tmp_path / "data", tmp_path / "moved")
    assert torch.equal(fetch(tmp_path / "moved"), before)
    assert not encoded  # moving the folder changes nothing
    shard(tmp_path / "moved/train-000.tar", map(sample, [30, *range(1, 12)]))
    fetch(tmp_path / "moved")
    assert sum(encoded) == 12  # only the images of the changed shard


def test_the_doctor_counts_shards_and_reports_problems(tmp_path: Path) -> None:
    cfg = get_cfg_default()
    cfg.DATASET.ROOT = str(shards(tmp_path / "data"))
    report = examine("WebDataset", cfg)
    assert not report.problems
    assert [(part.found, part.missing) for part in report.parts.values()] == [(24, 0), (12, 0)]
    intact = (tmp_path / "data/train-000.tar").read_bytes()
    (tmp_path / "data/train-000.tar").write_bytes(intact[:3000])
    assert "train-000.tar' is truncated" in examine("WebDataset", cfg).problems[0]


# ---- bad input -------------------------------------------------------------------------------------------------------


def link(archive: tarfile.TarFile) -> None:
    add(archive, "0900.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")


WRONG: dict[str, tuple[Spoil, str]] = {
    "no label": (lambda archive: add(archive, "0900.png", png_bytes(1)), "sample '0900' has no label"),
    "empty label": (
        lambda archive: (add(archive, "0900.png", png_bytes(1)), add(archive, "0900.cls", b" "))[0],
        "has no label",
    ),
    "no image": (lambda archive: add(archive, "0900.cls", b"1"), "sample '0900' has a label and no image"),
    "twice": (lambda archive: add(archive, "0003.png", png_bytes(3)), "has the key '0003.png' twice"),
    "escapes": (lambda archive: add(archive, "../0900.png", png_bytes(3)), "has a path that leaves the shard"),
    "absolute": (lambda archive: add(archive, "/tmp/0900.png", png_bytes(3)), "has a path that leaves the shard"),
    "inner": (lambda archive: add(archive, "a/../../0900.png", png_bytes(3)), "has a path that leaves the shard"),
    "drive": (lambda archive: add(archive, "C:0900.png", png_bytes(3)), "has a path that leaves the shard"),
    "link": (link, "member '0900.png' is a link"),
    "hard link": (lambda archive: add(archive, "0900.png", type=tarfile.LNKTYPE, linkname="0003.png"), "is a link"),
    "device": (lambda archive: add(archive, "0900.png", type=tarfile.CHRTYPE), "is not a plain file"),
    "class": (
        lambda archive: (add(archive, "0900.png", png_bytes(1)), add(archive, "0900.cls", b"7"))[0],
        "sample '0900' has the label 7, which is none of the 3 classes",
    ),
    "json": (
        lambda archive: (add(archive, "0900.png", png_bytes(1)), add(archive, "0900.json", b"[" * 100_000))[0],
        "sample '0900' has a damaged .json",
    ),
    "negative": (
        lambda archive: (add(archive, "0900.png", png_bytes(1)), add(archive, "0900.cls", b"-1"))[0],
        "sample '0900' has the label -1",
    ),
    "images": (
        lambda archive: (add(archive, "0900.png", png_bytes(1)), add(archive, "0900.mask.png", png_bytes(1)))[0],
        "has several images (mask.png, png); DATASET.SHARDS.IMAGE",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_invalid_member_is_reported_in_one_line_or_skipped_and_the_others_are_kept(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, message = WRONG[kind]
    folder = shards(tmp_path / "data")
    shard(folder / "train-000.tar", map(sample, range(12)), spoil)
    (folder / "classnames.json").write_text(json.dumps(NAMES))
    for _ in range(2):  # the second time, the index exists
        with pytest.raises(UserError) as error:
            load(folder)
        assert message in str(error.value)
        assert "train-000.tar" in str(error.value)
        assert "\n" not in str(error.value)
    with caplog.at_level(logging.WARNING):
        dataset = load(folder, ON_ERROR="skip")
    assert message in caplog.text
    assert sorted(pairs(dataset.train_x)) == [(n, n % 3) for n in range(24)]


@pytest.mark.parametrize("end", [-10240, -10752, 900, 5_000])
def test_a_truncated_shard_is_reported_in_one_line_and_its_complete_samples_are_kept(tmp_path: Path, end: int) -> None:
    folder = shards(tmp_path / "data")
    with tarfile.open(folder / "train-000.tar") as archive:
        last = archive.getmembers()[-1]
    intact = (folder / "train-000.tar").read_bytes()
    size = last.offset_data + 512 if end == -10240 else last.offset if end == -10752 else end
    (folder / "train-000.tar").write_bytes(intact[:size])
    with pytest.raises(UserError, match=r"train-000\.tar' is truncated"):
        load(folder)
    found = dict(pairs(load(folder, ON_ERROR="skip").train_x))
    assert {n: n % 3 for n in range(12, 24)}.items() <= found.items() <= {n: n % 3 for n in range(24)}.items()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a tar file"),
        (b"\x1f\x8b" + b"x" * 2000, "it is compressed"),
        (b"x" * 5000, "not a tar file"),
        (None, "No such file"),
        ("folder", "Is a directory"),
    ],
)
def test_a_file_that_is_not_a_shard_is_refused_in_one_line(tmp_path: Path, content: Any, message: str) -> None:
    folder = shards(tmp_path / "data")
    bad = folder / "train-001.tar"
    bad.unlink()
    if content == "folder":
        bad.mkdir()
    elif content is not None:
        bad.write_bytes(content)
    with pytest.raises(UserError, match=f"train-001.tar'.*{message}"):
        load(f"{folder}/{{train-000,train-001,test-000}}.tar")


def test_a_compressed_shard_among_others_is_reported(tmp_path: Path) -> None:
    folder = shards(tmp_path / "data")
    intact = (folder / "train-001.tar").read_bytes()
    (folder / "train-001.tar").unlink()
    (folder / "train-001.tar.gz").write_bytes(gzip.compress(intact))
    with pytest.raises(UserError, match=r"train-001\.tar\.gz'.*it is compressed"):
        load(folder)


def test_shards_with_only_training_data_are_split(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shard(folder / "train-000.tar", map(sample, range(24)))
    dataset = load(folder)
    assert sorted(pairs([*dataset.train_x, *dataset.val, *dataset.test])) == [(n, n % 3) for n in range(24)]
    assert len(dataset.test) > 0


def test_labels_and_extensions_of_other_programs_are_read(tmp_path: Path) -> None:
    def odd(n: int) -> Sample:
        return f"{n:04}", {"PNG": png_bytes(n), "jpg": png_bytes(n), "cls": b"\xef\xbb\xbf%d\r\n" % (n % 3)}

    for name, numbers in (("train", range(12)), ("test", range(100, 106))):
        shard(tmp_path / f"data/{name}.tar", map(odd, numbers))
    for ending in ("png", ".png", ".PNG"):
        dataset = load(tmp_path / "data", SHARDS__IMAGE=ending)
        assert sorted(pairs(dataset.train_x)) == [(n, n % 3) for n in range(12)]


def test_a_key_in_two_shards_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = shards(tmp_path / "data")
    shard(folder / "train-001.tar", map(sample, range(11, 23)))
    with pytest.raises(UserError, match=r"the key '0011' is in '.*train-000\.tar' and in '.*train-001\.tar'"):
        load(folder)
    assert len(load(folder, ON_ERROR="skip").train_x) == 23


def test_nothing_in_a_shard_is_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    def spoil(archive: tarfile.TarFile) -> None:
        for ending in ("pyd", "pkl", "pickle", "pth", "npy"):
            add(archive, f"0003.{ending}", pickle.dumps(Trap()))

    folder = shards(tmp_path / "data")
    shard(folder / "train-000.tar", map(sample, range(12)), spoil)
    assert len(load(folder).train_x) == 24
    with pytest.raises(UserError, match="pipe:"):
        load(folder, SHARDS__TRAIN=f"pipe://mkdir {tmp_path}/sprung", SHARDS__TEST="test-000.tar")
    with pytest.raises(UserError, match="pipe:"):
        load(folder, SHARDS__TRAIN=f"pipe:mkdir {tmp_path}/sprung", SHARDS__TEST="test-000.tar")
    assert not (tmp_path / "sprung").exists()


def test_an_image_is_named_if_its_shard_changes_during_a_run(tmp_path: Path) -> None:
    folder = shards(tmp_path / "data")
    path = load(folder).train_x[0].impath
    shard(folder / "train-000.tar", map(sample, range(13)))
    with pytest.raises(UnreadableImageError, match="was changed after it was indexed"):
        read_image(path)
    with pytest.raises(UnreadableImageError, match="no such file"):
        read_image(f"{path}x")


def test_a_damaged_image_is_named_by_member_and_shard(tmp_path: Path) -> None:
    shard(tmp_path / "train.tar", [("0001", {"png": b"no picture", "cls": b"0"})])
    shard(tmp_path / "test.tar", map(sample, (0, 3)))
    item = load(tmp_path).train_x[0]
    with pytest.raises(UnreadableImageError, match=r"cannot read image '0001\.png in .*train\.tar'"):
        read_image(item.impath)


# ---- behind a URL ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_that_drops_connections_gives_the_same_dataset(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dassl_lite.downloads.fetch.time.sleep", lambda seconds: None)
    folder = shards(tmp_path / "data")
    pages = {
        name: server.add(f"s/{name}", (folder / name).read_bytes(), cuts=cuts)
        for name, cuts in (("train-000.tar", [700, 5_000]), ("train-001.tar", [0]), ("test-000.tar", []))
    }
    remote = load(server.url("s/{train-{000..001},test-000}.tar"), NUM_SHOTS=2)
    local = load(folder, NUM_SHOTS=2)
    assert pairs(remote.train_x) == pairs(local.train_x)
    assert pages["train-000.tar"].asked == ["", "bytes=700-", "bytes=5700-"]
    server.pages.clear()  # the downloaded copies remain
    assert pairs(load(server.url("s/{train-{000..001},test-000}.tar"), NUM_SHOTS=2).test) == pairs(local.test)


def test_a_shard_that_a_server_lacks_or_refuses_is_reported_in_one_line(tmp_path: Path, server: Server) -> None:
    folder = shards(tmp_path / "data")
    server.add("test-000.tar", (folder / "test-000.tar").read_bytes())
    server.add("train-000.tar", b"", states=[403] * 9)
    for number, state in ((1, "404"), (0, "403")):
        with pytest.raises(UserError, match=rf"train-00{number}\.tar.*{state}") as error:
            load(server.url(f"{{train-00{number},test-000}}.tar"))
        assert "\n" not in str(error.value)


def test_a_server_response_that_is_not_a_shard_is_not_cached(tmp_path: Path, server: Server) -> None:
    folder = shards(tmp_path / "data")
    server.add("train-000.tar", b"<html>log in</html>")
    with pytest.raises(UserError, match="not a tar file"):
        load(server.url("train-000.tar"))
    server.add("train-000.tar", (folder / "train-000.tar").read_bytes())
    assert len(load(server.url("train-000.tar")).train_x) > 0


def test_shards_are_read_from_any_fsspec_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    folder = shards(tmp_path / "data")
    for name in ("train-000.tar", "test-000.tar"):
        memory.pipe(f"/bucket/{name}", (folder / name).read_bytes())
    dataset = load("memory://bucket/{train-000,test-000}.tar")
    assert sorted(pairs(dataset.train_x)) == [(n, n % 3) for n in range(12)]
    with pytest.raises(UserError, match=r"memory://bucket/train-009\.tar': no such file"):
        load("memory://bucket/{train-009,test-000}.tar")
    memory.pipe("/bucket/train-008.tar", b"x")

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(memory), "open", refused)
    with pytest.raises(UserError, match=r"train-008\.tar': no permission"):
        load("memory://bucket/{train-008,test-000}.tar")
    with pytest.raises(UserError, match=r"cannot read shard 'nowhere://a\.tar'"):
        load("nowhere://a.tar")


# ---- Parquet and Arrow -----------------------------------------------------------------------------------------------


def parquet(path: Path, numbers: Iterable[int], **columns: Any) -> Path:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    numbers = list(numbers)
    table = {"image": [{"bytes": png_bytes(n), "path": None} for n in numbers], "label": [n % 3 for n in numbers]}
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_table(arrow.table({**table, **columns}), path, row_group_size=5)
    return path


@pytest.mark.slow
def test_a_folder_of_parquet_files_gives_the_same_dataset_for_any_row_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Path(__file__).resolve().parents[2]  # whose folder ``datasets`` would shadow Hugging Face's package
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry or ".").resolve() != repository])
    drawn = []
    for name, numbers, cut in (("a", range(24), 12), ("b", range(23, -1, -1), 7)):
        parquet(tmp_path / name / "data/train-00000-of-00002.parquet", list(numbers)[:cut])
        parquet(tmp_path / name / "data/train-00001-of-00002.parquet", list(numbers)[cut:])
        parquet(tmp_path / name / "data/test-00000-of-00001.parquet", range(100, 112))
        dataset = load(tmp_path / name, "HFDataset", NUM_SHOTS=3)
        drawn.append((pairs(dataset.train_x), dataset.fewshot_digest))
        assert sorted(pairs(dataset.test)) == [(n, n % 3) for n in range(100, 112)]
    assert drawn[0] == drawn[1]
    import datasets  # like a user's program

    assert hasattr(datasets, "load_dataset")


@pytest.mark.slow
def test_class_names_and_columns_come_from_the_table_or_the_user(tmp_path: Path) -> None:
    from dassl_lite.data.sharded.hugging_face import hugging_face

    before = sys.modules.get("datasets")
    with hugging_face() as library:
        features = library.Features({"kind": library.ClassLabel(names=list(NAMES)), "photo": library.Image()})
        rows = {"kind": [n % 3 for n in range(12)], "photo": [{"bytes": png_bytes(n), "path": None} for n in range(12)]}
        table = library.Dataset.from_dict(rows, features=features)
        library.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "saved"))
    assert sys.modules.get("datasets") in (before, library)
    dataset = load(tmp_path / "saved", "HFDataset")  # Arrow
    assert dataset.classnames == list(NAMES)
    assert sorted(pairs(dataset.train_x)) == [(n, n % 3) for n in range(12)]
    given = {"key": [f"k/{n}" for n in range(12)], "fine": [NAMES[n % 3] for n in range(12)]}
    for part in ("train", "test"):
        parquet(tmp_path / f"own/{part}.parquet", range(12), **given)
    dataset = load(tmp_path / "own", "HFDataset", SHARDS__LABEL="fine", SHARDS__KEY="key")
    assert dataset.classnames == list(NAMES)
    with pytest.raises(UserError, match="has no column 'nothing', only image, label, key, fine"):
        load(tmp_path / "own", "HFDataset", SHARDS__LABEL="nothing")
    for part in ("train", "test"):
        arrow = pytest.importorskip("pyarrow")
        table = {"image": [{"bytes": png_bytes(n), "path": None} for n in range(3)], "shade": [0, 1, 2]}
        (tmp_path / "other").mkdir(exist_ok=True)
        pytest.importorskip("pyarrow.parquet").write_table(arrow.table(table), tmp_path / f"other/{part}.parquet")
    with pytest.raises(UserError, match=r"no column of labels found; DATASET.SHARDS.LABEL names it: image, shade"):
        load(tmp_path / "other", "HFDataset")


@pytest.mark.slow
def test_invalid_rows_and_files_are_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = [{"bytes": png_bytes(n), "path": None} for n in (0, 1, 2, 2)] + [{"bytes": None, "path": "/etc/hostname"}]
    parquet(tmp_path / "a/train.parquet", range(5), image=images, label=[0, 1, None, 2, 0])
    parquet(tmp_path / "a/test.parquet", range(6))
    with pytest.raises(UserError, match=r"row 2: column 'label' has no label.* \(and 1 more\)"):
        load(tmp_path / "a", "HFDataset")
    assert sorted(pairs(load(tmp_path / "a", "HFDataset", ON_ERROR="skip").train_x)) == [(0, 0), (1, 1), (2, 2)]
    parquet(tmp_path / "b/train.parquet", [0, 1, 2, 1])
    intact = parquet(tmp_path / "b/test.parquet", range(6)).read_bytes()
    with pytest.raises(UserError, match=r"b, train', row 3: the image '.*' is there twice"):
        load(tmp_path / "b", "HFDataset")
    (tmp_path / "b/test.parquet").write_bytes(intact[:-50])
    capfd.readouterr()
    with pytest.raises(UserError, match="cannot read 'b, test'") as error:
        load(tmp_path / "b", "HFDataset", ON_ERROR="skip")
    assert "\n" not in str(error.value)
    assert "Failed to read" not in capfd.readouterr().err
    with pytest.raises(UserError, match="there is no folder"):
        load(tmp_path / "none", "HFDataset")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no .parquet or .arrow files"):
        load(tmp_path / "empty", "HFDataset")


@pytest.mark.parametrize("names", ['{"0": "ant"}', "[1, 2, 3]", '["ant", "", "cat"]', "[]", '"ant"'])
def test_class_names_that_are_not_a_list_of_names_are_refused(tmp_path: Path, names: str) -> None:
    folder = shards(tmp_path / "data")
    (folder / "classnames.json").write_text(names)
    with pytest.raises(UserError, match="classnames.json': it is not a list of names"):
        load(folder)


@pytest.mark.parametrize(
    ("key", "plain"), [("a-1_b.c", True), ("", False), ("../a", False), ("a/b", False), (".a", False)]
)
def test_a_key_is_a_file_name_only_if_it_is_plain(key: str, plain: bool) -> None:
    from dassl_lite.data.sharded import hugging_face

    rows = [{"image": {"bytes": png_bytes(1)}, "label": 1, "key": key}]
    file, problems = io.BytesIO(), []
    (record,) = hugging_face._records(rows, "image", "label", "key", file, "mine", problems, [])
    name = record.name.rpartition("/")[2]
    assert (name == key) == plain
    assert hugging_face._plain(name)
    assert (record.key, problems) == (key, [])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError("x"), "no such file"),
        (PermissionError("x"), "no permission"),
        (RuntimeError("one\n  two"), "one two"),
        (RuntimeError("a" * 300), "a" * 200),
        (ConnectionResetError(), "ConnectionResetError"),
    ],
)
def test_a_failed_download_has_a_short_reason(error: Exception, reason: str) -> None:
    assert remote._reason(error) == reason
