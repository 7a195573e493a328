"""TaskResEnhance: tunes CLIP's text projection on the task; the result is TaskRes' enhanced base.

Paper: Task Residual for Tuning Vision-Language Models, https://arxiv.org/abs/2211.10277, section on the enhanced
base classifier; the authors ship the files without the code.

    t = mean over templates of h @ W.T,   logits = exp(logit_scale) * normalise(image) @ normalise(t).T

h (W wide) is the frozen text encoder's output before its projection; W (D x W) starts as CLIP's projection and is
trained for 50 epochs. The checkpoint (``state_dict.weight``) is the value of TRAINER.TaskRes.ENHANCED_BASE.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer
from dassl_lite.models.heads import CosineHead


class TextProjection(CosineHead):
    """Cosine logits with a learned text projection; the only state is ``weight`` (D, W).

    Args:
        hidden: (K, W) text features before the projection, averaged over templates.
        projection: (W, D) CLIP's own.
        bias: (D,), added behind it and kept as it is (SigLIP); None if there is none.
        logit_scale: CLIP's, before exp.
    """

    hidden: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        hidden: torch.Tensor,
        projection: torch.Tensor,
        logit_scale: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> None:
        super().__init__(logit_scale.exp())
        self.weight = nn.Linear(projection.shape[0], projection.shape[1], bias=False).weight
        self.weight.data.copy_(projection.t())
        self.register_buffer("hidden", hidden, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def class_prototypes(self) -> torch.Tensor:
        return F.linear(self.hidden, self.weight, self.bias)


@TRAINER_REGISTRY.register()
class TaskResEnhance(FeatureTrainer):
    """Trains the enhanced base of TaskRes: CLIP's text projection, tuned on the task."""

    model_name = "enhanced_base"
    standalone = False

    def templates(self) -> list[str]:
        """As for TaskRes."""
        return [*self.dm.dataset.ensemble_templates, self.template]

    def build_head(self) -> nn.Module:
        hidden = self.text_rows(verbatim=True, projected=False).means()
        projection, bias = self.clip.text.projection.detach(), self.clip.text.projection_bias
        scale = self.clip.logit_scale.detach().float()
        return TextProjection(
            hidden.float(), projection.float(), scale, None if bias is None else bias.detach().float()
        )
