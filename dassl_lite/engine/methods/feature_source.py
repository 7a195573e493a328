"""The source of image features: a frozen CLIP with the feature cache, or a feature file.

Shapes: B images of a batch, N images, V views, D feature width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dassl_lite.data import DatasetBase, Datum, describe, is_random
from dassl_lite.data.feature_cache import Features, FeatureSpec, FeatureStore, ProcessGroup
from dassl_lite.data.feature_cache.loader import FeatureLoader, StreamedFeatureLoader
from dassl_lite.data.feature_files import FeatureDataset
from dassl_lite.data.transforms import undescribed
from dassl_lite.engine.contract.graceful_stop import stops_at_once
from dassl_lite.engine.parallel import distributed
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import cache_root
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.sharing import is_shared

logger = get_logger(__name__)


@dataclass(frozen=True)
class FeatureSet:
    """All features of a split: (V, N, D) in float32, not normalised, with labels (N,).

    In a multi-label dataset, labels are bool (N, K).
    """

    views: Tensor
    labels: Tensor

    @property
    def features(self) -> Tensor:
        """The first view, (N, D)."""
        return self.views[0]


class FeatureSource:
    """Image features of a dataset, extracted once and kept in the feature cache, or read from a feature file.

    Args:
        dataset: the dataset.
        encode: maps images (B, 3, H, W) to features (B, D), not normalised.
        encode_states: maps images to features and, in the same pass, the states (B, W) before the last projection.
        states: whether to return states by default.
        backbone, digest: name of the encoder, and a digest of its weights and precision: the cache key.
        device: device for the features.
        folder: cache folder; None keeps nothing on disk.
        seed: seed of the augmented views.
        batch_size, num_workers: settings of the extraction.
        on_error: "stop" or "skip" when an image cannot be read.
        seconds: accumulates the wall time of extraction, under "features".

    Attributes:
        shows_progress: whether extraction shows a progress bar in a terminal.
        extraction: ``batch_size``, ``num_workers`` and ``on_error`` of the extraction.
        shares: whether this run shares features with other runs of its process.
    """

    shows_progress = True

    def __init__(
        self,
        dataset: DatasetBase,
        encode: Callable[[Tensor], Tensor],
        encode_states: Callable[[Tensor], tuple[Tensor, Tensor]],
        *,
        states: bool,
        backbone: str | None,
        digest: str,
        device: torch.device,
        folder: Path | None,
        seed: int,
        batch_size: int,
        num_workers: int,
        on_error: str,
        seconds: MutableMapping[str, float],
    ) -> None:
        self.dataset, self.encode, self.device, self.folder = dataset, encode, device, folder
        self.encode_states, self.states = encode_states, states
        self.backbone, self.digest, self.seed = backbone or "", digest, seed
        self.extraction: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "on_error": on_error}
        self._seconds = seconds
        self.shares = is_shared("features")  # decided at construction: what others write later may change the features

    @property
    def is_file(self) -> bool:
        """Whether the dataset is a feature file, without images."""
        return isinstance(self.dataset, FeatureDataset)

    def fetch(
        self,
        items: Sequence[Datum],
        transform: Any,
        views: int = 1,
        on_error: str = "",
        states: bool | None = None,
        kept_as: str = "",
    ) -> Features:
        """Features (V, N, D), or states (V, N, W), of N items.

        Args:
            transform: transform of the images.
            views: number of views V for images; a feature file has a fixed number.
            on_error: overrides the source's ``on_error``; see `FeatureStore.fetch`.
            states: whether to return states instead of features; None: the source's default.
            kept_as: kind under which runs share the features, if they do; the next ones of that kind replace them.
        """
        states = self.states if states is None else states
        processes = distributed.process_group()
        if isinstance(self.dataset, FeatureDataset):
            return self._of_file(self.dataset, processes, items, is_random(transform), states)
        if transform is None:
            raise UserError(
                "INPUT.NO_TRANSFORM True leaves images as they are, but features need images of the backbone's size; "
                "leave it out"
            )
        start = time.perf_counter()
        spec = FeatureSpec(
            backbone=self.backbone,
            digest=self.digest,
            transform=transform,
            transform_text=describe(transform),
            views=views,
            seed=self.seed,
        )
        folder, lost = self.folder, undescribed(transform)
        if lost and folder is not None:
            folder = None
            logger.warning(
                "The features are not kept for other runs: the transform depends on things that may change unnoticed "
                f"({', '.join(lost)})"
            )
        distributed.meet("the extraction of features")
        store = FeatureStore(spec, folder, processes=processes, shows_progress=self.shows_progress)
        paths = [item.impath for item in items]
        with stops_at_once():  # features extracted so far are kept
            extraction = {**self.extraction, **({"on_error": on_error} if on_error else {})}
            encode = self.encode_states if states else self.encode
            kept_as = f"features: {kept_as}" if kept_as and self.shares else ""
            extraction |= {"device": self.device, "states": states, "kept_as": kept_as}
            features = store.fetch(paths, encode, **extraction)
        self._seconds["features"] = self._seconds.get("features", 0.0) + time.perf_counter() - start
        return features

    @staticmethod
    def _of_file(
        dataset: FeatureDataset, processes: ProcessGroup, items: Sequence[Datum], augmented: bool, states: bool
    ) -> Features:
        """Features from a feature file: memory-mapped if possible, else one copy for all processes of a machine."""
        if processes.size == 1 or dataset.holds(items, augmented, states):
            return dataset.fetch(items, augmented, states)
        distributed.meet("the reading of features")
        tensor = processes.shared(lambda: dataset.fetch(items, augmented, states).tensor)
        return Features(tensor, torch.ones(len(items), dtype=torch.bool))

    def loader(
        self,
        images: Any,
        items: Sequence[Datum] | None,
        transform: Any,
        views: int = 1,
        epoch: Callable[[], int] = lambda: 0,
        kept_as: str = "",
    ) -> FeatureLoader | None:
        """A loader of feature batches, in the order in which the loader ``images`` would yield their images.

        Args:
            items: items of that loader; if None or empty, returns None.
            epoch: returns the current epoch, which selects the view.
            kept_as: see `fetch`.
        """
        if not items:
            return None

        def fetch() -> Features:
            return self.fetch(items, transform, views, kept_as=kept_as)

        if isinstance(self.dataset, FeatureDataset) and self.dataset.streams:
            stored, rows = self.dataset.stored(items, is_random(transform), self.states)

            def read(numbers: np.ndarray, view: int) -> np.ndarray:
                return stored.take(rows[numbers], view)

            return StreamedFeatureLoader(images, items, fetch, self.device, epoch, read=read, views_stored=len(stored))
        return FeatureLoader(images, items, fetch, self.device, epoch)


def cache_folder(configured: str, views: int) -> Path | None:
    """Folder of the feature cache: DATASET.FEATURES.DIR, else below the cache root; None if VIEWS is 0."""
    return Path(configured or cache_root() / "features") if views else None
