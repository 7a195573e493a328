"""After a crash at any moment, the feature cache has no wrong row and has lost no committed row."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_toys import CountingEncoder, draw_images, expected, noisy, spec, store
from torch import Tensor

from dassl_lite.data.feature_cache import shards
from dassl_lite.data.feature_cache.shards import ShardStore

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_child(work: Callable[[], object]) -> Any:
    """Start ``work`` in a forked process."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def killing_append(moment: int, how: str) -> Callable[..., None]:
    """An ``append`` that kills its process at the given call: before writing, halfway through, or after it."""
    real = shards.append
    calls = []

    def append(path: Path, end: int, data: Any) -> None:
        calls.append(path)
        if len(calls) == moment:
            if how == "half":
                real(path, end, bytes(data)[: len(bytes(data)) // 2])
            elif how == "after":
                real(path, end, data)
            os.kill(os.getpid(), signal.SIGKILL)
        real(path, end, data)

    return append


@pytest.mark.slow_after(2)
@forks
@pytest.mark.parametrize("how", ["before", "half", "after"])
@pytest.mark.parametrize("moment", [1, 2, 3, 4, 5, 6])  # writes: rows, index, rows, index, ...
def test_an_extraction_killed_while_writing_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int, how: str
) -> None:
    paths = draw_images(tmp_path / "a", 10)
    kind: dict[str, Any] = {"transform": noisy, "views": 2}

    def extract() -> None:
        monkeypatch.setattr(shards, "append", killing_append(moment, how))
        store(tmp_path / "cache", commit_seconds=0, **kind).fetch(paths, CountingEncoder(), batch_size=4)

    process = in_child(extract)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    commits = moment // 2 if how == "after" else (moment - 1) // 2
    encoder = CountingEncoder()
    run = store(tmp_path / "cache", **kind)
    assert torch.equal(run.fetch(paths, encoder, batch_size=4).tensor, expected(paths, **kind))
    assert sum(encoder.calls) == 2 * (10 - 2 * commits)  # committed rows are not computed again
    encoder = CountingEncoder()
    assert torch.equal(store(tmp_path / "cache", **kind).fetch(paths, encoder).tensor, expected(paths, **kind))
    assert encoder.calls == []


@pytest.mark.slow
@forks
def test_an_extraction_killed_several_times_completes(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 30)
    log = tmp_path / "encoded"

    class Encoder(CountingEncoder):
        def __call__(self, inputs: Tensor) -> Tensor:
            features = super().__call__(inputs)
            with open(log, "a") as file:
                file.write("".join(f"{number}\n" for number in self.seen[-len(inputs) :]))
            return features

    def extract() -> None:
        store(tmp_path / "cache", commit_seconds=0).fetch(paths, Encoder(), batch_size=2)

    log.touch()
    for images in (6, 13, 20):
        process = in_child(extract)
        while len(log.read_text().split()) < images and process.is_alive():
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
    extract()
    encoder = CountingEncoder()
    assert torch.equal(store(tmp_path / "cache").fetch(paths, encoder).tensor, expected(paths))
    assert encoder.calls == []
    twice = len(log.read_text().split()) - 30
    assert 0 <= twice <= 3 * 2 * 2  # per killed run: the batch being written and the one before


def test_rows_are_on_the_disk_before_the_index_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power failure may lose whatever was not synced; an index ahead of its rows would point to garbage."""
    synced: list[tuple[str, int, int]] = []  # (file, its size, lines of the index at that moment)
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        for path in (tmp_path / "cache").rglob("*"):
            if path.is_file() and os.path.samestat(path.stat(), os.fstat(descriptor)) and path.suffix != ".tmp":
                index = path.with_name("index.jsonl")
                lines = index.read_bytes().count(b"\n") if index.exists() else 0
                synced.append((path.name, path.stat().st_size, lines))

    monkeypatch.setattr(os, "fsync", fsync)
    store(tmp_path / "cache", commit_seconds=0).fetch(draw_images(tmp_path / "a", 4), CountingEncoder(), batch_size=2)
    names, row_bytes = [name for name, _, _ in synced], 4 * 4
    assert names == ["rows-00000.bin", "index.jsonl"] * 2
    assert [(size, lines) for name, size, lines in synced if name.startswith("rows")] == [
        (2 * row_bytes, 0),
        (4 * row_bytes, 1),
    ]
    assert [lines for name, _, lines in synced if name.startswith("index")] == [1, 2]


@pytest.mark.parametrize("name", ["rows-00000.bin", "index.jsonl"])
@pytest.mark.parametrize("cut", [1, 10])
def test_an_incomplete_tail_is_dropped_and_the_rest_is_kept(tmp_path: Path, name: str, cut: int) -> None:
    paths = draw_images(tmp_path / "a", 6)
    run = store(tmp_path / "cache", commit_seconds=0)
    run.fetch(paths, CountingEncoder(), batch_size=2)
    assert run.folder is not None
    os.truncate(run.folder / name, (run.folder / name).stat().st_size - cut)
    encoder = CountingEncoder()
    again = store(tmp_path / "cache")
    assert torch.equal(again.fetch(paths, encoder).tensor, expected(paths))
    assert encoder.seen == [4, 5]
    encoder = CountingEncoder()
    assert torch.equal(store(tmp_path / "cache").fetch(paths, encoder).tensor, expected(paths))
    assert encoder.seen == []


@pytest.mark.parametrize("name", ["rows-00000.bin", "index.jsonl"])
def test_bytes_left_by_a_killed_writer_are_truncated(tmp_path: Path, name: str) -> None:
    paths = draw_images(tmp_path / "a", 3)
    run = store(tmp_path / "cache")
    run.fetch(paths[:2], CountingEncoder())
    assert run.folder is not None
    with open(run.folder / name, "ab") as file:
        file.write(b"x" * 1000)
    store(tmp_path / "cache").fetch(paths, CountingEncoder())
    assert b"xx" not in (run.folder / name).read_bytes()
    assert (run.folder / "rows-00000.bin").stat().st_size == 3 * 16
    assert len((run.folder / "index.jsonl").read_bytes().splitlines()) == 2


@pytest.mark.parametrize("rows", [[2], [0, 1, 5]])
def test_a_damaged_row_is_extracted_again(tmp_path: Path, rows: list[int], caplog: pytest.LogCaptureFixture) -> None:
    paths = draw_images(tmp_path / "a", 6)
    run = store(tmp_path / "cache")
    run.fetch(paths, CountingEncoder())
    assert run.folder is not None
    with open(run.folder / "rows-00000.bin", "r+b") as file:
        for row in rows:
            file.seek(row * 16 + 3)
            file.write(b"\xff")
    encoder = CountingEncoder()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(store(tmp_path / "cache").fetch(paths, encoder).tensor, expected(paths))
    assert f"extracted again: {len(rows)}" in caplog.text
    assert encoder.seen == rows
    encoder = CountingEncoder()
    assert torch.equal(store(tmp_path / "cache").fetch(paths, encoder).tensor, expected(paths))
    assert encoder.seen == []


def test_a_damaged_index_line_loses_only_its_own_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = draw_images(tmp_path / "a", 6)
    run = store(tmp_path / "cache", commit_seconds=0)
    run.fetch(paths, CountingEncoder(), batch_size=2)
    assert run.folder is not None
    index = run.folder / "index.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(lines[0] + lines[1].replace(b"002.png", b"000.png") + lines[2])
    encoder = CountingEncoder()
    assert torch.equal(store(tmp_path / "cache").fetch(paths, encoder).tensor, expected(paths))
    assert encoder.seen == [2, 3]
    assert "Damaged commits ignored in the feature cache" in caplog.text


def test_a_deleted_shard_is_extracted_again(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 4)
    run = store(tmp_path / "cache")
    run.fetch(paths, CountingEncoder())
    assert run.folder is not None
    (run.folder / "rows-00000.bin").unlink()
    encoder = CountingEncoder()
    again = store(tmp_path / "cache", commit_seconds=0)
    # Two commits of two rows: after the first, the file has half of the rows that the old index line promises.
    assert torch.equal(again.fetch(paths[::-1], encoder, batch_size=2).tensor, expected(paths[::-1]))
    assert len(encoder.seen) == 4
    assert torch.equal(store(tmp_path / "cache").fetch(paths, CountingEncoder()).tensor, expected(paths))


def test_a_store_with_other_features_is_refused(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 1)
    run = store(tmp_path / "cache")
    run.fetch(paths, CountingEncoder())
    assert run.folder is not None
    with pytest.raises(ValueError, match="contains other features"):
        ShardStore(run.folder, spec(digest="other").describe()).load()
