"""Batches of cached features: order, copies and skipped images.

Shapes: V views, N images, D feature width.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import cuda_standin
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from dassl_lite.data import Datum
from dassl_lite.data.feature_cache import Features
from dassl_lite.data.feature_cache import loader as feature_loader
from dassl_lite.data.feature_cache.loader import FeatureLoader

N, D, BATCH = 23, 4, 5


def make_loader(shuffled: bool, kept: torch.Tensor | None = None, device: str = "cpu", views: int = 1) -> FeatureLoader:
    items = [Datum(f"{row}.png", row % 3, row % 2) for row in range(N)]
    features = Features(torch.randn(views, N, D, generator=torch.Generator().manual_seed(0)), torch.ones(N).bool())
    if kept is not None:
        features = Features(features.tensor, kept)
    images: Any = DataLoader(
        range(N), BATCH, sampler=RandomSampler(range(N)) if shuffled else SequentialSampler(range(N))
    )
    return FeatureLoader(images, items, lambda: features, torch.device(device))


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("shuffled", [False, True])
def test_batches_equal_those_of_an_image_loader_without_skipped_images(shuffled: bool, skips: bool) -> None:
    kept = torch.ones(N).bool()
    kept[[0, *range(5, 10)] if skips else []] = False  # without shuffling, the second batch is empty
    loader = make_loader(shuffled, kept)
    views = loader.views
    torch.manual_seed(3)
    batches = list(loader)
    torch.manual_seed(3)
    sampler = RandomSampler(range(N)) if shuffled else SequentialSampler(range(N))
    images = DataLoader(range(N), BATCH, sampler=sampler)
    expected = [[i for i in batch.tolist() if kept[i]] for batch in images]
    assert [batch["index"].tolist() for batch in batches] == [batch for batch in expected if batch]
    for batch in batches:
        assert torch.equal(batch["feature"], views[0][batch["index"]])
        assert torch.equal(batch["label"], batch["index"] % 3)
        assert torch.equal(batch["domain"], batch["index"] % 2)


def test_batches_of_misaligned_features_are_copied() -> None:
    loader = make_loader(shuffled=False)
    raw = torch.zeros(loader.views.nbytes + 1, dtype=torch.uint8).numpy()[1:]
    odd = torch.from_numpy(raw.view("f4").reshape(loader.views.shape))
    loader._views = odd.copy_(loader.views)
    assert odd.data_ptr() % 2
    for batch in loader:
        assert batch["feature"].data_ptr() % 16 == 0
        assert torch.equal(batch["feature"], odd[0][batch["index"]])


def test_sequential_batches_are_not_copied() -> None:
    loader = make_loader(shuffled=False)
    storage = loader.views.untyped_storage().data_ptr()
    shared = [batch["feature"].untyped_storage().data_ptr() == storage for batch in loader]
    assert shared == [False, True, True, True, True]


@pytest.mark.parametrize("inference", [False, True])
def test_writing_into_a_batch_does_not_change_the_features(inference: bool) -> None:
    loader = make_loader(shuffled=False)
    before = loader.views.clone()
    with torch.inference_mode(inference):
        for batch in loader:
            batch["feature"] /= batch["feature"].norm(dim=-1, keepdim=True)
    assert torch.equal(loader.views, before)


def test_the_order_of_an_epoch_is_drawn_before_its_first_batch() -> None:
    loader = make_loader(shuffled=True)
    orders = []
    for draws_between in (False, True):
        torch.manual_seed(3)
        order = []
        for batch in loader:
            order += batch["index"].tolist()
            if draws_between:
                torch.rand(7)
        orders.append(order)
    assert orders[0] == orders[1] != sorted(orders[0])


def batches_on_cuda(share: float, shuffled: bool) -> dict[str, Any]:
    """Two epochs on the GPU stand-in, where features may use ``share`` of its memory."""
    kept = torch.ones(N).bool()
    kept[[0, *range(5, 10)]] = False
    loader = make_loader(shuffled, kept, "cuda:0", views=2)
    torch.manual_seed(3)
    # Other tests run in the same process, so restore the share.
    with mock.patch.object(feature_loader, "_MOST_OF_A_GPU", share), cuda_standin.counting() as counts:
        found = [{key: value.tolist() for key, value in batch.items()} for _ in range(2) for batch in loader]
        devices = {str(value.device) for batch in loader for value in batch.values()}
    reads = sum(number for name, number in counts.waits.items() if "from_host" in name)
    return {"batches": found, "devices": devices, "views": str(loader.views.device), "waits": reads}


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True])
def test_features_too_large_for_the_gpu_stay_on_the_host_with_the_same_batches(on_cuda: Any, shuffled: bool) -> None:
    there, here = on_cuda(batches_on_cuda, 1.0, shuffled), on_cuda(batches_on_cuda, 0.0, shuffled)
    assert (there["views"], here["views"]) == ("cuda:0", "cpu")
    assert here["batches"] == there["batches"]
    assert here["devices"] == {"cuda:0"}
    assert here["waits"] == 0


def test_features_may_use_a_quarter_of_gpu_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 4000))
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert feature_loader._fits(torch.zeros(250), gpu)
    assert not feature_loader._fits(torch.zeros(251), gpu)
    assert feature_loader._fits(torch.zeros(251), cpu)
