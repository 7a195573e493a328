"""Where image features come from: a frozen CLIP and the feature cache, or a feature file that already has them.

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
    """All features of a split at once: features (V, N, D) in float32, not normalised, and their labels (N,).

    In a multi-label dataset labels are bool (N, K).
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
        dataset: whose items are asked for.
        encode: images (B, 3, H, W) to features (B, D), not normalised.
        encode_states: images to features and, of the same pass, the states (B, W) before the last projection.
        states: whether states are asked for, unless a call says otherwise.
        backbone, digest: name of the encoder, and a digest of its weights and precision: the cache's key.
        device: where features are wanted.
        folder: of the cache; None keeps nothing on disk.
        seed: of the augmented views.
        batch_size, num_workers: of the extraction.
        on_error: "stop" or "skip" at an image that cannot be read.
        seconds: where the wall time of extraction is added up, under "features".

    Attributes:
        shows_progress: whether extraction shows a bar, if there is a terminal.
        extraction: its ``batch_size``, ``num_workers`` and ``on_error``.
        shares: whether this run shares features with others of its process.
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
        self.shares = is_shared("features")  # when it is built: what others have written may change them

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
            transform: of the images.
            views: V, for images; a feature file has the views that it has.
            on_error: in place of the source's own; see `FeatureStore.fetch`.
            states: which of the two; None: as the source was made.
            kept_as: of what runs share them, if they share anything: the next of that kind take their place.
        """
        states = self.states if states is None else states
        processes = distributed.process_group()
        if isinstance(self.dataset, FeatureDataset):
            return self._of_file(self.dataset, processes, items, is_random(transform), states)
        if transform is None:
            raise UserError(
                "INPUT.NO_TRANSFORM True leaves images as they are, but features are of images of the backbone's size; "
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
                "The features are not kept for other runs: the transform depends on what may change unseen "
                f"({', '.join(lost)})"
            )
        distributed.meet("the extraction of features")
        store = FeatureStore(spec, folder, processes=processes, shows_progress=self.shows_progress)
        paths = [item.impath for item in items]
        with stops_at_once():  # what has been extracted is kept
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
        """Those of a feature file: where it is mapped, as they lie in it; of a part of its rows, one copy for all
        processes of a machine."""
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
        """Batches of features in the order in which the loader ``images`` would give their images.

        Args:
            items: of that loader; None or empty gives None.
            epoch: tells the current epoch, which selects the view.
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
    """Where the feature cache lies: DATASET.FEATURES.DIR, else below the cache's root; None if VIEWS is 0."""
    return Path(configured or cache_root() / "features") if views else None
