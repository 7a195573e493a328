"""Stores with external damage are set aside or extracted again, never used."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_toys import CountingEncoder, draw_images, expected, store

from dassl_lite.data.feature_cache import describe_stores, shards


def nonsense(meta: dict[str, Any]) -> dict[str, bytes]:
    """Map names to damaged contents of a meta.json."""
    rows = meta["rows"]
    changed = {
        "width 0": {**meta, "rows": {**rows, "width": 0}},
        "width as string": {**meta, "rows": {**rows, "width": "4"}},
        "unknown dtype": {**meta, "rows": {**rows, "dtype": "float31"}},
        "no rows": {key: value for key, value in meta.items() if key != "rows"},
        "list": [meta],
    }
    intact = json.dumps(meta).encode()
    cut = {"empty": b"", "cut": intact[: len(intact) // 2], "zeros": bytes(len(intact)), "not text": b"\xff\xfe"}
    return {**cut, **{name: json.dumps(value).encode() for name, value in changed.items()}}


KINDS = list(nonsense({"rows": {}}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_with_a_damaged_description_is_set_aside_and_rebuilt(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    paths = draw_images(tmp_path / "a", 4)
    run = store(tmp_path / "cache")
    run.fetch(paths, CountingEncoder())
    assert run.folder is not None
    damaged = nonsense(json.loads((run.folder / "meta.json").read_bytes()))[kind]
    (run.folder / "meta.json").write_bytes(damaged)
    old = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.name != "lock"}
    encoder = CountingEncoder()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(store(tmp_path / "cache").fetch(paths, encoder).tensor, expected(paths))
    assert encoder.seen == [0, 1, 2, 3]
    (warning,) = [record.getMessage() for record in caplog.records]
    aside = run.folder.with_name(f"{run.folder.name}.damaged-1")
    assert "meta.json is damaged" in warning
    assert str(aside) in warning
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == old
    encoder = CountingEncoder()
    assert torch.equal(store(tmp_path / "cache").fetch(paths, encoder).tensor, expected(paths))
    assert encoder.seen == []
    assert [summary.images for summary in describe_stores(tmp_path / "cache")] == [4]
    (run.folder / "meta.json").write_bytes(damaged)
    store(tmp_path / "cache").fetch(paths, CountingEncoder())
    assert run.folder.with_name(f"{run.folder.name}.damaged-2").is_dir()


@pytest.mark.parametrize("moment", [0, 1, 2])  # files moved before the process was killed
def test_a_damaged_store_that_is_half_set_aside_yields_no_rows(
    tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = draw_images(tmp_path / "a", 4)
    run = store(tmp_path / "cache")
    run.fetch(paths[::-1], CountingEncoder())
    assert run.folder is not None
    (run.folder / "meta.json").write_bytes(b"{")
    real, calls = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) > moment:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            store(tmp_path / "cache").fetch(paths, CountingEncoder())
    for images in (paths[:2], paths):
        assert torch.equal(store(tmp_path / "cache").fetch(images, CountingEncoder()).tensor, expected(images))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_that_find_a_damaged_store_set_it_aside_once(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 6)
    run = store(tmp_path / "cache")
    run.fetch(paths, CountingEncoder())
    assert run.folder is not None
    (run.folder / "meta.json").write_bytes(b"{")
    context = multiprocessing.get_context("fork")
    together, answers = context.Barrier(3), context.Queue()

    def fetch() -> None:
        encoder = CountingEncoder()
        together.wait()
        features = store(tmp_path / "cache").fetch(paths, encoder, batch_size=2)
        answers.put((encoder.seen, features.tensor.tolist()))

    processes = [context.Process(target=fetch) for _ in range(3)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert sorted(number for seen, _ in found for number in seen) == list(range(6))
    assert all(features == expected(paths).tolist() for _, features in found)
    assert len(list((tmp_path / "cache").glob("*.damaged-*"))) == 1


def test_a_damaged_store_that_another_process_replaces_during_reading_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = draw_images(tmp_path / "a", 3)
    run = store(tmp_path / "cache")
    run.fetch(paths, CountingEncoder())
    assert run.folder is not None
    meta = run.folder / "meta.json"
    meta.write_bytes(b"{")
    real = shards.read_json

    def read_json(path: Path) -> Any:
        if meta.exists() and meta.read_bytes() == b"{":
            meta.unlink()  # by the other process
        return real(path)

    monkeypatch.setattr(shards, "read_json", read_json)
    store(tmp_path / "cache").fetch(paths, CountingEncoder())
    encoder = CountingEncoder()
    store(tmp_path / "cache").fetch(paths, encoder)
    assert encoder.seen == []


@pytest.mark.parametrize("how", ["truncated", "deleted", "unreadable"])
def test_rows_that_become_unreadable_are_extracted_again(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = draw_images(tmp_path / "a", 5)
    store(tmp_path / "cache").fetch(paths, CountingEncoder())
    run = store(tmp_path / "cache")
    assert run.folder is not None
    rows = run.folder / "rows-00000.bin"
    real = shards.np.memmap

    def memmap(path: Path, *given: Any, **named: Any) -> Any:  # between reading the index and reading the rows
        if how == "unreadable":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        if how == "deleted":
            rows.unlink()
        else:
            os.truncate(rows, 20)
        return real(path, *given, **named)

    monkeypatch.setattr(shards.np, "memmap", memmap)
    encoder = CountingEncoder()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(run.fetch(paths, encoder).tensor, expected(paths))
    assert encoder.seen == [0, 1, 2, 3, 4]
    assert "cannot be used" in caplog.text


def test_a_damaged_store_that_cannot_be_set_aside_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = draw_images(tmp_path / "a", 3)
    run = store(tmp_path / "cache")
    run.fetch(paths, CountingEncoder())
    assert run.folder is not None
    (run.folder / "meta.json").write_bytes(b"{")

    def read_only(*_: Any, **__: Any) -> None:  # chmod would not stop root
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    again, encoder = store(tmp_path / "cache"), CountingEncoder()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(again.fetch(paths, encoder).tensor, expected(paths))
    assert encoder.seen == [0, 1, 2]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "Read-only file system" in warning
