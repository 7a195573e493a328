"""TCP: prompts that also carry information from a hand-written prompt of their class, inserted half-way through the
text encoder.

Paper: TCP: Textual-based Class-aware Prompt Tuning for Visual-Language Model, https://arxiv.org/abs/2311.18231

    c_k = W2 q(W1 h_k + b1) + b2,   q(x) = x sigmoid(1.702 x),   W1 (D / 4, D), W2 (n width, D / 4)
    loss = cross-entropy + W * (1 - mean over classes of cos(t_k, h_k))

h_k are the text features of one hand-written prompt. A learned prompt begins with n vectors, the same for all classes;
in the input of block LAYER (from 0) of the text encoder the n vectors c_k take their places. t_k are its features, and
the logits are CLIP's with them. c_k follow from the class name, so new classes have theirs.

Recipe (the authors' repository): Adam, lr 2e-3, batch 32, 50 epochs (ImageNet, SUN397: 25), n 4, W 8, random context,
which replaces the first four words of the dataset's template; the rest of the template stays in the prompt
(", a type of pet.").

Deviations: N_CTX and W count; in their code they are always 4 and 8. In a text encoder of fewer than nine blocks c_k
enter the last one, and the run says so; in their code such an encoder never sees them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dassl_lite.engine import TRAINER_REGISTRY, key, number
from dassl_lite.engine.methods.shared_keys import CONTEXT_KEYS, TEXT_ENCODER_KEYS, text_encoder_options
from dassl_lite.models.prompt_learner import PromptLayout, PromptLearner, lay_out
from dassl_lite.trainers.kgcoop import KnowledgeGuided
from dassl_lite.utils import UserError, get_logger

logger = get_logger(__name__)

PAPERS_LAYER = 8  # of 12
PLACES = 4  # words of a template that the context replaces, as in "a photo of a"


class ClassAwarePrompts(PromptLearner):
    """Cosine logits against the text features of prompts whose context becomes each class's own on the way.

    Args:
        clip, layout, options: as `PromptLearner` takes them; the name stands at the end.
        teacher: h (K, D).
        layer: number of the block of the text encoder, from 0.
    """

    teacher: Tensor

    def __init__(self, clip: Any, layout: PromptLayout, teacher: Tensor, layer: int, **options: Any) -> None:
        super().__init__(clip, layout, **options)
        hidden, self.layer = max(clip.embed_dim // 4, 1), layer
        linear1, linear2 = nn.Linear(clip.embed_dim, hidden), nn.Linear(hidden, layout.n_ctx * clip.text.width)
        self.meta_net = nn.ModuleDict({"linear1": linear1, "linear2": linear2})
        self.register_buffer("teacher", teacher, persistent=False)

    def class_prompts(self) -> Tensor:
        """c (K, n, W), in float32."""
        hidden = self.meta_net["linear1"](self.teacher)
        prompts: Tensor = self.meta_net["linear2"](hidden * torch.sigmoid(1.702 * hidden))
        return prompts.unflatten(-1, (self.layout.n_ctx, -1))

    def class_prototypes(self) -> Tensor:
        return self.encode(self.ctx, {self.layer: self.class_prompts()})


@TRAINER_REGISTRY.register()
class TCP(KnowledgeGuided):
    """A learned context, and vectors made of each class's name that replace it half-way."""

    model_name = "prompt_learner"
    keys = (
        *CONTEXT_KEYS,
        key(
            "LAYER",
            -1,
            number(at_least=-1, at_most=1000),
            "block of the text encoder, from 0, that the class's own vectors enter; -1: 8, or the last one",
        ),
        *TEXT_ENCODER_KEYS,
    )

    def layout(self) -> PromptLayout:
        """The prompts of the current classes: the context replaces the first words of a template."""
        node, tail = self.method_cfg, self.template_by("TCP input")
        if not tail:
            before, _, behind = self.template.partition("{}")
            tail = " ".join([*before.split()[PLACES:], "{}"]) + behind
        name = f"TRAINER.{self.node_name()}"
        return lay_out(self.clip, self.classnames, node.N_CTX, node.CTX_INIT, tail=tail, node=name)

    def layer(self) -> int:
        """The block that the class's own vectors enter."""
        wanted, depth = self.method_cfg.LAYER, self.clip.text.depth
        if wanted >= depth:
            raise UserError(
                f"TRAINER.{self.node_name()}.LAYER {wanted} is out of range: the text encoder has blocks 0 to "
                f"{depth - 1}; use -1 for the paper's, or the last one"
            )
        if wanted < 0 and depth <= PAPERS_LAYER:
            logger.info(f"The text encoder has {depth} blocks: class prompts enter the last, not number {PAPERS_LAYER}")
        return min(PAPERS_LAYER, depth - 1) if wanted < 0 else int(wanted)

    def build_head(self) -> nn.Module:
        options = text_encoder_options(self.method_cfg)
        return ClassAwarePrompts(self.clip, self.layout(), self.teacher, self.layer(), **options)
