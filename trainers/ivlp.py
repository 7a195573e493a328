"""IVLP: independent vision-language prompts, learned in the inputs of both encoders' blocks.

Papers: MaPLe, https://arxiv.org/abs/2210.03117; PromptSRC, https://arxiv.org/abs/2307.06948 (its base model)

    text block 0:    [start] [v_1] ... [v_n] [name] [.] [end];   in blocks 1 .. depth-1 the v are replaced
    vision block 0:  [class] [patches] ln_pre([u_1] ... [u_m]);  in blocks 1 .. depth-1 the u are replaced
    logits = exp(logit_scale) * normalise(image) @ normalise(text).T

Recipe (the authors' repository): ViT-B/16, 2 + 2 tokens in all 12 blocks, "a photo of a"; SGD, lr 3.5e-3, batch 4, 5
epochs, the first at 1e-5. Language alone (PROMPT_DEPTH_VISION 0): 4 tokens, lr 2.5e-3; its images are frozen, so their
features are cached.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, Key, idle_if, key, number
from dassl_lite.engine.methods.shared_keys import deep_prompt_layout, depth_key, text_encoder_options, text_prompt_keys
from dassl_lite.models.deep_prompts import DeepPromptLearner, VisionPrompts, prompt_vision, require_vision, within
from dassl_lite.models.image_tower import takes_prompts
from dassl_lite.utils import get_logger

logger = get_logger(__name__)


def unprompted(run: Any) -> str:
    """Why the keys of the image encoder's prompts have no effect."""
    return "" if run.trains_images else "the image encoder has no prompts"


def prompt_keys(tokens: int, depth: int) -> tuple[Key, ...]:
    """The keys of a method with independent prompts in both encoders, with its defaults."""
    return (
        *text_prompt_keys(tokens, "N_CTX_TEXT"),
        key(
            "N_CTX_VISION",
            tokens,
            number(at_least=0, at_most=1000),
            "tokens of a block of the image encoder; 0: none",
            lambda run: unprompted(run) if run.method_cfg.N_CTX_VISION else "",
        ),
        depth_key("PROMPT_DEPTH_TEXT", depth, "blocks of the text encoder with their own tokens"),
        replace(
            depth_key(
                "PROMPT_DEPTH_VISION",
                -1,
                "blocks of the image encoder with tokens; 0: none; -1: PROMPT_DEPTH_TEXT, or none if it is not a ViT",
                at_least=-1,
            ),
            idle=idle_if("N_CTX_VISION", 0),
        ),
    )


@TRAINER_REGISTRY.register()
class IVLP(FeatureTrainer):
    """Learned tokens in the blocks of the text encoder and, independently, of the image encoder."""

    model_name = "VLPromptLearner"
    through_encoder = True
    head: DeepPromptLearner
    keys = prompt_keys(2, 12)

    def build_head(self) -> nn.Module:
        node, clip, name = self.method_cfg, self.clip, f"TRAINER.{self.node_name()}"
        layout = deep_prompt_layout(clip, self.classnames, node, self.node_name(), "N_CTX_TEXT")
        depth = node.PROMPT_DEPTH_TEXT
        if depth > 1:
            depth = within(depth, clip.text.depth, "text", f"{name}.PROMPT_DEPTH_TEXT")
        return DeepPromptLearner(clip, layout, depth, self._vision(name), **text_encoder_options(node))

    def _vision(self, name: str) -> VisionPrompts | None:
        """The image encoder's prompts; None if it has none."""
        node, clip = self.method_cfg, self.clip
        depth = node.PROMPT_DEPTH_VISION
        if depth < 0 and not takes_prompts(clip.model):
            logger.info(
                f"The image encoder of backbone {clip.name} is not a ViT that takes prompts: only the text has prompts"
            )
            return None
        depth = node.PROMPT_DEPTH_TEXT if depth < 0 else depth
        if not depth or not node.N_CTX_VISION:
            return None
        require_vision(clip, f", or {name}.PROMPT_DEPTH_VISION 0")
        depth = within(depth, len(clip.visual.transformer.resblocks), "image", f"{name}.PROMPT_DEPTH_VISION")
        return prompt_vision(clip, VisionPrompts(clip.visual, node.N_CTX_VISION, depth))

    def zero_shot(self, split: str | None = None) -> float | None:
        with self.clip.images.unprompted():
            return super().zero_shot(split)

    def zero_shot_by_class(self, split: str | None = None) -> tuple[Tensor, Tensor] | None:
        with self.clip.images.unprompted():
            return super().zero_shot_by_class(split)
