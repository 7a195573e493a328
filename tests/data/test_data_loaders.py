"""Loaders give Dassl's batches and random numbers for any number of workers, and clear errors for broken images."""

from __future__ import annotations

import logging
import multiprocessing
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as T

from dassl_lite.config import get_cfg_default
from dassl_lite.data import (
    DATASET_REGISTRY,
    DataManager,
    DatasetBase,
    DatasetWrapper,
    Datum,
    ImageLoader,
    UnreadableImageError,
    build_data_loader,
    loaders,
)
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.seeding import set_random_seed

SIZE = 8


@pytest.fixture
def items(tmp_path: Path) -> list[Datum]:
    rng = np.random.RandomState(0)
    items = []
    for i in range(10):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.randint(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)
        items.append(Datum(str(path), label=i % 2, domain=1, classname="ab"[i % 2]))
    return items


@pytest.fixture
def cfg(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(loaders, "usable_cores", lambda: 8)
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATALOADER.NUM_WORKERS = "Toy", 0
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (SIZE, SIZE), "bilinear"
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = [0.5] * 3, [0.5] * 3
    return cfg


def random_noise(image: Image.Image) -> torch.Tensor:
    """A transform that draws from all three generators."""
    tensor = T.functional.to_tensor(image.resize((SIZE, SIZE)))
    return tensor + torch.rand(()) + np.random.rand() + __import__("random").random()


def train_loader(cfg: Any, items: list[Datum], **options: Any) -> ImageLoader:
    return build_data_loader(
        cfg, "RandomSampler", items, **{"batch_size": 4, "tfm": random_noise, "is_train": True, **options}
    )


def epochs(loader: ImageLoader, n: int = 2) -> list[Any]:
    return [(batch["index"].tolist(), batch["img"]) for _ in range(n) for batch in loader]


def equal(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True)
    )


def test_an_item_has_dassls_keys(cfg: Any, items: list[Datum]) -> None:
    item = DatasetWrapper(cfg, items, transform=random_noise)[3]
    assert list(item) == ["label", "domain", "impath", "index", "img"]
    assert (item["label"], item["domain"], item["impath"], item["index"]) == (1, 1, items[3].impath, 3)
    assert item["img"].shape == (3, SIZE, SIZE)


def test_copies_and_the_untransformed_image_are_given_on_request(cfg: Any, items: list[Datum]) -> None:
    cfg.DATALOADER.K_TRANSFORMS, cfg.DATALOADER.RETURN_IMG0 = 2, True
    item = DatasetWrapper(cfg, items, [random_noise, T.ToTensor(), T.ToTensor()], is_train=True)[0]
    assert list(item)[4:] == ["img", "img2", "img3", "img0"]
    assert len(item["img"]) == len(item["img3"]) == 2
    assert item["img0"].shape == (3, SIZE, SIZE)
    assert item["img0"].min() < 0  # normalised
    test_item = DatasetWrapper(cfg, items, random_noise, is_train=False)[0]
    assert isinstance(test_item["img"], torch.Tensor)  # copies are for training only
    batch = next(iter(train_loader(cfg, items)))
    assert [tuple(copy.shape) for copy in batch["img"]] == [(4, 3, SIZE, SIZE)] * 2


def test_copies_without_a_transform_are_refused(cfg: Any, items: list[Datum]) -> None:
    assert DatasetWrapper(cfg, items)[0]["img"].shape == (3, 12, 12)
    cfg.DATALOADER.K_TRANSFORMS = 2
    with pytest.raises(UserError, match="K_TRANSFORMS 2 needs a transform"):
        DatasetWrapper(cfg, items, is_train=True)


@pytest.mark.slow
def test_batches_are_the_same_for_any_number_of_workers(cfg: Any, items: list[Datum]) -> None:
    runs = []
    for workers in (1, 2):
        cfg.DATALOADER.NUM_WORKERS = workers
        set_random_seed(1)
        runs.append(epochs(train_loader(cfg, items)))
    assert equal(*runs)
    assert not equal(runs[0][:2], runs[0][2:])  # each epoch has different noise


@pytest.mark.slow
def test_order_and_random_state_are_the_same_with_and_without_workers(cfg: Any, items: list[Datum]) -> None:
    orders = []
    for workers in (0, 1):
        cfg.DATALOADER.NUM_WORKERS = workers
        set_random_seed(1)
        loader = train_loader(cfg, items, tfm=T.Compose([T.Resize((SIZE, SIZE)), T.ToTensor()]))
        orders.append([order for order, _ in epochs(loader, 3)])
        orders.append([float(torch.rand(()))])  # the random generator is in the same state afterwards
    assert orders[:2] == orders[2:]


@pytest.mark.slow
def test_persistent_workers_do_not_change_a_resumed_run(cfg: Any, items: list[Datum]) -> None:
    cfg.DATALOADER.NUM_WORKERS = 1
    set_random_seed(1)
    loader = train_loader(cfg, items)
    epochs(loader, 1)
    state = torch.get_rng_state()
    never_stopped = epochs(loader, 2)
    torch.set_rng_state(state)
    assert equal(epochs(train_loader(cfg, items), 2), never_stopped)


def test_workers_start_only_when_needed(cfg: Any, items: list[Datum]) -> None:
    before = len(multiprocessing.active_children())
    cfg.DATALOADER.NUM_WORKERS = 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: more workers than this machine has CPUs
        loader = train_loader(cfg, items)
    assert loader.num_workers == 3  # as many as batches
    assert len(multiprocessing.active_children()) == before
    cfg.DATALOADER.NUM_WORKERS = -2
    with pytest.raises(UserError, match="NUM_WORKERS -2 is out of range"):
        train_loader(cfg, items)


def test_there_are_as_many_workers_as_cores_unless_a_number_is_given(
    cfg: Any, items: list[Datum], monkeypatch: pytest.MonkeyPatch
) -> None:
    for cores, wanted, expected in ((2, -1, 2), (9, -1, 9), (9, 4, 4), (2, 4, 2), (9, 0, 0)):
        monkeypatch.setattr(loaders, "usable_cores", lambda cores=cores: cores)
        cfg.DATALOADER.NUM_WORKERS = wanted
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch: more workers than this machine has CPUs
            assert train_loader(cfg, items, batch_size=1).num_workers == expected


def test_two_interleaved_loaders_draw_like_torch_loaders(cfg: Any, items: list[Datum]) -> None:
    def orders(pair: list[Any]) -> list[list[int]]:
        set_random_seed(1)
        iterators = [iter(loader) for loader in pair]
        return [next(iterator)["index"].tolist() for iterator in iterators]

    ours = [train_loader(cfg, items, tfm=None) for _ in range(2)]
    torchs = [DataLoader(DatasetWrapper(cfg, items), batch_size=4, shuffle=True) for _ in range(2)]
    assert orders(ours) == orders(torchs)


@pytest.fixture
def broken(items: list[Datum]) -> list[Datum]:
    for i in (2, 5):
        Path(items[i].impath).write_bytes(b"no image")
    return items


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_stops_the_run_in_one_line(cfg: Any, broken: list[Datum], workers: int) -> None:
    cfg.DATALOADER.NUM_WORKERS = workers
    with pytest.raises(UnreadableImageError, match=r"2\.png': not an image .*DATASET\.ON_ERROR to skip") as raised:
        list(build_data_loader(cfg, data_source=broken, batch_size=4, is_train=False))
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_skipped_images_are_left_out_and_counted(
    cfg: Any, broken: list[Datum], workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    cfg.DATALOADER.NUM_WORKERS, cfg.DATASET.ON_ERROR = workers, "skip"
    loader = build_data_loader(cfg, data_source=broken, batch_size=1, is_train=False)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert [int(batch["index"]) for batch in loader] == [0, 1, 3, 4, 6, 7, 8, 9]
    assert sorted(Path(path).name for path in loader.skipped) == ["2.png", "5.png"]
    assert [message.partition("'")[0] for message in caplog.messages] == [
        "Skipped ",
        "Skipped ",
        "Unreadable images skipped in total: 2",
    ]


def test_a_plain_dataloader_over_the_wrapper_raises_the_error(cfg: Any, broken: list[Datum]) -> None:
    plain = DataLoader(DatasetWrapper(cfg, broken), batch_size=4)
    with pytest.raises(UnreadableImageError, match=r"2\.png"):
        list(plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_source": []}, "Toy has no training images"),
        ({"batch_size": 0}, "batch size 0 is out of range"),
    ],
)
def test_invalid_settings_of_a_loader_are_refused(cfg: Any, items: list[Datum], options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_data_loader(cfg, **{"data_source": items, **options})
    cfg.DATASET.ON_ERROR = "ignore"
    with pytest.raises(UserError, match=r"unknown DATASET\.ON_ERROR 'ignore'"):
        build_data_loader(cfg, data_source=items)


@pytest.fixture
def toy(cfg: Any, items: list[Datum]) -> Any:
    """A registered dataset with unlabelled items and no validation split."""

    @DATASET_REGISTRY.register(name="Toy", force=True)
    class Toy(DatasetBase):
        def __init__(self, cfg: Any) -> None:
            super().__init__(train_x=items[:6], train_u=items[6:], test=items)

    yield cfg
    del DATASET_REGISTRY._table["Toy"]


def test_the_manager_has_what_dassls_has(toy: Any, caplog: pytest.LogCaptureFixture) -> None:
    toy.DATASET.SOURCE_DOMAINS = ("art",)
    toy.DATALOADER.TRAIN_U.SAME_AS_X, toy.DATALOADER.TRAIN_U.BATCH_SIZE = False, 2
    with caplog.at_level(logging.INFO):
        manager = DataManager(toy)
    assert (manager.num_classes, manager.num_source_domains) == (2, 1)
    assert manager.lab2cname == {0: "a", 1: "b"}
    assert manager.val_loader is None
    assert (manager.train_loader_x.batch_size, manager.train_loader_u.batch_size) == (32, 2)
    assert next(iter(manager.test_loader))["img"].shape == (10, 3, SIZE, SIZE)
    assert "# train_u  4" in caplog.text
    assert "Source     ('art',)" in caplog.text


def test_custom_transforms_and_wrapper_are_used(toy: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Wrapper(DatasetWrapper):
        def __getitem__(self, idx: int) -> dict[str, Any]:
            return {**super().__getitem__(idx), "mine": 1}

    with caplog.at_level(logging.INFO):
        manager = DataManager(toy, T.Compose([random_noise]), T.ToTensor(), Wrapper)
    assert caplog.messages[1:3] == [
        "* Using custom transform for training",
        "* Using custom transform for testing",
    ]
    assert next(iter(manager.test_loader))["mine"].sum() == 10
    assert next(iter(manager.test_loader))["img"].shape == (10, 3, 12, 12)
    assert next(iter(manager.train_loader_x))["img"].shape == (6, 3, SIZE, SIZE)


def test_images_are_sent_as_bytes_and_equal_the_transforms_output(cfg: Any, items: list[Datum]) -> None:
    transform = T.Compose([T.RandomCrop(8), T.ToTensor(), T.Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))])
    loader = train_loader(cfg, items, tfm=transform)
    assert loader.dataset.__getitems__([0])[0]["img"].dtype == torch.uint8  # type: ignore[attr-defined]
    assert loader.dataset[0]["img"].dtype == torch.float32  # direct access to the dataset gives tensors
    set_random_seed(1)
    found = epochs(loader)
    set_random_seed(1)
    reference = DataLoader(DatasetWrapper(cfg, items, transform), batch_size=4, shuffle=True, drop_last=True)
    assert equal(found, epochs(reference))  # type: ignore[arg-type]
    assert epochs(loader.with_batches([[1, 2]]), 1)[0][1].dtype == torch.float32


def test_a_mixed_batch_of_bytes_and_tensors_is_finished_per_image() -> None:
    """Workers send RGB images as bytes, and other images as finished tensors."""
    pixels, finished = torch.full((2, 2, 3), 51, dtype=torch.uint8), torch.rand(3, 2, 2)
    batch = loaders._collate(lambda image: image.permute(2, 0, 1) / 255, [{"img": pixels}, {"img": finished}])
    assert torch.equal(batch["img"], torch.stack([torch.full((3, 2, 2), 0.2), finished]))


@pytest.mark.parametrize(
    ("free", "expected"), [(None, (4, 2)), (1 << 30, (4, 2)), (8 << 20, (4, 1)), (4 << 20, (2, 1)), (0, (0, 1))]
)
def test_prefetched_batches_fit_into_shared_memory(
    free: int | None, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loaders, "free_shared_memory", lambda: free)
    assert loaders._within_shared_memory(4, 1 << 20) == expected
    assert ("docker run --shm-size" in caplog.text) == (expected[0] < 4)
