"""Processes (threads in these tests) that extract together encode each image once, and none waits forever."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_toys import CountingEncoder, draw_images, expected, on_waiting, spec, store
from torch import Tensor

from dassl_lite.data.feature_cache import FeatureStore, ProcessGroup, describe_stores, shards
from dassl_lite.utils.errors import UserError


class Meeting:
    """Where the threads of a group exchange items."""

    def __init__(self, size: int) -> None:
        self.barrier, self.table = threading.Barrier(size, timeout=30), [None] * size


class Thread(ProcessGroup):
    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.size, self.meeting = rank, len(meeting.table), meeting

    def gather(self, item: Any) -> list[Any]:
        self.meeting.table[self.rank] = item
        self.meeting.barrier.wait()
        found = list(self.meeting.table)
        self.meeting.barrier.wait()
        return found


def together(size: int, work: Callable[[ProcessGroup], Any]) -> list[Any]:
    """The result or exception of ``work`` in each of ``size`` threads."""
    meeting, found = Meeting(size), [None] * size

    def run_rank(rank: int) -> None:
        try:
            found[rank] = work(Thread(rank, meeting))
        except Exception as error:  # noqa: BLE001
            found[rank] = error

    threads = [threading.Thread(target=run_rank, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def fetch_together(size: int, roots: Sequence[Path | None], paths: Sequence[str], **options: Any) -> list[Any]:
    """(features, numbers of encoded images) of each of ``size`` threads with caches in ``roots``."""

    def fetch(group: ProcessGroup) -> Any:
        encoder = CountingEncoder()
        run = FeatureStore(spec(), roots[group.rank % len(roots)], commit_seconds=0, processes=group)
        return run.fetch(paths, encoder, batch_size=2, **options), encoder.seen

    return together(size, fetch)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_are_merged_in_the_original_order(count: int, size: int) -> None:
    items = list(range(count))
    assert together(size, lambda group: list(group.in_turn(items[group.share]))) == [items] * size


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("count", [0, 1, 4, 9, 11])
def test_a_group_fills_the_store_as_one_process_does(tmp_path: Path, count: int, size: int) -> None:
    paths = draw_images(tmp_path / "a", count)
    found = fetch_together(size, [tmp_path / "cache"], paths)
    assert sorted(number for _, seen in found for number in seen) == list(range(count))
    for features, _ in found:
        assert torch.equal(features.tensor, expected(paths))
        assert features.kept.all()
    assert max((len(seen) for _, seen in found), default=0) <= 2 * -(-count // (2 * size))
    store(tmp_path / "alone", commit_seconds=0).fetch(paths, CountingEncoder(), batch_size=2)
    both = [sorted(path.read_bytes() for path in (tmp_path / run).glob("*/[ri]*")) for run in ("cache", "alone")]
    assert both[0] == both[1]
    assert [seen for _, seen in fetch_together(size, [tmp_path / "cache"], paths)] == [[]] * size


def test_a_group_without_a_disk_encodes_each_image_once(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 7)
    found = fetch_together(2, [None], [*paths, *paths[::-1]])
    assert sorted(number for _, seen in found for number in seen) == list(range(7))
    assert all(torch.equal(features.tensor, expected([*paths, *paths[::-1]])) for features, _ in found)


def test_all_processes_handle_a_corrupt_image_alike(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 8)
    Path(paths[5]).write_bytes(b"no picture")
    errors = fetch_together(2, [tmp_path / "cache"], paths)
    assert [type(error) for error in errors] == [UserError] * 2
    assert all("005.png" in str(error) for error in errors)
    encoder = CountingEncoder()
    store(tmp_path / "cache").fetch(paths[:5], encoder)
    assert encoder.seen == []  # images before the corrupt one are kept
    for features, _ in fetch_together(2, [tmp_path / "cache"], paths, on_error="skip"):
        assert features.kept.tolist() == [True] * 5 + [False] + [True] * 2


def test_a_full_disk_loses_a_group_only_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = draw_images(tmp_path / "a", 9)

    def append(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shards, "append", append)
    with caplog.at_level(logging.WARNING):
        found = fetch_together(3, [tmp_path / "cache"], paths)
    assert all(torch.equal(features.tensor, expected(paths)) for features, _ in found)
    assert len(caplog.records) == 1  # only the process that writes warns


def test_a_group_that_waited_for_another_run_uses_its_rows(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 10)
    started, group_waits = threading.Event(), threading.Event()

    class Encoder(CountingEncoder):
        def __call__(self, inputs: Tensor) -> Tensor:
            started.set()
            assert group_waits.wait(30)
            return super().__call__(inputs)

    other = threading.Thread(target=lambda: store(tmp_path / "cache").fetch(paths, Encoder(), batch_size=2))
    other.start()
    assert started.wait(30)
    with on_waiting(group_waits.set):
        found = fetch_together(2, [tmp_path / "cache"], paths)
    other.join()
    assert [seen for _, seen in found] == [[], []]
    assert all(torch.equal(features.tensor, expected(paths)) for features, _ in found)


@pytest.mark.parametrize("known_to", [0, 1])
def test_processes_with_separate_caches_agree_on_missing_images(tmp_path: Path, known_to: int) -> None:
    paths = draw_images(tmp_path / "a", 8)
    roots = [tmp_path / "node0", tmp_path / "node1"]
    store(roots[known_to]).fetch(paths[2:6], CountingEncoder())
    for features, _ in fetch_together(2, roots, paths):
        assert torch.equal(features.tensor, expected(paths))
    assert [summary.images for summary in describe_stores(roots[0])] == [8]
    (rows,) = roots[0].glob("*/rows-00000.bin")
    assert rows.stat().st_size == 8 * 16, "a row is stored twice"


def test_a_damaged_row_is_extracted_again_by_the_group(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 6)
    run = store(tmp_path / "cache")
    run.fetch(paths, CountingEncoder())
    assert run.folder is not None
    with open(run.folder / "rows-00000.bin", "r+b") as file:
        file.seek(3 * 16)
        file.write(b"\xff")
    found = fetch_together(2, [tmp_path / "cache"], paths)
    assert [number for _, seen in found for number in seen] == [3]
    assert all(torch.equal(features.tensor, expected(paths)) for features, _ in found)
