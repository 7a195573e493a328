"""TaskRes: task residual tuning, a learned offset of every class's text feature.

Paper: Task Residual for Tuning Vision-Language Models, https://arxiv.org/abs/2211.10277

    t' = t + alpha * x,   logits = exp(logit_scale) * normalise(image) @ normalise(t').T

t (K, D) is the frozen base: the mean of un-normalised text features over the templates, class names verbatim; x starts
at 0. Recipe (the authors' repository): Adam, batch 256, lr 2e-3 (ImageNet 2e-4), 100 epochs for 1/2/4 shots and
200 for 8/16, alpha 0.5 (Flowers 1.0).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, key, one_of
from dassl_lite.engine.methods.shared_keys import LOSS_KEYS
from dassl_lite.models.heads import CosineHead
from dassl_lite.models.prompts import load_text_projection
from dassl_lite.utils import get_logger

logger = get_logger(__name__)

# Keys that the reference's yaml files set.
REFERENCE_KEYS = {"N_CTX": 16, "CSC": False, "CTX_INIT": "", "CLASS_TOKEN_POSITION": "end"}
NO_EFFECT = "no effect, in the reference neither"


class TaskResidual(CosineHead):
    """Cosine logits with a residual on the text features, or one shared residual on the image features.

    Args:
        base: (K, D) text features, not normalised.
        alpha: scale of the residual.
        logit_scale: CLIP's, before exp.
        on_image: add the residual, one row, to the (un-normalised) image features instead.
    """

    class_rows: tuple[str, ...] = ("base_text_features", "text_feature_residuals")
    base_text_features: torch.Tensor

    def __init__(self, base: torch.Tensor, alpha: float, logit_scale: torch.Tensor, on_image: bool = False) -> None:
        super().__init__(logit_scale.exp())
        self.alpha, self.on_image = alpha, on_image
        self.register_buffer("base_text_features", base)
        self.text_feature_residuals = nn.Parameter(torch.zeros_like(base[:1] if on_image else base))
        if on_image:
            self.class_rows = ("base_text_features",)

    @property
    def is_linear(self) -> bool:
        return not self.on_image

    def class_prototypes(self) -> torch.Tensor:
        base, residual = self.base_text_features, self.text_feature_residuals
        return base if self.on_image else base + self.alpha * residual

    def adapt(self, image_features: torch.Tensor) -> torch.Tensor:
        return image_features + self.alpha * self.text_feature_residuals if self.on_image else image_features


@TRAINER_REGISTRY.register()
class TaskRes(FeatureTrainer):
    """A learned residual on every class's text feature."""

    model_name = "prompt_learner"
    takes_multi_label = True
    class_residual = "text_feature_residuals"  # a row per class; report.py --residuals compares it with the difficulty
    keys = (
        key("RESIDUAL_SCALE", 1.0, None, "alpha; the recipes use 0.5"),
        key("RESIDUAL_ON", "text", one_of("text", "image"), "text (a row per class) | image (one shared row)"),
        key("ENHANCED_BASE", "none", None, "checkpoint of a tuned text projection (see TaskResEnhance), or none"),
        *LOSS_KEYS,
        *(key(name, default, None, NO_EFFECT, lambda run: NO_EFFECT) for name, default in REFERENCE_KEYS.items()),
    )
    # The reference's flag of tools/train.py -> config key, help.
    cli_flags: ClassVar = {
        "--enhanced-base": ("TRAINER.TaskRes.ENHANCED_BASE", "checkpoint of TaskResEnhance, a tuned text projection")
    }

    def templates(self) -> list[str]:
        """ImageNet: the ensemble and its own; other datasets: their own."""
        return [*self.dm.dataset.ensemble_templates, self.template]

    def build_head(self) -> nn.Module:
        node, projection = self.method_cfg, None
        if node.ENHANCED_BASE.lower() != "none":
            logger.info(f">> Use enhanced base from {node.ENHANCED_BASE}")
            projection = load_text_projection(node.ENHANCED_BASE, self.clip)
        with torch.no_grad():
            base = self.text_rows(verbatim=True, projected=projection is None).means()
            if projection is not None:
                base = self.clip.text.project(base, projection)
        on_image = node.RESIDUAL_ON == "image"
        return TaskResidual(base.float(), node.RESIDUAL_SCALE, self.clip.logit_scale.detach().float(), on_image)
