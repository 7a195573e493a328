"""Views depend only on the image, the seed and the number of the view."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_toys import CountingEncoder, draw_images, noisy, plain, store

from dassl_lite.data.feature_cache import extract


def test_views_do_not_depend_on_order_and_batch(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 6)
    whole = store(None, transform=noisy, views=3).fetch(paths, CountingEncoder(), batch_size=100).tensor
    backwards = store(None, transform=noisy, views=3).fetch(paths[::-1], CountingEncoder(), batch_size=4).tensor
    alone = store(None, transform=noisy, views=3).fetch(paths[4:5], CountingEncoder()).tensor
    assert torch.equal(backwards.flip(1), whole)
    assert torch.equal(alone[:, 0], whole[:, 4])


def test_views_do_not_depend_on_their_number(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 2)
    two = store(None, transform=noisy, views=2).fetch(paths, CountingEncoder()).tensor
    three = store(None, transform=noisy, views=3).fetch(paths, CountingEncoder()).tensor
    assert torch.equal(three[:2], two)


def test_views_of_an_image_and_the_same_view_of_two_images_differ(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 1)
    twin = tmp_path / "a" / "twin.png"
    shutil.copy(paths[0], twin)
    features = store(None, transform=noisy, views=2).fetch([paths[0], twin], CountingEncoder()).tensor
    assert len({float(value) for value in features[..., 0].flatten()}) == 4
    other = store(None, transform=noisy, views=2, seed=2).fetch(paths, CountingEncoder()).tensor
    assert not torch.isclose(other[:, 0], features[:, 0]).any()


def test_a_moved_dataset_has_the_same_views(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "here" / "cats", 3)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    moved = [str(tmp_path / "there" / "cats" / Path(path).name) for path in paths]
    encoder = CountingEncoder()
    run = store(tmp_path / "cache", transform=noisy, views=2)
    assert torch.equal(run.fetch(paths, encoder).tensor, run.fetch(moved, encoder).tensor)
    assert len(encoder.seen) == 12  # extracted again: the same name elsewhere need not be the same picture


def test_views_do_not_depend_on_worker_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = draw_images(tmp_path / "a", 9)
    Path(paths[5]).write_bytes(b"no picture")
    here = store(None, transform=noisy, views=2)
    there = store(tmp_path / "cache", transform=noisy, views=2)
    expected = here.fetch(paths, CountingEncoder(), batch_size=4, on_error="skip")
    started = []
    monkeypatch.setattr(extract, "_workers", lambda *_: started.append(2) or 2)
    features = there.fetch(paths, CountingEncoder(), batch_size=4, num_workers=2, on_error="skip")
    assert started == [2]
    assert torch.equal(features.tensor, expected.tensor)
    assert torch.equal(features.kept, expected.kept)


def test_workers_start_for_long_jobs_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = extract.ViewDataset([], plain, 1, 0)
    dataset.images = [None] * 1000  # type: ignore[list-item]
    monkeypatch.setattr(extract, "_usable_cores", lambda: 4)
    monkeypatch.setattr(extract.multiprocessing, "get_start_method", lambda: "fork")
    for seconds, wanted, expected in ((0.001, 8, 0), (0.1, 8, 4), (0.1, 2, 2), (0.1, 0, 0)):
        monkeypatch.setattr(extract, "_decoding_seconds", lambda *_, seconds=seconds: seconds)
        assert extract._workers(dataset, wanted, batches=50) == expected
    assert extract._workers(dataset, 8, batches=1) == 1  # no more than there are batches
    monkeypatch.setattr(extract.multiprocessing, "get_start_method", lambda: "spawn")
    assert extract._workers(dataset, 8, batches=50) == 4
    dataset.transform = lambda image: plain(image)  # a started process cannot be handed this
    assert extract._workers(dataset, 8, batches=50) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_extraction_restores_the_random_streams_of_the_run(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "_workers", lambda *_: workers)
    paths = draw_images(tmp_path / "a", 5)

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed() -> None:
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)

    seed()
    expected = draw()
    seed()
    store(tmp_path / "cache", transform=noisy, views=3).fetch(paths, CountingEncoder(), batch_size=4)
    assert draw() == expected


def test_a_failing_transform_restores_the_random_streams(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 1)
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    with pytest.raises(ZeroDivisionError):
        store(None, transform=lambda image: 1 / 0).fetch(paths, CountingEncoder())
    assert torch.equal(torch.rand(()), expected)
