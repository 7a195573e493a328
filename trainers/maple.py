"""MaPLe: multi-modal prompts, where the image encoder's tokens are linear images of the text encoder's.

Paper: MaPLe: Multi-modal Prompt Learning, https://arxiv.org/abs/2210.03117

    text block i < J:    positions 1 .. n of the input are p_i (n, W_text); p_0 is the context, "a photo of a"
    vision block i < J:  the last n tokens of the input are p_i A_i + b_i (n, W_vision), through ln_pre for i = 0
    logits = exp(logit_scale) * normalise(image) @ normalise(text).T

The A_i are separate linear layers, those of i > 0 alike at the start. Recipe (the authors' repository): ViT-B/16, n 2,
J 9; SGD, lr 3.5e-3, batch 4, 5 epochs, the first at 1e-5; across datasets J 3, lr 2.6e-3, 2 epochs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer
from dassl_lite.engine.methods.shared_keys import deep_prompt_layout, depth_key, text_encoder_options, text_prompt_keys
from dassl_lite.models.deep_prompts import DeepPromptLearner, prompt_vision, require_vision, within


class CoupledPrompts(nn.Module):
    """Tokens of the image encoder's blocks, made from those of the text encoder's.

    Args:
        text: gives the text encoder's tokens (n, W_text), block by block.
        widths: W_text and W_vision.
        depth: J.
    """

    active = True

    def __init__(self, text: Callable[[], Sequence[Tensor]], widths: tuple[int, int], depth: int) -> None:
        super().__init__()
        self._text = text
        first, later = nn.Linear(*widths), nn.Linear(*widths)
        self.projections = nn.ModuleList([first, *(copy.deepcopy(later) for _ in range(depth - 1))])

    def forward(self) -> list[Tensor]:
        """The tokens (n, W_vision) of the blocks, from the first one on."""
        return [project(rows) for project, rows in zip(self.projections, self._text(), strict=True)]


class MaPLeHead(DeepPromptLearner):
    """Prompts of the text encoder, and the layers that make the image encoder's of them."""

    def __init__(self, clip: Any, layout: Any, depth: int, **options: Any) -> None:
        super().__init__(clip, layout, depth, **options)
        widths = clip.text.width, clip.visual.class_embedding.shape[-1]
        self.coupled = CoupledPrompts(lambda: (self.ctx, *self.deep), widths, depth)


@TRAINER_REGISTRY.register()
class MaPLe(FeatureTrainer):
    """Learned tokens in the blocks of the text encoder, and projections of them in the image encoder's."""

    model_name = "MultiModalPromptLearner"
    through_encoder = True
    config_node = "MAPLE"
    needs_vit = True
    keys = (
        *text_prompt_keys(2),
        depth_key("PROMPT_DEPTH", 9, "J, blocks of each encoder with their own tokens"),
    )

    def build_head(self) -> nn.Module:
        node, clip = self.method_cfg, self.clip
        require_vision(clip)
        layout = deep_prompt_layout(clip, self.classnames, node, self.node_name())
        for encoder, blocks in (("text", clip.text.depth), ("image", len(clip.visual.transformer.resblocks))):
            within(node.PROMPT_DEPTH, blocks, encoder, f"TRAINER.{self.node_name()}.PROMPT_DEPTH")
        head = MaPLeHead(clip, layout, node.PROMPT_DEPTH, **text_encoder_options(node))
        prompt_vision(clip, head.coupled)
        return head

    def zero_shot(self, split: str | None = None) -> float | None:
        with self.clip.images.unprompted():
            return super().zero_shot(split)
