"""All features of a split at once, for methods that look at a set as a whole: a cache of keys, logistic regression.

Letters: N images, V views, D feature width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dassl_lite.data import is_random
from dassl_lite.data.feature_cache.loader import FeatureLoader
from dassl_lite.data.manager import validates_on_test
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger

if TYPE_CHECKING:
    from dassl_lite.engine.methods.feature_trainer import FeatureTrainer

logger = get_logger(__name__)


@dataclass(frozen=True)
class FeatureSet:
    """Features (V, N, D) in float32, not normalised, and their labels (N,)."""

    views: torch.Tensor
    labels: torch.Tensor

    @property
    def features(self) -> torch.Tensor:
        """The first view, (N, D)."""
        return self.views[0]


def training_set(trainer: FeatureTrainer, *, augmented: bool, views: int = 1) -> FeatureSet:
    """The training images in their own order, without those that could not be read.

    Args:
        augmented: the views that training uses, else one view of the test transform.
        views: how many augmented views where DATASET.FEATURES.VIEWS is 0 and says nothing.

    Raises:
        UserError: not one image is left.
    """
    loader, dm = trainer.train_loader_x, trainer.dm
    same = isinstance(loader, FeatureLoader) and (augmented or not is_random(dm.tfm_train))
    if not same:
        transform, views = (dm.tfm_train, views) if augmented else (dm.tfm_test, 1)
        loader = trainer.feature_loader(dm.train_loader_x, dm.dataset.train_x, transform, views)
    tensor = loader.views if loader is not None else torch.empty(0, 0, 0)
    if loader is None or not loader.kept.any():
        raise UserError(f"{trainer.cfg.TRAINER.NAME} needs training images: set DATASET.NUM_SHOTS to 1 or more")
    kept = loader.kept.to(tensor.device)
    return FeatureSet(tensor[:, kept].float(), loader.labels[kept])


def selection_set(trainer: FeatureTrainer) -> FeatureSet | None:
    """The validation images, to choose hyper-parameters on; None where there are none, or only the test images.

    ImageNet's validation set is what the field tests on, so that nothing may be chosen on it.
    """
    if trainer.val_loader is None or not trainer.dm.dataset.val:
        logger.info(f"{trainer.cfg.DATASET.NAME} has no validation set")
        return None
    if validates_on_test(trainer.dm.dataset):
        logger.info(f"{trainer.cfg.DATASET.NAME} has no validation set of its own: its images are test images")
        return None
    batches = [trainer.parse_batch_test(batch) for batch in trainer.val_loader]
    features, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return FeatureSet(features[None], labels)
