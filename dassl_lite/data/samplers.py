"""The order in which training items are read: Dassl's samplers by name, and seeds that travel with an index."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import RandomSampler, Sampler, SequentialSampler

from dassl_lite.data.datum import Datum
from dassl_lite.utils.errors import UserError, unknown

SAMPLERS = ("RandomSampler", "SequentialSampler", "RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler")


def build_sampler(
    sampler_type: str,
    cfg: Any = None,
    data_source: Sequence[Datum] = (),
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> Sampler[int]:
    """The sampler called ``sampler_type``.

    Args:
        cfg: not used; Dassl's signature.
        n_domain: domains per batch of RandomDomainSampler; below 1 means all.
        n_ins: items per class of RandomClassSampler.
    """
    if sampler_type == "RandomSampler":
        return RandomSampler(data_source)
    if sampler_type == "SequentialSampler":
        return SequentialSampler(data_source)
    if sampler_type == "RandomDomainSampler":
        return RandomDomainSampler(data_source, batch_size, n_domain)
    if sampler_type == "SeqDomainSampler":
        return SeqDomainSampler(data_source, batch_size)
    if sampler_type == "RandomClassSampler":
        return RandomClassSampler(data_source, batch_size, n_ins)
    raise unknown("sampler", sampler_type, SAMPLERS)


class RandomDomainSampler(Sampler[int]):
    """Batches of ``n_domain`` domains drawn at random, with equally many items of each.

    An epoch ends when a drawn domain has too few items left. Draws from Python's ``random``.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_domain: int) -> None:
        self.indices: dict[int, list[int]] = {}
        for index, item in enumerate(data_source):
            self.indices.setdefault(item.domain, []).append(index)
        self.domains = list(self.indices)
        self.n_domain = n_domain if n_domain > 0 else len(self.domains)
        if self.n_domain > len(self.domains) or batch_size % self.n_domain:
            raise UserError(
                f"a batch of {batch_size} cannot be shared equally by {self.n_domain} domains of {len(self.domains)}"
            )
        self.n_per_domain = batch_size // self.n_domain
        smallest = min(map(len, self.indices.values()))
        if smallest < self.n_per_domain:
            raise UserError(f"a batch takes {self.n_per_domain} images per domain, but one has {smallest}")
        self.length = len(list(iter(self)))  # an estimate: it depends on the domains drawn

    def next_domains(self) -> list[int]:
        """Domains of the next batch."""
        return random.sample(self.domains, self.n_domain)

    def __iter__(self) -> Iterator[int]:
        left = {domain: list(indices) for domain, indices in self.indices.items()}
        drawn: list[int] = []
        enough = True
        while enough:
            for domain in self.next_domains():
                chosen = random.sample(left[domain], self.n_per_domain)
                drawn += chosen
                taken = set(chosen)
                left[domain] = [index for index in left[domain] if index not in taken]
                enough = enough and len(left[domain]) >= self.n_per_domain
        return iter(drawn)

    def __len__(self) -> int:
        return self.length


class SeqDomainSampler(RandomDomainSampler):
    """Batches with equally many items of every domain, domains in sorted order."""

    def __init__(self, data_source: Sequence[Datum], batch_size: int) -> None:
        super().__init__(data_source, batch_size, n_domain=0)

    def next_domains(self) -> list[int]:
        return sorted(self.domains)


class RandomClassSampler(Sampler[int]):
    """Batches of classes drawn at random with ``n_ins`` items each (after deep-person-reid).

    A class with fewer items repeats some. Draws from Python's ``random``, repeats from NumPy's.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_ins: int) -> None:
        self.n_ins = n_ins
        self.n_classes = batch_size // n_ins  # per batch
        self.indices: dict[int, list[int]] = {}
        for index, item in enumerate(data_source):
            self.indices.setdefault(item.label, []).append(index)
        if not 1 <= self.n_classes <= len(self.indices):
            raise UserError(
                f"a batch of {batch_size} with {n_ins} images per class needs {self.n_classes} classes; "
                f"it should be from 1 to the {len(self.indices)} that there are"
            )
        self.length = len(list(iter(self)))  # an estimate: it depends on the classes drawn

    def _groups(self) -> dict[int, list[list[int]]]:
        """For each class its items, shuffled, in groups of ``n_ins``; what is left over is dropped."""
        groups: dict[int, list[list[int]]] = {}
        for label, members in self.indices.items():
            indices = list(members)
            if len(indices) < self.n_ins:
                indices = np.random.choice(indices, size=self.n_ins, replace=True).tolist()
            random.shuffle(indices)
            whole = len(indices) - len(indices) % self.n_ins
            groups[label] = [indices[start : start + self.n_ins] for start in range(0, whole, self.n_ins)]
        return groups

    def __iter__(self) -> Iterator[int]:
        groups = self._groups()
        available = list(self.indices)
        drawn: list[int] = []
        while len(available) >= self.n_classes:
            for label in random.sample(available, self.n_classes):
                drawn += groups[label].pop(0)
                if not groups[label]:
                    available.remove(label)
        return iter(drawn)

    def __len__(self) -> int:
        return self.length


class SeededIndex(int):
    """An index that brings the random seed of its item along, into whichever worker process reads it."""

    seed: int

    def __new__(cls, index: int, seed: int) -> SeededIndex:
        made = super().__new__(cls, index)
        made.seed = seed
        return made

    def __reduce__(self) -> tuple[type[SeededIndex], tuple[int, int]]:
        return type(self), (int(self), self.seed)

    def seed_all(self) -> None:
        """Seed the generators that transforms draw from."""
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)
        torch.manual_seed(self.seed)


class SeededSampler(Sampler[int]):
    """Another sampler's indices, each with a seed that depends on torch's random state and its place in the epoch.

    So what a transform draws does not depend on which worker reads the item, nor on how many there are. The
    seeds come from a look at the state, not from a draw: the order of items stays what it is without them.
    """

    def __init__(self, sampler: Sampler[int]) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        state = torch.get_rng_state()
        epoch_seed = int(torch.empty((), dtype=torch.int64).random_())
        torch.set_rng_state(state)
        for place, index in enumerate(self.sampler):
            # A Weyl sequence: neighbouring places get seeds far apart.
            yield SeededIndex(index, (epoch_seed + place * 0x9E3779B97F4A7C15) % 2**63)

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]  # all of ours have a length
