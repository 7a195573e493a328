"""CLIP-Adapter: a small bottleneck on CLIP's features, mixed with what it adapts.

Paper: CLIP-Adapter: Better Vision-Language Models with Feature Adapters, https://arxiv.org/abs/2110.04544

    f' = ratio * A(f) + (1 - ratio) * f,   A(f) = relu(relu(f W1) W2),   W1 (D, D / reduction), no bias
    logits = exp(logit_scale) * normalise(f') @ normalise(t').T

f are the un-normalised image features; t, the text features of the dataset's own prompt, may have an adapter too.
Recipe (the authors' repository): CoOp's settings (SGD, batch 32, lr 2e-3, 200 epochs; ImageNet 50), ratio 0.2,
reduction 4, image side only. The paper searches the ratio by dataset: ImageNet 0.2, DTD 0.6.
"""

from __future__ import annotations

import torch
from torch import nn
from yacs.config import CfgNode

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer
from dassl_lite.engine.methods.key_rules import number, one_of, rules
from dassl_lite.models.heads import cosine_logits
from dassl_lite.models.prompts import fill_templates, text_features


def bottleneck(width: int, reduction: int) -> nn.Sequential:
    """D -> D / reduction -> D with a ReLU after both and no bias."""
    hidden = max(width // reduction, 1)
    down, up = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
    return nn.Sequential(down, nn.ReLU(), up, nn.ReLU())


class FeatureAdapters(nn.Module):
    """Cosine logits of adapted features. The state is the adapters' alone, so it fits any classes.

    Args:
        text_features: (K, D), not normalised.
        scale: exp(logit_scale), a scalar.
        ratio, text_ratio: share of the adapter's output in the image and in the text features; 0: no adapter there.
        reduction: D over the bottleneck's width.
    """

    text_features: torch.Tensor

    def __init__(
        self, text_features: torch.Tensor, scale: float, ratio: float, text_ratio: float, reduction: int
    ) -> None:
        super().__init__()
        self.scale, self.ratio, self.text_ratio = scale, ratio, text_ratio
        self.register_buffer("text_features", text_features, persistent=False)
        self.fc = bottleneck(text_features.shape[1], reduction) if ratio else None
        self.text_fc = bottleneck(text_features.shape[1], reduction) if text_ratio else None

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) for image features (B, D)."""
        image, text = image_features, self.text_features
        if self.fc is not None:
            image = self.ratio * self.fc(image) + (1 - self.ratio) * image
        if self.text_fc is not None:
            text = self.text_ratio * self.text_fc(text) + (1 - self.text_ratio) * text
        return cosine_logits(image, text, self.scale)


@TRAINER_REGISTRY.register()
class CLIP_Adapter(FeatureTrainer):  # noqa: N801 (the name under which the reference registers it)
    """Bottleneck adapters on the image features, the text features or both."""

    model_name = "clip_adapter"
    key_rules = rules(
        SIDE=one_of("image", "text", "both"),
        RATIO=number(above=0, at_most=1),
        TEXT_RATIO=number(above=0, at_most=1),
        REDUCTION=number(at_least=1),
    )

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        super().extend_cfg(cfg)
        node = cfg.TRAINER[cls.node_name()]
        node.SIDE = "image"  # image | text | both: which features have an adapter
        node.RATIO = 0.2  # share of the adapter's output in the image features
        node.TEXT_RATIO = 0.2  # the same in the text features
        node.REDUCTION = 4  # D over the width of the bottleneck

    def build_head(self) -> nn.Module:
        node, prompts = self.method_cfg, fill_templates(self.classnames, [self.template])
        with torch.no_grad():
            text = text_features(self.clip, prompts, self.text_cache).float()
        ratio = node.RATIO if node.SIDE != "text" else 0.0
        text_ratio = node.TEXT_RATIO if node.SIDE != "image" else 0.0
        return FeatureAdapters(text, self.clip.logit_scale.exp().item(), ratio, text_ratio, node.REDUCTION)
