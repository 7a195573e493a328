"""Batches of cached features: slices of one tensor, in the order in which a DataLoader would give the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader

from dassl_lite.data.datum import Datum
from dassl_lite.data.feature_cache import Features
from dassl_lite.data.samplers import SeededSampler


class FeatureLoader:
    """Stands in for an image loader where the image encoder is frozen.

    The order of a run's batches is that of ``loader``, whose sampler draws from the same random stream in the same
    way, so a run on features and one on (unaugmented) images see the same batches.

    Args:
        loader: the image loader; gives sampler, batch size and ``drop_last``, never an image.
        items: its N images' Datums.
        fetch: gives the features, called at first use: ``tensor`` (V, N, D) and ``kept`` (N,).
        device: where batches are wanted; the whole tensor is moved there once.
        epoch: tells the current epoch, which selects the view: epoch mod V.
    """

    def __init__(
        self,
        loader: DataLoader,
        items: Sequence[Datum],
        fetch: Callable[[], Features],
        device: torch.device,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        self.items, self.device = items, device
        self.dataset, self.batch_size = loader.dataset, loader.batch_size
        sampler = loader.sampler
        if isinstance(sampler, SeededSampler):  # no worker reads an image here, so none needs a seed
            sampler = sampler.sampler
        self._batches = BatchSampler(sampler, loader.batch_size or 1, loader.drop_last)
        self._fetch = fetch
        self._views: torch.Tensor | None = None
        self._epoch = epoch

    @property
    def views(self) -> torch.Tensor:
        """All features, (V, N, D), on the device."""
        if self._views is None:
            features = self._fetch()
            self.kept = features.kept
            self._views = features.tensor.to(self.device)
            self.labels = torch.tensor([item.label for item in self.items], device=self.device)
            self.domains = torch.tensor([item.domain for item in self.items], device=self.device)
        return self._views

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Dicts with ``feature`` (B, D), ``label`` (B,), ``domain`` (B,) and ``index`` (B,)."""
        view = self.views[self._epoch() % len(self.views)]
        torch.empty((), dtype=torch.int64).random_()  # a DataLoader draws its workers' base seed here
        for indices in self._batches:
            index = torch.tensor(indices)
            index = index[self.kept[index]].to(self.device)  # corrupt images that were passed over have no feature
            if len(index):
                yield {
                    "feature": view[index],
                    "label": self.labels[index],
                    "domain": self.domains[index],
                    "index": index,
                }
