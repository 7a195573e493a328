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
from yacs.config import CfgNode

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer
from dassl_lite.engine.methods.key_rules import one_of, rules
from dassl_lite.models.heads import cosine_logits
from dassl_lite.models.prompts import load_text_projection, template_means
from dassl_lite.utils import get_logger

logger = get_logger(__name__)


class TaskResidual(nn.Module):
    """Cosine logits with a residual on the text features, or one shared residual on the image features.

    Args:
        base: (K, D) text features, not normalised.
        alpha: scale of the residual.
        logit_scale: CLIP's, before exp.
        on_image: add the residual, one row, to the (un-normalised) image features instead.
    """

    class_rows: tuple[str, ...] = ("base_text_features", "text_feature_residuals")
    base_text_features: torch.Tensor
    scale: torch.Tensor

    def __init__(self, base: torch.Tensor, alpha: float, logit_scale: torch.Tensor, on_image: bool = False) -> None:
        super().__init__()
        self.alpha, self.on_image = alpha, on_image
        self.register_buffer("base_text_features", base)
        self.register_buffer("scale", logit_scale.exp(), persistent=False)
        self.text_feature_residuals = nn.Parameter(torch.zeros_like(base[:1] if on_image else base))
        if on_image:
            self.class_rows = ("base_text_features",)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) for image features (B, D)."""
        residual = self.alpha * self.text_feature_residuals
        if self.on_image:
            return cosine_logits(image_features + residual, self.base_text_features, self.scale)
        return cosine_logits(image_features, self.base_text_features + residual, self.scale)


@TRAINER_REGISTRY.register()
class TaskRes(FeatureTrainer):
    """A learned residual on every class's text feature."""

    model_name = "prompt_learner"
    key_rules = rules(RESIDUAL_ON=one_of("text", "image"))
    # The reference's flag of tools/train.py -> config key, help.
    cli_flags: ClassVar = {
        "--enhanced-base": ("TRAINER.TaskRes.ENHANCED_BASE", "checkpoint of TaskResEnhance, a tuned text projection")
    }

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        super().extend_cfg(cfg)
        node = cfg.TRAINER[cls.node_name()]
        node.RESIDUAL_SCALE = 1.0  # alpha; the recipes use 0.5
        node.RESIDUAL_ON = "text"  # text (a row per class) | image (one shared row)
        node.ENHANCED_BASE = "none"  # checkpoint of a tuned text projection (see TaskResEnhance), or none
        # In the reference's yaml files, without an effect there or here:
        node.N_CTX = 16
        node.CSC = False
        node.CTX_INIT = ""
        node.CLASS_TOKEN_POSITION = "end"

    def templates(self) -> list[str]:
        """ImageNet: the ensemble and its own; all others: their own."""
        return [*self.dm.dataset.ensemble_templates, self.template]

    def build_head(self) -> nn.Module:
        node, projection = self.method_cfg, None
        if node.ENHANCED_BASE.lower() != "none":
            logger.info(f">> Use enhanced base from {node.ENHANCED_BASE}")
            projection = load_text_projection(node.ENHANCED_BASE, self.clip)
        with torch.no_grad():
            base = template_means(self.clip, self.classnames, self.templates(), projection, self.text_cache)
        on_image = node.RESIDUAL_ON == "image"
        return TaskResidual(base.float(), node.RESIDUAL_SCALE, self.clip.logit_scale.detach().float(), on_image)
