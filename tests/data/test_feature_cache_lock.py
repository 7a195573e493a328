"""If two processes need the same features at once, one extracts them while the other waits and then reads them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from feature_toys import CountingEncoder, draw_images, expected, on_waiting, store
from torch import Tensor

from dassl_lite.data.feature_cache import lock

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_child(work: Callable[[], object]) -> Any:
    """Start ``work`` in a forked process."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


@pytest.mark.slow
@forks
def test_two_concurrent_processes_encode_each_image_once(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 12)
    context = multiprocessing.get_context("fork")
    other_waits, answers = context.Event(), context.Queue()

    class Encoder(CountingEncoder):
        def __call__(self, inputs: Tensor) -> Tensor:
            assert other_waits.wait(60)
            return super().__call__(inputs)

    def extract() -> None:
        encoder = Encoder()
        with on_waiting(other_waits.set):
            features = store(tmp_path / "cache").fetch(paths, encoder, batch_size=2)
        answers.put((encoder.seen, features.tensor.tolist()))

    processes = [in_child(extract) for _ in range(2)]
    (seen_a, features_a), (seen_b, features_b) = answers.get(timeout=60), answers.get(timeout=60)
    for process in processes:
        process.join(60)
    assert sorted(seen_a + seen_b) == list(range(12))
    assert features_a == features_b == expected(paths).tolist()


@pytest.mark.slow
@forks
def test_a_waiting_process_logs_the_process_it_waits_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    context = multiprocessing.get_context("fork")
    taken, release = context.Event(), context.Event()

    def hold() -> None:
        with lock.exclusive_lock(tmp_path / "lock"):
            taken.set()
            release.wait(60)

    process = in_child(hold)
    assert taken.wait(60)
    with caplog.at_level(logging.INFO), on_waiting(release.set), lock.exclusive_lock(tmp_path / "lock"):
        pass
    process.join(60)
    assert f"Waiting for process {process.pid}" in caplog.text


@pytest.mark.slow
@forks
def test_a_worker_that_outlives_its_parent_does_not_hold_the_lock(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    taken = multiprocessing.get_context("fork").Event()
    alive, end = os.pipe()  # both children block on it until the test closes the other end
    parent = os.fork()
    if parent == 0:
        os.close(end)
        with lock.exclusive_lock(tmp_path / "lock"):
            if os.fork() == 0:  # like a worker of DataLoader
                lock.drop_inherited_locks()
                taken.set()
            os.read(alive, 1)
            os._exit(0)
    try:
        assert taken.wait(60)
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        with open(tmp_path / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError if the living worker holds it
    finally:
        os.close(end)
        os.close(alive)


def test_without_flock_creating_the_file_acquires_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lock"
    os.close(lock._lock_by_creation(path))
    denied = []

    def unlink(self: Path, missing_ok: bool = False) -> None:
        denied.append(self)  # as on Windows while the holder is alive
        if len(denied) < 3:
            raise PermissionError
        os.unlink(self)

    monkeypatch.setattr(Path, "unlink", unlink)
    monkeypatch.setattr(lock, "_POLL_SECONDS", 0)
    with caplog.at_level(logging.INFO):
        os.close(lock._lock_by_creation(path))
    assert len(denied) == 3
    assert caplog.text.count("Waiting") == 1
