"""PromptTrainer: methods that learn prompts, through the frozen text encoder.

The head is a `PromptLearner`: it maps image features (B, D) to logits (B, K) and computes the class weights on the
way. As the image encoder is frozen too, its features are extracted once, as for every FeatureTrainer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from dassl_lite.engine.methods.key_rules import number, rules, satisfying
from dassl_lite.engine.methods.text_trainer import TextTrainer
from dassl_lite.models.prompt_layout import PromptLayout, lay_out
from dassl_lite.models.prompt_learner import PromptLearner, require_same_context
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)


def _is_words(text: str) -> bool:
    return "{" not in text and (not text or bool(text.strip("_ ")))


class PromptTrainer(TextTrainer):
    """A FeatureTrainer whose head is a `PromptLearner`.

    Learned parameters are in float32 in every precision; PREC fp16 and bf16 are those of the two encoders. (The
    reference learns in fp16 where it encodes in fp16.)
    """

    model_name = "prompt_learner"
    key_rules = rules(N_CTX=number(at_least=1), CTX_INIT=satisfying(_is_words, "words alone, like 'a photo of a'"))
    head: PromptLearner

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        super().extend_cfg(cfg)
        node = cfg.TRAINER[cls.node_name()]
        node.N_CTX = 16  # context vectors
        node.CTX_INIT = ""  # words to start from, such as "a photo of a"; their number then replaces N_CTX

    def lay_out(self, **options: Any) -> PromptLayout:
        """The prompts of this dataset's classes; options as `prompt_layout.lay_out` takes them."""
        node, name = self.method_cfg, f"TRAINER.{self.node_name()}"
        layout = lay_out(self.clip, self.classnames, node.N_CTX, node.CTX_INIT, keys=f"{name}.", **options)
        words = " ".join(node.CTX_INIT.replace("_", " ").split()) or " ".join("X" * layout.n_ctx)
        logger.info(f'Initial context: "{words}"')
        logger.info(f"Number of context words (tokens): {layout.n_ctx}")
        return layout

    def adapt_state_dict(
        self, model: nn.Module, weights: dict[str, torch.Tensor], meta: dict[str, Any], path: Path
    ) -> dict[str, torch.Tensor]:
        require_same_context(weights.get("ctx"), self.head.ctx, path, f"TRAINER.{self.node_name()}")
        return super().adapt_state_dict(model, weights, meta, path)

    def step_cost(self) -> int:
        """That of the widest product in the text encoder: what a step costs is many products, each shared out."""
        layout, width = self.head.layout, self.clip.text.width
        return (1 + layout.shared + sum(layout.lengths)) * width * 4 * width
