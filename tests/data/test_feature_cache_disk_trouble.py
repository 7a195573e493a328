"""If the disk cannot be written to, one warning is logged and the run continues with everything computed so far."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_toys import CountingEncoder, draw_images, expected, store

from dassl_lite.data.feature_cache import shards


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("moment", [1, 2, 3, 4])
def test_a_failed_write_during_extraction_loses_only_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int, moment: int
) -> None:
    paths = draw_images(tmp_path / "a", 8)
    real, calls = shards.append, []

    def append(path: Path, end: int, data: Any) -> None:
        calls.append(path)
        if len(calls) >= moment:
            real(path, end, bytes(data)[: len(bytes(data)) // 2])
            raise OSError(code, os.strerror(code))
        real(path, end, data)

    run = store(tmp_path / "cache", commit_seconds=0)
    encoder = CountingEncoder()
    with monkeypatch.context() as patch:
        patch.setattr(shards, "append", append)
        assert torch.equal(run.fetch(paths[:6], encoder, batch_size=2).tensor, expected(paths[:6]))
        assert torch.equal(run.fetch(paths, encoder, batch_size=2).tensor, expected(paths))
        assert torch.equal(run.fetch(paths[::-1], encoder).tensor, expected(paths[::-1]))
    assert sorted(encoder.seen) == list(range(8))
    (warning,) = warnings(caplog)
    assert str(run.folder) in warning
    assert os.strerror(code) in warning
    assert ("free disk space" in warning) == (code == errno.ENOSPC)
    assert "DATASET.FEATURES.DIR" in warning
    # The next run has a working disk and finds the rows committed before the failure.
    encoder = CountingEncoder()
    assert torch.equal(store(tmp_path / "cache").fetch(paths, encoder).tensor, expected(paths))
    committed = 2 * ((moment - 1) // 2)
    assert encoder.seen == list(range(committed, 8))


def test_extraction_survives_a_real_file_size_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resource = pytest.importorskip("resource")
    paths = draw_images(tmp_path / "a", 40)

    def wide(inputs: torch.Tensor) -> torch.Tensor:
        return inputs.mean((1, 2, 3))[:, None].repeat(1, 10_000)  # 40 kB a row

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    run = store(tmp_path / "cache", commit_seconds=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        features = run.fetch(paths, wide, batch_size=4).tensor
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.equal(features, store(None).fetch(paths, wide, batch_size=4).tensor)
    (warning,) = warnings(caplog)
    assert "free disk space" in warning
    counted = CountingEncoder()
    with pytest.raises(ValueError, match="width"):  # 24 wide rows are cached, so the toy encoder's width is wrong
        store(tmp_path / "cache").fetch(paths, counted)
    assert sorted(counted.seen) == list(range(24, 40))


def test_a_cache_that_cannot_be_created_logs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = draw_images(tmp_path / "a", 3)
    (tmp_path / "file").write_text("")
    run = store(tmp_path / "file" / "cache")
    encoder = CountingEncoder()
    for chosen in (paths[:2], paths, paths):
        assert torch.equal(run.fetch(chosen, encoder).tensor, expected(chosen))
    assert sorted(encoder.seen) == [0, 1, 2]
    (warning,) = warnings(caplog)
    assert str(tmp_path / "file" / "cache") in warning


def test_a_read_only_cache_is_read_and_new_features_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = draw_images(tmp_path / "a", 5)
    store(tmp_path / "cache").fetch(paths[:3], CountingEncoder())
    real = os.open

    def read_only(path: Any, flags: int, *rest: Any, **named: Any) -> int:  # chmod would not stop root
        if str(path).startswith(str(tmp_path / "cache")) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", read_only)
    run = store(tmp_path / "cache")
    encoder = CountingEncoder()
    assert torch.equal(run.fetch(paths[:2], encoder).tensor, expected(paths[:2]))
    assert warnings(caplog) == []  # nothing had to be written
    assert torch.equal(run.fetch(paths, encoder).tensor, expected(paths))
    assert torch.equal(run.fetch(paths, encoder).tensor, expected(paths))
    assert encoder.seen == [3, 4]
    (warning,) = warnings(caplog)
    assert "Read-only file system" in warning
    assert "make the folder writable" in warning


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_logs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = draw_images(tmp_path / "a", 3)
    (tmp_path / "cache").mkdir(mode=0o500)
    run = store(tmp_path / "cache")
    assert torch.equal(run.fetch(paths, CountingEncoder()).tensor, expected(paths))
    assert len(warnings(caplog)) == 1


def test_a_store_that_cannot_be_read_logs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = draw_images(tmp_path / "a", 3)
    store(tmp_path / "cache").fetch(paths, CountingEncoder())

    def denied(path: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(shards, "read_json", denied)
    run = store(tmp_path / "cache")
    encoder = CountingEncoder()
    for _ in range(2):
        assert torch.equal(run.fetch(paths, encoder).tensor, expected(paths))
    assert encoder.seen == [0, 1, 2]
    assert len(warnings(caplog)) == 1


def test_without_a_cache_folder_features_stay_in_memory_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = draw_images(tmp_path / "a", 3)
    run = store(None)
    encoder = CountingEncoder()
    for _ in range(2):
        assert torch.equal(run.fetch(paths, encoder).tensor, expected(paths))
    assert encoder.seen == [0, 1, 2]
    assert warnings(caplog) == []
