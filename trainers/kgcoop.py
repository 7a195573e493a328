"""KgCoOp: CoOp whose classes stay close to what a hand-written prompt says of them.

Paper: Visual-Language Prompt Tuning with Knowledge-guided Context Optimization, https://arxiv.org/abs/2303.13283

    loss = cross-entropy + W * (1 - mean over classes of cos(t_k, h_k))

t_k are the text features of the learned prompts, h_k those of one hand-written prompt. Prompts and logits are CoOp's.
Recipe (the authors' repository): SGD, lr 2e-3, batch 128, 100 epochs, W 8, context from "a photo of a".

Deviations: other words than "a photo of a" may be given; words with CSC are refused, where their code leaves CSC out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, key, number
from dassl_lite.engine.contract.keys import Key
from dassl_lite.trainers.coop import CoOp

NEVER_USED = ("bias_vectors", "meta_net.linear1.weight", "meta_net.linear1.bias")  # in their files


class Taught(FeatureTrainer):
    """A method that compares what it learns with the text features of hand-written prompts."""

    through_encoder = True

    @cached_property
    def teacher(self) -> Tensor:
        """h (K, D), of length 1."""
        return self.zero_shot_weights().to(self.device)

    def prepare_loss(self) -> None:
        _ = self.teacher


class KnowledgeGuided(Taught):
    """The loss of a method whose head keeps the text features of its classes near those of hand-written prompts."""

    keys: ClassVar[Sequence[Key]] = (
        key("W", 8.0, number(at_least=0, at_most=1e6), "weight of the distance from the hand-written prompts"),
    )

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float | Tensor]:
        with self.head.evaluating():  # logits and distance come from the same text features
            return super().forward_backward(batch)

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        agreement = F.cosine_similarity(self.head.class_features(), self.teacher, dim=-1).mean()
        return super().loss(logits, label) + self.method_cfg.W * (1 - agreement)


@TRAINER_REGISTRY.register()
class KgCoOp(KnowledgeGuided, CoOp):
    """A learned context that keeps each class near its hand-written prompt."""

    config_node = ""
    takes_multi_label = False

    def adapt_state_dict(
        self, model: nn.Module, weights: dict[str, Tensor], meta: dict[str, Any], path: Path
    ) -> dict[str, Tensor]:
        used = {name: value for name, value in weights.items() if name not in NEVER_USED}
        return super().adapt_state_dict(model, used, meta, path)
