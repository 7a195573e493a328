"""ProGrad: CoOp whose steps never work against what zero-shot CLIP knows.

Paper: Prompt-aligned Gradient for Prompt Tuning, https://arxiv.org/abs/2205.14865

    g   = gradient of the cross-entropy
    g_z = gradient of -T^2 * mean over images of softmax(z / T) . log softmax(logits / T)
    g  <- g - LAMBDA * (g . u) u,  u = g_z / |g_z|,  if g . u < 0

z are zero-shot CLIP's logits with a hand-written prompt; g is one vector, also of all classes' contexts (CSC). Prompts
and logits are CoOp's. With CTX_INIT the words of the hand-written prompt in front of the name start the last context
vectors, and the others start at 0. Recipe (the authors' repository): CoOp's, with CTX_INIT; LAMBDA 0.8 for 8 and 16
shots of OxfordFlowers, DescribableTextures and EuroSAT (lambda08.yaml), otherwise 1.

Deviations: all tokens of the words are learned, where their code counts words; a g_z that is rounding noise beside g
(the start, where the context is made of exactly these words, and both models agree) has no direction, and is left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_lite.engine import TRAINER_REGISTRY, key, number
from dassl_lite.engine.methods.shared_keys import CONTEXT_LENGTH
from dassl_lite.models.prompt_learner import PromptLayout, lay_out
from dassl_lite.trainers.coop import CoOp
from dassl_lite.trainers.kgcoop import Taught
from dassl_lite.utils import UserError
from dassl_lite.utils.meters import unread

NOISE = 1e-6  # |g_z| / |g| up to which g_z is rounding noise


def project(gradient: Tensor, guide: Tensor, strength: float = 1.0) -> Tensor:
    """``gradient`` without the share ``strength`` of its part against ``guide``, of the same shape; any scale."""
    direction = guide / guide.norm().clamp(min=torch.finfo(guide.dtype).tiny)
    along = (gradient * direction).sum()
    kept = (along >= 0) | (guide.norm() <= NOISE * gradient.norm())
    return torch.where(kept, gradient, gradient - strength * along * direction)  # NaN, of float16, if the guide is


@TRAINER_REGISTRY.register()
class ProGrad(Taught, CoOp):
    """A learned context whose steps do not work against zero-shot CLIP."""

    config_node = ""
    takes_multi_label = False
    keys = (
        CONTEXT_LENGTH,
        key("CTX_INIT", True, None, "start the last vectors from the words of the template in front of the name"),
        key("LAMBDA", 1.0, number(at_least=0, at_most=100), "share of the opposing part that is taken away; 0: CoOp"),
        key(
            "T", 1.0, number(above=0, at_most=1000), "temperature at which logits are compared; more: all classes count"
        ),
    )

    def layout(self) -> PromptLayout:
        node, name = self.method_cfg, f"TRAINER.{self.node_name()}"
        (template,) = self.templates()
        words = template.partition("{}")[0].strip() if node.CTX_INIT else ""
        if node.CTX_INIT and not self.clip.tokenizer.encode(words):
            raise UserError(
                f"template '{template}' has no words in front of the class name to start from; set {name}.CTX_INIT "
                "False, or DATASET.TEMPLATE to another one"
            )
        position, specific = node.CLASS_TOKEN_POSITION, node.CSC
        return lay_out(
            self.clip,
            self.classnames,
            node.N_CTX,
            words,
            position=position,
            class_specific=specific,
            fill=True,
            node=name,
        )

    def batch_loss(self, image_features: Tensor, logits: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy, and distance from zero-shot CLIP's probabilities (2,)."""
        temperature = self.method_cfg.T
        zero_shot = self.head.scale * F.normalize(image_features, dim=-1) @ self.teacher.t()
        found, wanted = F.log_softmax(logits / temperature, dim=-1), F.softmax(zero_shot / temperature, dim=-1)
        distance = -(temperature**2) * (wanted * found).sum(dim=-1).mean()
        return torch.stack([self.loss(logits, label), distance])

    def compute_gradients(self, loss: Tensor, keep_graph: bool = False) -> None:
        own, distance = loss[0], loss[1]
        super().compute_gradients(distance, keep_graph=True)
        guides = {}
        for parameter in self.head.parameters():
            guides[parameter], parameter.grad = parameter.grad, None
        super().compute_gradients(own, keep_graph)
        for parameter, guide in guides.items():
            parameter.grad = project(parameter.grad, guide, self.method_cfg.LAMBDA)

    def loss_summary(self, loss: Tensor) -> dict[str, float | Tensor]:
        return dict(zip(("loss", "distance"), map(unread, loss), strict=True))
