"""Writing a feature file: the features that a frozen CLIP gives for a dataset's images and class names.

Shapes: K classes, D feature width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dassl_lite
from dassl_lite.data import IMAGENET_TEMPLATES_SELECT, DataManager, Datum, describe, is_random
from dassl_lite.data.feature_files import FeatureFile, FeaturePart
from dassl_lite.data.feature_files.arrays import Array
from dassl_lite.data.loaders import label_tensor
from dassl_lite.engine.methods.feature_source import FeatureSource
from dassl_lite.models.clip import CLIPBackbone
from dassl_lite.models.prompts import fill_templates, text_features
from dassl_lite.utils.errors import UserError


@dataclass(frozen=True)
class FeatureExport:
    """A dataset's images and prompts as a feature file; whatever the cache lacks is extracted.

    Attributes:
        data: dataset and transforms.
        dataset: name that the file states, "" for none.
        features: where image features come from.
        clip: the frozen CLIP.
        template: the dataset's own prompt template.
        text_cache: folder for text features, or None.
        views: augmented views of the training images; 0: only the one without augmentation.
        states: store the states before the image encoder's projection, and the projection, too.
        half: store float16 whatever the encoder gives.
        provenance: what else the file should say about how it was made, as plain values.
    """

    data: DataManager
    dataset: str
    features: FeatureSource
    clip: CLIPBackbone
    template: str
    text_cache: Path | None
    views: int
    half: bool
    states: bool
    provenance: dict[str, Any]

    def file(self) -> FeatureFile:
        """The content of the file.

        Raises:
            UserError: the dataset has no test images.
        """
        dataset, clip = self.data.dataset, self.clip
        templates = tuple(dict.fromkeys((self.template, *dataset.ensemble_templates, *IMAGENET_TEMPLATES_SELECT)))
        made = {
            "made_by": f"dassl-lite {dassl_lite.__version__}, tools/extract.py",
            "torch": torch.__version__,
            "fewshot_digest": dataset.fewshot_digest,
            "views": self.views,
            "views_seed": self.features.seed,
            "half": self.half,
            **self.provenance,
        }
        projection = clip.image_projection if self.states else None
        return FeatureFile(
            parts=self._parts(),
            classnames=dataset.classes.names,
            classids=dataset.classes.ids,
            text_weights=np.stack([self._text(template) for template in templates]),
            templates=templates,
            ensemble_templates=tuple(dataset.ensemble_templates),
            logit_scale=clip.logit_scale.exp().item(),
            projection=self._array(projection.weight.detach().cpu().contiguous()) if projection else None,
            projection_bias=None
            if projection is None or projection.bias is None
            else self._array(projection.bias.detach().cpu()),
            logit_bias=None if clip.logit_bias is None else clip.logit_bias.item(),
            dataset=self.dataset,
            backbone=clip.name,
            backbone_digest=clip.digest,
            precision=clip.precision,
            transform=describe(self.data.tfm_test),
            train_transform=describe(self.data.tfm_train),
            provenance=(json.dumps(made, sort_keys=True),),
        )

    def _parts(self) -> dict[str, FeaturePart]:
        dataset = self.data.dataset
        if not dataset.test:
            raise UserError(f"dataset {type(dataset).__name__} has no test images, which a feature file must have")
        tested = {item.impath for item in dataset.test}
        parts: dict[str, FeaturePart] = {}
        if dataset.train_x and not getattr(dataset, "test_only", False):  # test_only: the test images stand in
            parts["train"] = self._train_part(dataset.train_x)
        if dataset.val and not tested & {item.impath for item in dataset.val}:  # ImageNet validates on test images
            parts["val"] = self._part(dataset.val)
        parts["test"] = self._part(dataset.test)
        return parts

    def _train_part(self, items: Sequence[Datum]) -> FeaturePart:
        plain, transform = self._part(items), self.data.tfm_train
        if not self.views or not is_random(transform):
            return plain
        augmented = self._part(items, transform, self.views)
        plain_states = None if plain.states is None else plain.states[0]
        return FeaturePart(augmented.views, augmented.labels, plain.views[0], augmented.states, plain_states)

    def _part(self, items: Sequence[Datum], transform: Any = None, views: int = 1) -> FeaturePart:
        """Features of ``items`` without images that could not be read; by default under the test transform."""
        before = None
        if self.states:  # first: this pass gives both
            states = self.features.fetch(items, transform or self.data.tfm_test, views, states=True)
            before = self._array(states.tensor[:, states.kept].cpu())
        found = self.features.fetch(items, transform or self.data.tfm_test, views)
        dataset = self.data.dataset
        labels = label_tensor(items, dataset.num_classes if dataset.multi_label else 0)[found.kept].numpy()
        return FeaturePart(self._array(found.tensor[:, found.kept].cpu()), labels, states=before)

    @torch.no_grad()
    def _text(self, template: str) -> Array:
        """(K, D), not normalised."""
        prompts = fill_templates(self.data.dataset.classnames, [template])
        return self._array(text_features(self.clip, prompts, self.text_cache).cpu())

    def _array(self, tensor: torch.Tensor) -> Array:
        """In the type that the encoder gave, where NumPy has it (it has no bfloat16)."""
        if self.half:
            return tensor.half().numpy()
        return (tensor if tensor.dtype in (torch.float16, torch.float32, torch.float64) else tensor.float()).numpy()
