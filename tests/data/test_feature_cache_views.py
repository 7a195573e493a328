"""Views depend only on the image, the seed and the index of the view."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_toys import CountingEncoder, draw_images, noisy, plain, store
from PIL import Image
from torchvision import transforms as T

from dassl_lite.data.feature_cache import extract


def test_views_do_not_depend_on_order_or_batch_size(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 6)
    expected = store(None, transform=noisy, views=3).fetch(paths, CountingEncoder(), batch_size=100).tensor
    backwards = store(None, transform=noisy, views=3).fetch(paths[::-1], CountingEncoder(), batch_size=4).tensor
    alone = store(None, transform=noisy, views=3).fetch(paths[4:5], CountingEncoder()).tensor
    assert torch.equal(backwards.flip(1), expected)
    assert torch.equal(alone[:, 0], expected[:, 4])


def test_views_do_not_depend_on_their_number(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 2)
    two = store(None, transform=noisy, views=2).fetch(paths, CountingEncoder()).tensor
    three = store(None, transform=noisy, views=3).fetch(paths, CountingEncoder()).tensor
    assert torch.equal(three[:2], two)


def test_views_differ_within_an_image_and_between_images(tmp_path: Path) -> None:
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
    assert len(encoder.seen) == 12  # extracted again: the same name elsewhere may be another image


@pytest.mark.slow
def test_views_do_not_depend_on_worker_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = draw_images(tmp_path / "a", 9)
    Path(paths[5]).write_bytes(b"no picture")
    here = store(None, transform=noisy, views=2)
    there = store(tmp_path / "cache", transform=noisy, views=2)
    expected = here.fetch(paths, CountingEncoder(), batch_size=4, on_error="skip")
    started = []
    monkeypatch.setattr(extract, "_plan", lambda *_: started.append(2) or (2, 1))
    features = there.fetch(paths, CountingEncoder(), batch_size=4, num_workers=2, on_error="skip")
    assert started == [2]
    assert torch.equal(features.tensor, expected.tensor)
    assert torch.equal(features.kept, expected.kept)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, int]]:
    """Number of workers and chunk size for a thousand images, given the machine's resources and an image's cost."""

    def found(
        wanted: int = 8,
        *,
        cores: int = 4,
        seconds: float = 0.1,
        size: int = 150_000,
        free: int | None = 1 << 30,
        **more: Any,
    ) -> tuple[int, int]:
        dataset = extract.ViewDataset([], more.get("transform", plain), more.get("views", 1), 0)
        dataset.images = [None] * 1000  # type: ignore[list-item]
        monkeypatch.setattr(extract, "usable_cores", lambda: cores)
        monkeypatch.setattr(extract, "_probe", lambda *_: (seconds, size))
        monkeypatch.setattr(extract, "free_shared_memory", lambda: free)
        monkeypatch.setattr(extract.multiprocessing, "get_start_method", lambda: more.get("start", "fork"))
        return extract._plan(dataset, wanted, more.get("images", 1000))

    return found


def test_workers_are_started_only_for_long_jobs(plan: Any) -> None:
    assert plan(seconds=0.001)[0] == 0
    assert plan()[0] == 4  # one per core
    assert plan(2)[0] == 2
    assert plan(0)[0] == 0
    assert plan(images=1)[0] == 1  # at most one per image
    assert plan(start="spawn")[0] == 4
    assert plan(start="spawn", transform=lambda image: plain(image))[0] == 0  # it cannot be pickled


@pytest.mark.parametrize(("workers", "views"), [(4, 1), (16, 1), (16, 10), (64, 1)])
def test_views_in_flight_fit_into_the_shared_memory_of_a_container(plan: Any, workers: int, views: int) -> None:
    image = views * 3 * 224 * 224
    for free in (64 << 20, 1 << 34):
        count, chunk = plan(workers, cores=workers, size=image, free=free, views=views)
        assert count * chunk * 3 * image < free
        assert count * 3 * image < 48 << 20 or chunk == 1
        assert count == workers or free == 64 << 20


def test_a_warning_names_workers_that_do_not_fit_into_shared_memory(
    plan: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert plan(4, size=150_000, free=1 << 20)[0] == 1
    assert "has room for 1 of 4 decoding processes; docker run --shm-size" in caplog.text
    assert plan(4, size=150_000, free=0)[0] == 0
    assert plan(4, free=None)[0] == 4  # a system without shared memory limits


class KilledInAWorker:
    """A transform that kills its worker once, as a full shared memory would."""

    def __init__(self, parent: int) -> None:
        self.parent = parent

    def __call__(self, image: Image.Image) -> torch.Tensor:
        if os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGBUS)
        return plain(image)


@pytest.mark.slow
def test_images_of_a_killed_worker_are_decoded_in_the_main_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = draw_images(tmp_path / "a", 9)
    expected = store(None).fetch(paths, CountingEncoder())
    monkeypatch.setattr(extract, "_plan", lambda *_: (2, 2))
    with caplog.at_level(logging.WARNING):
        features = store(None, transform=KilledInAWorker(os.getpid())).fetch(paths, CountingEncoder(), num_workers=2)
    assert torch.equal(features.tensor, expected.tensor)
    assert [line.partition("(")[0] for line in caplog.messages] == ["A process that decodes images was killed "]


@pytest.mark.parametrize("workers", [0, 2])
def test_extraction_restores_the_random_streams_of_the_run(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "_plan", lambda *_: (workers, 1))
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


MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BICUBIC = T.InterpolationMode.BICUBIC
TESTING = T.Compose([T.Resize(32, BICUBIC), T.CenterCrop(32), T.ToTensor(), T.Normalize(MEAN, STD)])
TRAINING = T.Compose(
    [T.RandomResizedCrop(32, interpolation=BICUBIC), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)]
)


def photographs(folder: Path) -> list[str]:
    """One image file of each of many kinds."""
    folder.mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((70, 51))
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "plain.jpg": ("RGB", {"quality": 90}),
        "444.jpg": ("RGB", {"subsampling": 0}),
        "422.jpg": ("RGB", {"subsampling": 1}),
        "progressive.jpg": ("RGB", {"progressive": True}),
        "print.jpg": ("CMYK", {}),
        "grey.jpg": ("L", {}),
        "a.png": ("RGBA", {}),
        "a.gif": ("P", {}),
        "a.webp": ("RGB", {}),
    }
    for name, (mode, options) in kinds.items():
        noise.convert(mode).save(folder / name, **options)
    return [str(folder / name) for name in kinds]


def inputs_of(paths: list[str], transform: Any, views: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The encoder's input, and what PIL and the transform give for the same files and seeds, both (N * V, ...)."""
    seen: list[torch.Tensor] = []

    def encode(inputs: torch.Tensor) -> torch.Tensor:
        seen.append(inputs.clone())
        return inputs.flatten(1)[:, :4]

    store(None, transform=transform, views=views, seed=5).fetch(paths, encode, batch_size=8)
    alone = []
    for path in paths:
        for view in range(views):
            seed = extract.view_seed(5, f"{Path(path).parent.name}/{Path(path).name}", view)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            with Image.open(path) as image:
                alone.append(transform(image.convert("RGB")))
    return torch.cat(seen), torch.stack(alone)


@pytest.mark.parametrize(("transform", "views"), [(TESTING, 1), (TRAINING, 3)])
def test_the_encoder_input_equals_pil_and_the_transform_bit_for_bit(tmp_path: Path, transform: Any, views: int) -> None:
    assert torch.equal(*inputs_of(photographs(tmp_path / "a"), transform, views))


@pytest.mark.slow
@pytest.mark.parametrize(("transform", "views"), [(TESTING, 1), (TRAINING, 2)])
def test_the_encoder_input_is_bit_identical_for_real_photographs(shared: Path, transform: Any, views: int) -> None:
    files = sorted(str(path) for path in (shared / "data").rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    assert torch.equal(*inputs_of(files[::40], transform, views))
