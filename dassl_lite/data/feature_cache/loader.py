"""Batches of cached features: slices of one tensor, in the order in which a DataLoader would give the images.

Shapes: N images, V views, B images of a batch, D feature width.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from dassl_lite.data.datum import Datum
from dassl_lite.data.feature_cache.store import Features
from dassl_lite.data.loaders import Item, domain_tensor, label_tensor
from dassl_lite.data.samplers import SeededSampler
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

_BLOCK = 8192  # rows that are read from disk together
_ALIGNED = 16  # bytes; every allocator's memory begins at a multiple
_MOST_OF_A_GPU = 0.25  # of its memory, for the features of a split; the rest is for encoders and what training keeps


class FeatureLoader:
    """Replaces an image loader if the image encoder is frozen.

    It uses the sampler of ``loader``, which draws the same random numbers in the same order, so a run on features sees
    the same batches as one on (unaugmented) images.

    Args:
        loader: the image loader, for its sampler, batch size and ``drop_last``; no image is read.
        items: the Datums of its N images.
        fetch: returns the features, ``tensor`` (V, N, D) and ``kept`` (N,); called on first use.
        device: device of the batches; all features are moved there once. Those that would take more than a quarter of a
            GPU's memory stay on the host, and each batch is on its way to the GPU while the one before it is used.
        epoch: returns the current epoch, which selects the view: epoch mod V.

    Attributes:
        kept: bool (N,), False for unreadable images that were skipped; set on first use, like ``labels``.
        labels, domains: int64 (N,), on ``device``; labels of a multi-label dataset are bool (N, K).
    """

    gives_features = True
    kept: Tensor
    labels: Tensor
    domains: Tensor
    _all_kept: bool

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
        """All features (V, N, D) on ``device``, or on the host if they are too large for it."""
        if self._views is None:
            features = self._fetch()
            self.kept = features.kept
            self._all_kept = bool(features.kept.all())
            self._views = features.tensor
            if _fits(features.tensor, self.device):
                self._views = features.tensor.to(self.device)
            else:
                logger.info(
                    f"{features.tensor.nbytes / 2**30:.1f} GiB of features stay on the host: they are more than a "
                    f"quarter of the memory of {self.device}"
                )
            self.labels = label_tensor(self.items, getattr(self.dataset, "multi_hot", 0)).to(self.device)
            self.domains = domain_tensor(self.items).to(self.device)
        return self._views

    @property
    def is_in_order(self) -> bool:
        """Whether each epoch gives all images in their order, without a random number but the loader's own."""
        return type(self._batches.sampler) is SequentialSampler and not self._batches.drop_last

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Dicts with ``feature`` (B, D), ``label`` (B,) or (B, K), ``domain`` (B,) and ``index`` (B,).

        The order of the whole epoch is drawn, and moved to the device, before its first batch.
        """
        view = self.views[self._epoch() % len(self.views)]
        torch.empty((), dtype=torch.int64).random_()  # a DataLoader draws the base seed of its workers here
        order, ends = self._drawn()
        if not self._all_kept:  # skipped images have no features
            kept = self.kept[order]
            order, ends = order[kept], [int(kept[:end].sum()) for end in ends]
        if view.device != self.device and self.device.type == "cuda":
            yield from self._from_host(view, order, [0, *ends])
            return
        # Then batches are slices, and nothing is copied but the first: it shows whether its user writes into it. But
        # what is mapped from a file may begin at any byte, where products are rounded in another way.
        in_order = view.data_ptr() % _ALIGNED == 0 and torch.equal(order, torch.arange(view.shape[0]))
        order = order.to(self.device)
        for start, end in pairwise([0, *ends]):
            if end > start:
                index = order[start:end]
                feature = view[start:end] if in_order and start else view[index]
                yield {"feature": feature, "label": self.labels[index], "domain": self.domains[index], "index": index}
                in_order = in_order and not _is_written(feature)

    def _drawn(self) -> tuple[Tensor, list[int]]:
        """Numbers of the images of an epoch, int64, and where each batch ends in them."""
        sampler, size = self._batches.sampler, self._batches.batch_size
        if type(sampler) is SequentialSampler:
            order = torch.arange(len(sampler))
        else:
            order = torch.tensor(list(sampler), dtype=torch.int64)
        whole = len(order) - len(order) % size
        ends = list(range(size, whole + 1, size))
        if self._batches.drop_last:
            return order[:whole], ends
        return order, ends if whole == len(order) else [*ends, len(order)]

    def _from_host(self, view: Tensor, order: Tensor, ends: Sequence[int]) -> Iterator[dict[str, Tensor]]:
        """The same batches of features (N, D) on the host, each copied while the one before it is used."""
        on_device = order.to(self.device)

        def batch(start: int, end: int) -> dict[str, Tensor]:
            index = on_device[start:end]
            feature = view[order[start:end]].pin_memory().to(self.device, non_blocking=True)
            return {"feature": feature, "label": self.labels[index], "domain": self.domains[index], "index": index}

        waiting: dict[str, Tensor] | None = None
        for start, end in pairwise(ends):
            if end > start:
                current = batch(start, end)
                if waiting is not None:
                    yield waiting
                waiting = current
        if waiting is not None:
            yield waiting


class StreamedFeatureLoader(FeatureLoader):
    """The same batches, each read from disk when it is its turn: for more features than memory holds.

    Args:
        args: those of `FeatureLoader`.
        read: features (n, D) of the rows with these numbers (n,), of a view.
        views_stored: V, the number of views that there are.
    """

    def __init__(self, *args: Any, read: Callable[[np.ndarray, int], np.ndarray], views_stored: int) -> None:
        super().__init__(*args)
        self._read, self._count = read, views_stored

    @property
    def views(self) -> Tensor:
        """All features, in memory: of a method that needs them together."""
        if self._views is None:
            rows = len(self.items)
            logger.info(f"All {rows:,} rows of features are read into memory, which this method needs")
        return super().views

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Batches as those of `FeatureLoader`, in the same order."""
        view = self._epoch() % self._count
        torch.empty((), dtype=torch.int64).random_()  # a DataLoader draws the base seed of its workers here
        order, ends = array("q"), array("q")
        for batch in self._batches:
            order.extend(batch)
            ends.append(len(order))
        numbers = np.frombuffer(order, np.int64) if order else np.empty(0, np.int64)
        labels = self._labels()
        # Slices of one block are read together: of many small reads, the calls would take longer than the copying.
        per_block = max(1, _BLOCK // max(1, self.batch_size or 1))
        start = 0
        for first in range(0, len(ends), per_block):
            block = ends[first : first + per_block]
            rows = numbers[start : block[-1]]
            features = torch.from_numpy(self._read(rows, view))
            base = start
            for end in block:
                index = torch.from_numpy(numbers[start:end].copy())
                part = features[start - base : end - base].to(self.device)
                label = torch.as_tensor(labels[numbers[start:end]]).to(self.device)
                domain = torch.zeros(len(index), dtype=torch.int64, device=self.device)
                yield {"feature": part, "label": label, "domain": domain, "index": index.to(self.device)}
                start = end

    def _labels(self) -> np.ndarray:
        return label_tensor(self.items, getattr(self.dataset, "multi_hot", 0)).numpy()


def _fits(tensor: Tensor, device: torch.device) -> bool:
    """Whether a tensor takes no more than its share of a device's memory."""
    return device.type != "cuda" or tensor.nbytes <= _MOST_OF_A_GPU * torch.cuda.mem_get_info(device)[1]


def _is_written(tensor: Tensor) -> bool:
    """Whether a tensor has been modified in place since it was made, as far as torch knows."""
    return tensor.is_inference() or (not tensor._is_view() and tensor._version > 0)
