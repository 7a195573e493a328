"""Batches of cached features: slices of one tensor, in the order in which a DataLoader would give the images.

Shapes: N images, V views, B images of a batch, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from dassl_lite.data.datum import Datum
from dassl_lite.data.feature_cache.store import Features
from dassl_lite.data.loaders import Item
from dassl_lite.data.samplers import SeededSampler


class FeatureLoader:
    """Replaces an image loader if the image encoder is frozen.

    It uses the sampler of ``loader``, which draws the same random numbers in the same order, so a run on features sees
    the same batches as one on (unaugmented) images.

    Args:
        loader: the image loader, for its sampler, batch size and ``drop_last``; no image is read.
        items: the Datums of its N images.
        fetch: returns the features, ``tensor`` (V, N, D) and ``kept`` (N,); called on first use.
        device: device of the batches; all features are moved there once.
        epoch: returns the current epoch, which selects the view: epoch mod V.

    Attributes:
        kept: bool (N,), False for unreadable images that were skipped; set on first use, like ``labels``.
        labels, domains: int64 (N,), on ``device``.
    """

    kept: Tensor
    labels: Tensor
    domains: Tensor

    def __init__(
        self,
        loader: DataLoader[Item],
        items: Sequence[Datum],
        fetch: Callable[[], Features],
        device: torch.device,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        self.items, self.device = items, device
        self.dataset, self.batch_size = loader.dataset, loader.batch_size
        sampler = loader.sampler
        if isinstance(sampler, SeededSampler):  # seeds are for the workers that read images
            sampler = sampler.sampler
        self._batches = BatchSampler(sampler, loader.batch_size or 1, loader.drop_last)
        self._fetch = fetch
        self._views: Tensor | None = None
        self._epoch = epoch

    @property
    def views(self) -> Tensor:
        """All features (V, N, D) on ``device``."""
        if self._views is None:
            features = self._fetch()
            self.kept = features.kept
            self._views = features.tensor.to(self.device)
            self.labels = torch.tensor([item.label for item in self.items], device=self.device)
            self.domains = torch.tensor([item.domain for item in self.items], device=self.device)
        return self._views

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Dicts with ``feature`` (B, D), ``label`` (B,), ``domain`` (B,) and ``index`` (B,)."""
        view = self.views[self._epoch() % len(self.views)]
        torch.empty((), dtype=torch.int64).random_()  # a DataLoader draws the base seed of its workers here
        for indices in self._batches:
            index = torch.tensor(indices)
            index = index[self.kept[index]].to(self.device)  # skipped images have no features
            if len(index):
                yield {
                    "feature": view[index],
                    "label": self.labels[index],
                    "domain": self.domains[index],
                    "index": index,
                }
