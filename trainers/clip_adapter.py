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

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, idle_if, key, number, one_of
from dassl_lite.models.heads import CosineHead


def bottleneck(width: int, reduction: int) -> nn.Sequential:
    """D -> D / reduction -> D with a ReLU after both and no bias."""
    hidden = max(width // reduction, 1)
    down, up = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
    return nn.Sequential(down, nn.ReLU(), up, nn.ReLU())


class FeatureAdapters(CosineHead):
    """Cosine logits of adapted features. Its state is the adapters alone, so it fits any classes.

    Args:
        text_features: (K, D), not normalised.
        scale: exp(logit_scale), a scalar.
        ratio, text_ratio: share of the adapter's output in the image and text features; 0: no adapter.
        reduction: D over the bottleneck's width.
    """

    text_features: torch.Tensor

    def __init__(
        self, text_features: torch.Tensor, scale: torch.Tensor, ratio: float, text_ratio: float, reduction: int
    ) -> None:
        super().__init__(scale)
        self.ratio, self.text_ratio = ratio, text_ratio
        self.register_buffer("text_features", text_features, persistent=False)
        self.fc = bottleneck(text_features.shape[1], reduction) if ratio else None
        self.text_fc = bottleneck(text_features.shape[1], reduction) if text_ratio else None

    @property
    def is_linear(self) -> bool:
        return self.fc is None

    def class_prototypes(self) -> torch.Tensor:
        text = self.text_features
        if self.text_fc is None:
            return text
        return self.text_ratio * self.text_fc(text) + (1 - self.text_ratio) * text

    def adapt(self, image_features: torch.Tensor) -> torch.Tensor:
        if self.fc is None:
            return image_features
        return self.ratio * self.fc(image_features) + (1 - self.ratio) * image_features


@TRAINER_REGISTRY.register()
class CLIP_Adapter(FeatureTrainer):  # noqa: N801 (the name under which the reference registers it)
    """Bottleneck adapters on the image features, the text features or both."""

    model_name = "clip_adapter"
    keys = (
        key("SIDE", "image", one_of("image", "text", "both"), "image | text | both: which features have an adapter"),
        key(
            "RATIO",
            0.2,
            number(above=0, at_most=1),
            "share of the adapter's output in the image features",
            idle_if("SIDE", "text"),
        ),
        key("TEXT_RATIO", 0.2, number(above=0, at_most=1), "the same in the text features", idle_if("SIDE", "image")),
        key("REDUCTION", 4, number(at_least=1, at_most=100_000), "D over the width of the bottleneck"),
    )

    def build_head(self) -> nn.Module:
        node = self.method_cfg
        text = self.zero_shot_weights() if self.descriptions else self.text_rows().means().float()
        ratio = node.RATIO if node.SIDE != "text" else 0.0
        text_ratio = node.TEXT_RATIO if node.SIDE != "image" else 0.0
        return FeatureAdapters(text, self.clip.logit_scale.exp(), ratio, text_ratio, node.REDUCTION)
