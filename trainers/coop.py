"""CoOp: context optimisation, learned vectors instead of a prompt's words.

Paper: Learning to Prompt for Vision-Language Models, https://arxiv.org/abs/2109.01134

    prompt_k = [v_1] ... [v_n] [name of class k] .        or the name in the middle or in front
    logits = exp(logit_scale) * normalise(image) @ normalise(text_encoder(prompt_k)).T

The n vectors are shared by all classes; with CSC, each class has its own. Recipe (the authors' repository): SGD,
batch 32, lr 2e-3, 16 vectors drawn with standard deviation 0.02, name at the end; 50 epochs for 1 shot, 100 for 2
and 4, 200 for 8 and 16; ImageNet 50.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn
from yacs.config import CfgNode

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, key, one_of
from dassl_lite.engine.contract.keys import Key
from dassl_lite.engine.methods.shared_keys import (
    CONTEXT_KEYS,
    LOSS_KEYS,
    TEXT_ENCODER_KEYS,
    prompt_layout,
    text_encoder_options,
)
from dassl_lite.models.prompt_learner import POSITIONS, PromptLayout, PromptLearner
from dassl_lite.utils import UserError, get_logger

logger = get_logger(__name__)


@TRAINER_REGISTRY.register()
class CoOp(FeatureTrainer):
    """A learned context for all classes, or one per class; methods that learn it otherwise derive from this one."""

    model_name = "prompt_learner"
    config_node = "COOP"
    through_encoder = True
    takes_multi_label = True
    keys: ClassVar[Sequence[Key]] = (
        *CONTEXT_KEYS,
        key("CSC", False, None, "class-specific context: each class learns its own"),
        key("CLASS_TOKEN_POSITION", "end", one_of(*POSITIONS), "end | middle | front: where the class name stands"),
        *TEXT_ENCODER_KEYS,
        *LOSS_KEYS,
    )

    def check_cfg(self, cfg: CfgNode) -> None:
        name = f"TRAINER.{self.node_name()}"
        node = cfg.TRAINER[self.node_name()]
        if node.CSC and node.CTX_INIT:
            raise UserError(
                f"{name}.CTX_INIT '{node.CTX_INIT}' starts one context for all classes, but {name}.CSC True asks for "
                f"one per class; set CSC False, or CTX_INIT {type(node.CTX_INIT)()!r}"
            )

    def layout(self) -> PromptLayout:
        """The prompts of the classes at hand."""
        node = self.method_cfg
        return prompt_layout(
            self.clip,
            self.classnames,
            node,
            self.node_name(),
            position=node.CLASS_TOKEN_POSITION,
            class_specific=node.CSC,
        )

    def build_head(self) -> nn.Module:
        node = self.method_cfg
        logger.info("Initializing class-specific contexts" if node.CSC else "Initializing a generic context")
        return PromptLearner(self.clip, self.layout(), class_specific=node.CSC, **text_encoder_options(node))
