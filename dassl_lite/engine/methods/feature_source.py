"""Where a FeatureTrainer's features come from: CLIP and the feature store, or a file that has them already."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dassl_lite.data import describe
from dassl_lite.data.datum import Datum
from dassl_lite.data.feature_cache import Features, FeatureSpec, FeatureStore
from dassl_lite.data.feature_files.dataset import FeatureDataset
from dassl_lite.engine.parallel import distributed
from dassl_lite.models.clip import load_clip
from dassl_lite.models.precomputed_backbone import PrecomputedBackbone
from dassl_lite.utils.files import cache_root
from dassl_lite.utils.logger import get_logger

if TYPE_CHECKING:
    from dassl_lite.engine.methods.feature_trainer import FeatureTrainer

logger = get_logger(__name__)


def holds_features(trainer: FeatureTrainer) -> bool:
    """Whether the dataset is one of features, without images."""
    return isinstance(trainer.dm.dataset, FeatureDataset)


def load_backbone(trainer: FeatureTrainer) -> Any:
    """The CLIP that the config names, frozen; for a dataset of features, what stands for the one that gave them."""
    data = trainer.dm.dataset
    if isinstance(data, FeatureDataset):
        return _stand_in(data, trainer.cfg.TRAINER.NAME).to(trainer.device)
    name = trainer.cfg.MODEL.BACKBONE.NAME
    logger.info(f"Loading CLIP (backbone: {name})")
    return load_clip(name, precision=trainer.precision, device=trainer.device).requires_grad_(False).eval()


def _stand_in(data: FeatureDataset, method: str) -> PrecomputedBackbone:
    file = data.file
    return PrecomputedBackbone(
        data.text_weights,
        [[template.format(name) for name in data.classnames] for template in file.templates],
        file.logit_scale,
        name=file.backbone or None,
        digest=file.backbone_digest,
        precision=file.precision,
        method=method,
        source=f"dataset {type(data).__name__} ({data.image_dir})",
    )


def fetch_features(trainer: FeatureTrainer, items: Sequence[Datum], transform: Any, views: int) -> Features:
    """Features (V, N, D) of N items: out of the dataset's file, or extracted and kept (unless VIEWS is 0).

    Args:
        transform: of the images.
        views: V, for images; a file has the views that it has.
    """
    data, config = trainer.dm.dataset, trainer.cfg.DATASET.FEATURES
    if isinstance(data, FeatureDataset):
        return data.fetch(items, augmented=transform is trainer.dm.tfm_train)
    start = time.perf_counter()
    spec = FeatureSpec(
        backbone=trainer.clip.name,
        digest=f"{trainer.clip.digest}-{trainer.precision}",
        transform=transform,
        transform_text=describe(transform),
        views=views,
        seed=config.SEED,
    )
    root = (config.DIR or cache_root() / "features") if config.VIEWS else None
    store = FeatureStore(spec, root, processes=distributed.process_group())
    features = store.fetch(
        [item.impath for item in items],
        trainer.encode_image,
        device=trainer.device,
        batch_size=config.BATCH_SIZE,
        num_workers=trainer.cfg.DATALOADER.NUM_WORKERS,
        on_error=trainer.cfg.DATASET.ON_ERROR,
    )
    trainer.seconds["features"] = trainer.seconds.get("features", 0.0) + time.perf_counter() - start
    return features
