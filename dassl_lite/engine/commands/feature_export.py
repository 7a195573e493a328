"""What a FeatureTrainer has of a dataset's images and classes, as a file of features to pass around."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import dassl_lite
from dassl_lite.data import IMAGENET_TEMPLATES_SELECT, Datum, describe, is_random
from dassl_lite.data.feature_files.file import Array, FeatureFile, FeaturePart
from dassl_lite.engine.methods.feature_trainer import FeatureTrainer
from dassl_lite.models.prompts import fill_templates, text_features
from dassl_lite.utils.errors import UserError


def feature_file_of(trainer: FeatureTrainer, views: int, *, half: bool = False) -> FeatureFile:
    """Features of all of the dataset's images and prompts, extracted where the cache has them not.

    Args:
        trainer: any whose CLIP is frozen; gives CLIP, images and transforms.
        views: augmented views of the training images; 0: only the one without augmentation.
        half: store in float16 whatever the encoder gave.
    """
    data, clip = trainer.dm.dataset, trainer.clip
    templates = tuple(dict.fromkeys((trainer.template, *data.ensemble_templates, *IMAGENET_TEMPLATES_SELECT)))
    return FeatureFile(
        parts=_parts(trainer, views, half),
        classnames=data.classes.names,
        classids=data.classes.ids,
        text_weights=np.stack([_text(trainer, template, half) for template in templates]),
        templates=templates,
        ensemble_templates=tuple(data.ensemble_templates),
        logit_scale=clip.logit_scale.exp().item(),
        backbone=clip.name,
        backbone_digest=clip.digest,
        precision=clip.precision,
        transform=describe(trainer.dm.tfm_test),
        train_transform=describe(trainer.dm.tfm_train),
        provenance=(json.dumps(_provenance(trainer, views, half), sort_keys=True),),
    )


def _parts(trainer: FeatureTrainer, views: int, half: bool) -> dict[str, FeaturePart]:
    data = trainer.dm.dataset
    if not data.test:
        raise UserError(f"dataset {trainer.cfg.DATASET.NAME} has no test images, which a file of features must have")
    tested = {item.impath for item in data.test}
    parts: dict[str, FeaturePart] = {}
    if data.train_x and not getattr(data, "test_only", False):  # test_only: the test images stand in
        parts["train"] = _train_part(trainer, data.train_x, views, half)
    if data.val and not tested & {item.impath for item in data.val}:  # ImageNet validates on its test images
        parts["val"] = _part(trainer, data.val, half)
    parts["test"] = _part(trainer, data.test, half)
    return parts


def _train_part(trainer: FeatureTrainer, items: Sequence[Datum], views: int, half: bool) -> FeaturePart:
    plain, transform = _part(trainer, items, half), trainer.dm.tfm_train
    if not views or not is_random(transform):
        return plain
    augmented = _part(trainer, items, half, transform, views)
    return FeaturePart(augmented.views, augmented.labels, plain.views[0])


def _part(
    trainer: FeatureTrainer, items: Sequence[Datum], half: bool, transform: Any = None, views: int = 1
) -> FeaturePart:
    """Features of ``items``, without those images that could not be read; by default under the test transform."""
    loader = trainer.feature_loader(trainer.dm.test_loader, items, transform or trainer.dm.tfm_test, views)
    assert loader is not None
    tensor = loader.views.cpu()
    return FeaturePart(_array(tensor[:, loader.kept], half), loader.labels.cpu()[loader.kept].numpy())


@torch.no_grad()
def _text(trainer: FeatureTrainer, template: str, half: bool) -> Array:
    """(K, D), not normalised."""
    prompts = fill_templates(trainer.classnames, [template])
    return _array(text_features(trainer.clip, prompts, trainer.text_cache).cpu(), half)


def _array(tensor: torch.Tensor, half: bool) -> Array:
    """In the type that the encoder gave, where NumPy has it (it has no bfloat16)."""
    if half:
        return tensor.half().numpy()
    return (tensor if tensor.dtype in (torch.float16, torch.float32, torch.float64) else tensor.float()).numpy()


def _provenance(trainer: FeatureTrainer, views: int, half: bool) -> dict[str, Any]:
    cfg, data = trainer.cfg, trainer.dm.dataset
    return {
        "made_by": f"dassl-lite {dassl_lite.__version__}, tools/extract.py",
        "torch": torch.__version__,
        "dataset": cfg.DATASET.NAME,
        "num_shots": cfg.DATASET.NUM_SHOTS,
        "seed": cfg.SEED,
        "fewshot_digest": data.fewshot_digest,
        "subsample_classes": cfg.DATASET.SUBSAMPLE_CLASSES,
        "views": views,
        "views_seed": cfg.DATASET.FEATURES.SEED,
        "half": half,
    }
