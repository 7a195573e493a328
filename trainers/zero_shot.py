"""Zero-shot CLIP, with one prompt per class or an ensemble.

Paper: Learning Transferable Visual Models From Natural Language Supervision, https://arxiv.org/abs/2103.00020

    logits = exp(logit_scale) * normalise(image) @ normalise(text).T

Templates as in CoOp's trainers: the dataset's own; the ensemble is the seven that CLIP's authors selected for ImageNet,
plus the dataset's own unless it is ImageNet.
"""

from __future__ import annotations

from torch import nn

from dassl_lite.data.imagenet import IMAGENET_TEMPLATES_SELECT
from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer
from dassl_lite.models.heads import FixedPrototypes


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(FeatureTrainer):
    """Zero-shot CLIP with the dataset's own prompt."""

    trains = False
    uses_shots = False
    takes_multi_label = True
    config_node = "ZeroshotCLIP"

    def build_head(self) -> nn.Module:
        return FixedPrototypes(self.zero_shot_weights(), self.clip.logit_scale.detach().float().exp())


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """Zero-shot CLIP with an ensemble of prompts."""

    def templates(self) -> list[str]:
        ensemble = list(IMAGENET_TEMPLATES_SELECT)
        return ensemble if self.dm.dataset.ensemble_templates else [*ensemble, self.template]
