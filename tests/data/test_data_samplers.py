"""Samplers: what a batch consists of, and indices that carry a seed."""

from __future__ import annotations

import copy
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import RandomSampler

from dassl_lite.data import Datum
from dassl_lite.data.samplers import SAMPLERS, SeededIndex, SeededSampler, build_sampler
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.seeding import set_random_seed

ITEMS = [Datum(str(i), label=i % 4, domain=i % 3) for i in range(36)]


def batches(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_sampler_reads_each_image_once_and_follows_the_seed(kind: str) -> None:
    orders = []
    for _ in range(2):
        set_random_seed(3)
        orders.append(list(build_sampler(kind, None, ITEMS, batch_size=12, n_domain=3, n_ins=3)))
    assert orders[0] == orders[1]
    assert len(orders[0]) == len(set(orders[0])) == 36


@pytest.mark.parametrize(("n_domain", "expected"), [(2, 2), (0, 3), (3, 3)])
def test_a_batch_has_equally_many_images_per_domain(n_domain: int, expected: int) -> None:
    random.seed(0)
    sampler = build_sampler("RandomDomainSampler", None, ITEMS, batch_size=6, n_domain=n_domain)
    for batch in batches(list(sampler), 6):
        counts = Counter(ITEMS[i].domain for i in batch)
        assert len(counts) == expected
        assert len(set(counts.values())) == 1


def test_sequential_domains_are_in_order() -> None:
    sampler = build_sampler("SeqDomainSampler", None, ITEMS[::-1], batch_size=6)
    for batch in batches(list(sampler), 6):
        assert [ITEMS[::-1][i].domain for i in batch] == [0, 0, 1, 1, 2, 2]


def test_a_small_class_repeats_images() -> None:
    items = [*ITEMS[:8], Datum("x", label=9)]
    set_random_seed(0)
    sampler = build_sampler("RandomClassSampler", None, items, batch_size=4, n_ins=2)
    for batch in batches(list(sampler), 4):
        assert sorted(Counter(items[i].label for i in batch).values()) == [2, 2]


def test_a_class_with_just_enough_images_repeats_none() -> None:
    items = [*ITEMS[:8], Datum("x", label=9), Datum("y", label=9)]
    for seed in range(5):
        set_random_seed(seed)
        drawn = list(build_sampler("RandomClassSampler", None, items, batch_size=4, n_ins=2))
        assert sorted(index for index in drawn if index >= 8) in ([], [8, 9])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("RandomDomainSampler", {"n_domain": 4}, "cannot be divided equally among 4 domains; there are 3"),
        ("RandomDomainSampler", {"batch_size": 7}, "cannot be divided equally"),
        ("SeqDomainSampler", {"batch_size": 60}, "needs 20 images per domain, but one has 12"),
        ("RandomClassSampler", {"batch_size": 6, "n_ins": 16}, "needs 0 classes"),
        ("RandomClassSampler", {"batch_size": 60, "n_ins": 2}, "needs 30 classes"),
        ("RandomSampla", {}, r"unknown sampler 'RandomSampla'\. Did you mean 'RandomSampler'"),
    ],
)
def test_invalid_settings_of_a_sampler_are_refused(kind: str, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_sampler(kind, None, ITEMS, **{"batch_size": 6, **options})


def test_adding_seeds_changes_neither_order_nor_random_state() -> None:
    torch.manual_seed(4)
    plain = list(RandomSampler(ITEMS))
    state = torch.get_rng_state()
    torch.manual_seed(4)
    seeded = list(SeededSampler(RandomSampler(ITEMS)))
    assert seeded == plain
    assert torch.equal(torch.get_rng_state(), state)
    again = list(SeededSampler(RandomSampler(ITEMS)))
    assert len({index.seed for index in (*seeded, *again)}) == 72  # each epoch has different seeds


def test_an_index_keeps_its_seed_when_sent_to_a_worker() -> None:
    index = copy.copy(SeededIndex(3, 2**62 + 5))  # as pickling does
    assert (index, index.seed) == (3, 2**62 + 5)
    draws = []
    for _ in range(2):
        index.seed_all()
        draws.append((random.random(), np.random.rand(), float(torch.rand(()))))
    assert draws[0] == draws[1]
