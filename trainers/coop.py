"""CoOp: context optimisation, learned vectors in the place of a prompt's words.

Paper: Learning to Prompt for Vision-Language Models, https://arxiv.org/abs/2109.01134

    prompt_k = [v_1] ... [v_n] [name of class k] .        or the name in the middle, or in front
    logits = exp(logit_scale) * normalise(image) @ normalise(text_encoder(prompt_k)).T

The n vectors are shared by all classes or, with CSC, each class has its own. Recipe (the authors' repository): SGD,
batch 32, lr 2e-3, 16 vectors drawn with standard deviation 0.02, name at the end; 50 epochs for 1 shot, 100 for 2
and 4, 200 for 8 and 16; ImageNet 50.
"""

from __future__ import annotations

import torch
from torch import nn
from yacs.config import CfgNode

from dassl_lite.engine import TRAINER_REGISTRY
from dassl_lite.engine.methods.key_rules import one_of, rules
from dassl_lite.engine.methods.prompt_trainer import PromptTrainer
from dassl_lite.models.heads import cosine_logits
from dassl_lite.models.prompt_layout import POSITIONS
from dassl_lite.models.prompt_learner import PromptLearner
from dassl_lite.utils import UserError, get_logger

logger = get_logger(__name__)


class ContextHead(PromptLearner):
    """Cosine logits against the text features of the learned prompts."""

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) for image features (B, D)."""
        return cosine_logits(image_features, self.class_features(), self.scale)


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    """A learned context for all classes, or one for each."""

    config_node = "COOP"
    key_rules = rules(CLASS_TOKEN_POSITION=one_of(*POSITIONS))

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        super().extend_cfg(cfg)
        node = cfg.TRAINER[cls.node_name()]
        node.CSC = False  # class-specific context: each class learns its own
        node.CLASS_TOKEN_POSITION = "end"  # end | middle | front: where the class name stands

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node = cfg.TRAINER.COOP
        if node.CSC and node.CTX_INIT:
            raise UserError(
                f"TRAINER.COOP.CTX_INIT '{node.CTX_INIT}' starts one context for all classes, but TRAINER.COOP.CSC "
                "True asks for one per class; set CSC False, or CTX_INIT ''"
            )

    def build_head(self) -> nn.Module:
        csc = self.method_cfg.CSC
        logger.info("Initializing class-specific contexts" if csc else "Initializing a generic context")
        layout = self.lay_out(position=self.method_cfg.CLASS_TOKEN_POSITION, class_specific=csc)
        return ContextHead(self.clip, layout, class_specific=csc, **self.text_options())
