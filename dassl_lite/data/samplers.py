"""The order in which images are read: Dassl's samplers by name, and indices that carry a random seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import RandomSampler, Sampler, SequentialSampler
from yacs.config import CfgNode

from dassl_lite.data.datum import Datum, labels_of
from dassl_lite.utils.errors import UserError, unknown

SAMPLERS = ("RandomSampler", "SequentialSampler", "RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler")


def build_sampler(
    sampler_type: str,
    cfg: CfgNode | None = None,
    data_source: Sequence[Datum] = (),
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> Sampler[int]:
    """Build the sampler called ``sampler_type``.

    Args:
        cfg: not used; it is part of Dassl's signature.
        n_domain: domains per batch of RandomDomainSampler; below 1 means all.
        n_ins: images per class in a batch of RandomClassSampler.
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
    """Batches of ``n_domain`` randomly drawn domains, with the same number of images from each.

    An epoch ends when a drawn domain has too few images left. Draws from Python's ``random``.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_domain: int) -> None:
        self.indices: dict[int, list[int]] = {}
        for index, item in enumerate(data_source):
            self.indices.setdefault(item.domain, []).append(index)
        self.domains = list(self.indices)
        self.n_domain = n_domain if n_domain > 0 else len(self.domains)
        if self.n_domain > len(self.domains) or batch_size % self.n_domain:
            raise UserError(
                f"a batch of {batch_size} cannot be divided equally among {self.n_domain} domains; "
                f"there are {len(self.domains)}"
            )
        self.n_per_domain = batch_size // self.n_domain
        smallest = min(map(len, self.indices.values()))
        if smallest < self.n_per_domain:
            raise UserError(f"a batch needs {self.n_per_domain} images per domain, but one has {smallest}")
        self.length = len(list(iter(self)))  # an estimate: it depends on the domains drawn

    def next_domains(self) -> list[int]:
        """The domains of the next batch."""
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
    """Batches with the same number of images from every domain, domains in sorted order."""

    def __init__(self, data_source: Sequence[Datum], batch_size: int) -> None:
        super().__init__(data_source, batch_size, n_domain=0)

    def next_domains(self) -> list[int]:
        return sorted(self.domains)


class RandomClassSampler(Sampler[int]):
    """Batches of randomly drawn classes with ``n_ins`` images each, as in deep-person-reid.

    A class with fewer images repeats some. Draws from Python's ``random``, repeated images from NumPy's.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_ins: int) -> None:
        self.n_ins = n_ins
        self.n_classes = batch_size // n_ins  # per batch
        self.indices: dict[int, list[int]] = {}
        for index, item in enumerate(data_source):
            for label in labels_of(item):  # an image of several classes is one of each
                self.indices.setdefault(label, []).append(index)
        if not 1 <= self.n_classes <= len(self.indices):
            raise UserError(
                f"a batch of {batch_size} with {n_ins} images per class needs {self.n_classes} classes; "
                f"it should need between 1 and {len(self.indices)}, the number of classes"
            )
        self.length = len(list(iter(self)))  # an estimate: it depends on the classes drawn

    def _groups(self) -> dict[int, list[list[int]]]:
        """The shuffled images of each class in groups of ``n_ins``; an incomplete last group is dropped."""
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
    """An index that carries a random seed to the worker process that reads its image."""

    seed: int

    def __new__(cls, index: int, seed: int) -> SeededIndex:
        made = super().__new__(cls, index)
        made.seed = seed
        return made

    def __reduce__(self) -> tuple[type[SeededIndex], tuple[int, int]]:
        return type(self), (int(self), self.seed)

    def seed_all(self) -> None:
        """Seed the generators that transforms use: Python's, NumPy's and torch's."""
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)
        torch.manual_seed(self.seed)


class SeededSampler(Sampler[int]):
    """The indices of another sampler, each with a seed derived from torch's random state and its position in the epoch.

    So a transform's random numbers depend neither on the worker that reads the image nor on the number of workers.
    The random state is restored after deriving the seeds, so the order of images is the same with and without them.

    Args:
        sampler: gives the indices.
    """

    def __init__(self, sampler: Sampler[int]) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        state = torch.get_rng_state()
        epoch_seed = int(torch.empty((), dtype=torch.int64).random_())
        torch.set_rng_state(state)
        for position, index in enumerate(self.sampler):
            # A Weyl sequence: neighbouring positions get seeds that are far apart.
            yield SeededIndex(index, (epoch_seed + position * 0x9E3779B97F4A7C15) % 2**63)

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]  # all of ours have a length
