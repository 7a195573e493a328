"""CoCoOp: conditional context optimisation, a learned context that each image shifts.

Paper: Conditional Prompt Learning for Vision-Language Models, https://arxiv.org/abs/2203.05557

    f = normalise(image),   pi = relu(f W1 + b1) W2 + b2,   W1 (D, D / 16), W2 (D / 16, W)
    prompt_k(image) = [v_1 + pi] ... [v_n + pi] [name of class k] .
    logit_k = exp(logit_scale) * f . normalise(text_encoder(prompt_k(image)))

Every image has its own K prompts, so the text encoder runs once per image. Recipe (the authors' repository): SGD, lr
2e-3, batch 1, 10 epochs, context initialised with "a photo of a"; here any batch size works.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer
from dassl_lite.engine.methods.shared_keys import CONTEXT_KEYS, TEXT_ENCODER_KEYS, prompt_layout, text_encoder_options
from dassl_lite.models.prompt_learner import PromptLearner


class ConditionalHead(PromptLearner):
    """Cosine logits against the text features of prompts that depend on the image.

    Args:
        clip, layout, options: as `PromptLearner` takes them; the name stands at the end.
    """

    def __init__(self, clip: Any, layout: Any, **options: Any) -> None:
        super().__init__(clip, layout, **options)
        hidden = max(clip.embed_dim // 16, 1)
        linear1, linear2 = nn.Linear(clip.embed_dim, hidden), nn.Linear(hidden, clip.text.width)
        self.meta_net = nn.Sequential(OrderedDict(linear1=linear1, relu=nn.ReLU(), linear2=linear2))

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) for image features (B, D)."""
        image_features = F.normalize(image_features, dim=-1)
        shift = self.meta_net(image_features)
        text_features = F.normalize(self.encode(self.ctx + shift[:, None]).float(), dim=-1)
        return self.scale * torch.einsum("bd,bkd->bk", image_features, text_features)

    def step_cost(self, batch_size: int) -> int:
        return super().step_cost(batch_size) * batch_size


@TRAINER_REGISTRY.register()
class CoCoOp(FeatureTrainer):
    """A learned context that each image shifts."""

    model_name = "prompt_learner"
    through_encoder = True
    config_node = "COCOOP"
    keys = (*CONTEXT_KEYS, *TEXT_ENCODER_KEYS)

    def build_head(self) -> nn.Module:
        node = self.method_cfg
        layout = prompt_layout(self.clip, self.classnames, node, self.node_name())
        return ConditionalHead(self.clip, layout, **text_encoder_options(node))
