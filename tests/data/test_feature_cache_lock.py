"""Two that want the same features at once: one extracts, the other waits and reads."""

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
from feature_toys import CountingEncoder, draw_images, expected, store
from torch import Tensor

from dassl_lite.data.feature_cache import lock

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_child(work: Callable[[], object]) -> Any:
    """``work`` in a forked process, started."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


@forks
def test_two_processes_at_once_encode_each_image_once(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 12)
    context = multiprocessing.get_context("fork")
    together = context.Barrier(2)
    answers = context.Queue()

    def extract() -> None:
        class Slow(CountingEncoder):
            def __call__(self, inputs: Tensor) -> Tensor:
                time.sleep(0.02)
                return super().__call__(inputs)

        run, encoder = store(tmp_path / "cache"), Slow()
        together.wait()
        features = run.fetch(paths, encoder, batch_size=2)
        answers.put((encoder.seen, features.tensor.tolist()))

    processes = [in_child(extract) for _ in range(2)]
    (seen_a, features_a), (seen_b, features_b) = answers.get(timeout=60), answers.get(timeout=60)
    for process in processes:
        process.join(60)
    assert sorted(seen_a + seen_b) == list(range(12))
    assert features_a == features_b == expected(paths).tolist()


@forks
def test_who_waits_says_for_which_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    taken = multiprocessing.get_context("fork").Event()

    def hold() -> None:
        with lock.exclusive_lock(tmp_path / "lock"):
            taken.set()
            time.sleep(0.3)

    process = in_child(hold)
    assert taken.wait(60)
    with caplog.at_level(logging.INFO), lock.exclusive_lock(tmp_path / "lock"):
        pass
    process.join(60)
    assert f"Waiting for process {process.pid}" in caplog.text


@forks
def test_a_worker_that_outlives_its_killed_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    taken = multiprocessing.get_context("fork").Event()
    parent = os.fork()
    if parent == 0:
        with lock.exclusive_lock(tmp_path / "lock"):
            if os.fork() == 0:  # as DataLoader starts its workers
                lock.drop_inherited_locks()
                taken.set()
                time.sleep(2)
                os._exit(0)
            time.sleep(60)
    assert taken.wait(60)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    start = time.monotonic()
    with lock.exclusive_lock(tmp_path / "lock"):
        assert time.monotonic() - start < 1


def test_without_flock_whoever_creates_the_file_has_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lock"
    os.close(lock._lock_by_creation(path))
    denied = []

    def unlink(self: Path, missing_ok: bool = False) -> None:
        denied.append(self)  # as Windows does while the holder is alive
        if len(denied) < 3:
            raise PermissionError
        os.unlink(self)

    monkeypatch.setattr(Path, "unlink", unlink)
    monkeypatch.setattr(lock, "_POLL_SECONDS", 0)
    with caplog.at_level(logging.INFO):
        os.close(lock._lock_by_creation(path))
    assert len(denied) == 3
    assert caplog.text.count("Waiting") == 1
