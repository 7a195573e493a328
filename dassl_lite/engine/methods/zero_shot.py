"""Zero-shot CLIP on the images of a run: the baseline that every method is compared with.

Shapes: B images of a batch, K classes, D feature width.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_lite.data.feature_cache.loader import FeatureLoader
from dassl_lite.engine.parallel.shared_inference import outputs
from dassl_lite.evaluation import average_precisions
from dassl_lite.utils.sharing import is_unwritten, shared

Batches = Iterable[tuple[Tensor, Tensor]]  # cosines (B, K), and labels (B,) or, multi-label, bool (B, K)


def cosine_batches(
    loader: Any, prototypes: Tensor, parse: Callable[[dict[str, Any]], tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield cosines (B, K) between image features and prototypes, and labels, for each batch of ``loader``.

    Args:
        prototypes: normalised prototypes (K, D).
        parse: maps a batch to image features (B, D) and labels.
    """

    def infer(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        features, label = parse(batch)
        return F.normalize(features, dim=-1) @ prototypes.t(), label

    return iter(outputs(loader, infer))


def accuracy(batches: Batches) -> float:
    """Percentage of images whose class has the highest cosine; 0 without images."""
    correct: Any = 0
    total = 0
    for cosines, label in batches:
        correct += (cosines.argmax(-1) == label).sum()  # read once, at the end: each read waits for the device
        total += len(label)
    return 100.0 * int(correct) / max(total, 1)


def mean_average_precision(batches: Batches) -> float:
    """mAP of a multi-label dataset, in percent."""
    cosines, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return 100.0 * average_precisions(cosines, labels).nanmean().item()


def counts_by_class(batches: Batches, num_classes: int) -> tuple[Tensor, Tensor]:
    """Number of images per class, (K,) int64, and how many of them are classified correctly."""
    counts = torch.zeros(2, num_classes, dtype=torch.int64)
    for cosines, label in batches:
        label, predicted = label.cpu(), cosines.argmax(-1).cpu()
        counts[0] += torch.bincount(label, minlength=num_classes)
        counts[1] += torch.bincount(label[predicted == label], minlength=num_classes)
    return counts[0], counts[1]


def shared_between_runs(
    loader: Any, prototypes: Callable[[], Tensor], source: tuple[Hashable, ...], compute: Callable[[], float | None]
) -> float | None:
    """The result of ``compute``, reused from an earlier run of this process on the same features and prototypes.

    Either way, the same number of random numbers is drawn, so that training does not depend on earlier runs.

    Args:
        loader: results are shared only for an ordered `FeatureLoader` whose features have not been modified.
        prototypes: returns the prototypes (K, D) that ``compute`` uses.
        source: anything else that the result depends on.
    """
    if not (type(loader) is FeatureLoader and loader.is_in_order and is_unwritten(loader.views)):
        return compute()
    views = loader.views
    computed = False

    def make() -> tuple[weakref.ref[Tensor], float | None]:
        nonlocal computed
        computed = True
        return weakref.ref(views), compute()

    parts = prototypes(), loader.labels, loader.kept
    digests = [hashlib.sha256(part.cpu().numpy().tobytes()).digest() for part in parts]
    _, value = shared("zero-shot", (*source, *digests), make, is_intact=lambda kept: kept[0]() is views)
    if not computed:
        skip_loader_seed()
    return value


def skip_loader_seed() -> None:
    """Draw the random number that iterating over a loader would draw."""
    torch.empty((), dtype=torch.int64).random_()
