"""Tip-Adapter's search by sums over classes against its formula, in which values are one-hot.

Shapes: N cache entries, K classes, D feature width, V images, B betas, A alphas.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dassl_lite.models import key_value_cache
from dassl_lite.models.key_value_cache import KeyValueCache

D, V = 12, 70
BETAS, ALPHAS = torch.tensor([0.0, 0.1, 1.0, 6.9]), torch.tensor([0.0, 0.1, 1.0, 2.9])


def make_cache(counts: list[int]) -> tuple[KeyValueCache, torch.Tensor, torch.Tensor]:
    """A cache with so many shots of each class in a mixed order, images (V, D) and their labels."""
    torch.manual_seed(0)
    classes = len(counts)
    labels = torch.repeat_interleave(torch.arange(classes), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels))]
    prototypes = torch.randn(classes, D)
    cache = KeyValueCache(F.normalize(prototypes + torch.randn(classes, D), dim=-1), 5.0)
    cache.fill((prototypes[labels] + torch.randn(len(labels), D))[None], labels)
    label = torch.randint(0, classes, (V,))
    return cache, prototypes[label] + torch.randn(V, D), label


def by_formula(cache: KeyValueCache, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Accuracies (B, A), in double precision."""
    f = F.normalize(images.double(), dim=-1)
    affinity = f @ cache.keys.detach().double().t()
    rows = []
    for beta in BETAS.double():
        vote = torch.exp(-beta * (1 - affinity)) @ cache.values.double()
        logits = [cache.scale * f @ cache.text_features.double().t() + alpha * vote for alpha in ALPHAS.double()]
        rows.append(torch.stack([100 * (one.argmax(dim=-1) == labels).double().sum() / V for one in logits]))
    return torch.stack(rows)


@pytest.mark.parametrize(("in_cache", "few"), [(1, 0), (2**18, 64)])
@pytest.mark.parametrize(
    "counts",
    [
        pytest.param([4] * 6, id="equal"),
        pytest.param([1], id="one"),
        pytest.param([5, 1, 3, 2], id="unequal"),
        pytest.param([0, 3, 0, 3], id="classes-without-shots"),
        pytest.param([7, 300, 64, 65, 0, 1, 128], id="more-than-fit-in-turns"),
    ],
)
def test_the_search_gives_the_accuracies_of_the_formula(
    counts: list[int], in_cache: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_value_cache, "_IN_CACHE", in_cache)
    monkeypatch.setattr(key_value_cache, "_FEW", few)
    cache, images, labels = make_cache(counts)
    found = cache.accuracies(images, labels, BETAS, ALPHAS)
    assert torch.equal(found, by_formula(cache, images, labels))
    assert len(counts) == 1 or len(found.unique()) > 3


def test_entries_of_classes_that_are_gone_have_no_vote() -> None:
    """As in a cache that is evaluated on other classes than its own."""
    cache, images, labels = make_cache([3, 4, 5])
    cache.values[:, 1] = 0
    assert torch.equal(cache.accuracies(images, labels, BETAS, ALPHAS), by_formula(cache, images, labels))


def test_values_that_are_not_one_hot_are_multiplied() -> None:
    cache, images, labels = make_cache([3, 4, 5])
    cache.values = torch.rand_like(cache.values)
    assert torch.equal(cache.accuracies(images, labels, BETAS, ALPHAS), by_formula(cache, images, labels))


@pytest.mark.parametrize("few", [0, 64])
def test_the_first_of_equal_logits_is_predicted(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_value_cache, "_FEW", few)
    cache, images, labels = make_cache([2, 2, 2])
    cache.text_features[:], cache.keys.data[:] = 0.0, 0.0
    found = cache.accuracies(images, labels, BETAS, ALPHAS)
    assert torch.equal(found, torch.full_like(found, 100 * int((labels == 0).sum()) / V))


def test_several_threads_compute_the_same_and_their_number_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_value_cache, "_CHUNK", 16)
    cache, images, labels = make_cache([3, 4, 5])
    before, one = torch.get_num_threads(), cache.accuracies(images, labels, BETAS, ALPHAS)
    try:
        torch.set_num_threads(3)
        assert torch.equal(cache.accuracies(images, labels, BETAS, ALPHAS), one)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
