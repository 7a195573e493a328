"""VPT: visual prompt tuning, learned tokens in the inputs of the image encoder's blocks; the text is fixed.

Papers: Visual Prompt Tuning, https://arxiv.org/abs/2203.12119; with CLIP as in MaPLe, https://arxiv.org/abs/2210.03117

    vision block 0:  [class] [patches] ln_pre([u_1] ... [u_n]);  in blocks 1 .. depth-1 the u are replaced
    logits = exp(logit_scale) * normalise(image) @ normalise(text of "a photo of a <name>.").T

Recipe (the authors' repository): ViT-B/16, 8 tokens in all 12 blocks; SGD, lr 2.5e-3, batch 4, 5 epochs, the first at
1e-5. The text is encoded once.
"""

from __future__ import annotations

from torch import Tensor, nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, key, number, satisfying
from dassl_lite.engine.methods.shared_keys import depth_key
from dassl_lite.models.deep_prompts import VisionPrompts, prompt_vision, require_vision, within
from dassl_lite.models.heads import FixedPrototypes


class VPTHead(FixedPrototypes):
    """Zero-shot logits of images that were encoded with learned prompts, which are its state."""

    through_encoder = True

    def __init__(self, prototypes: Tensor, scale: Tensor, vision: VisionPrompts) -> None:
        super().__init__(prototypes, scale)
        self.vision = vision


@TRAINER_REGISTRY.register()
class VPT(FeatureTrainer):
    """Learned tokens in the blocks of the image encoder."""

    model_name = "VLPromptLearner"
    through_encoder = True
    needs_vit = True
    keys = (
        key("N_CTX_VISION", 8, number(at_least=1, at_most=1000), "tokens of a block"),
        depth_key("PROMPT_DEPTH_VISION", 12, "blocks of the image encoder with their own tokens"),
        key(
            "CTX_INIT",
            "a photo of a",
            satisfying(lambda text: "{" not in text, "words alone, like 'a photo of a'"),
            "the fixed words before a class's name",
            lambda run: "DATASET.DESCRIPTIONS stand in place of prompts" if run.cfg.DATASET.DESCRIPTIONS else "",
        ),
    )

    def templates(self) -> list[str]:
        words = self.method_cfg.CTX_INIT.replace("_", " ")
        return [f"{words} {{}}.".lstrip()]

    def build_head(self) -> nn.Module:
        node, clip = self.method_cfg, self.clip
        require_vision(clip)
        blocks = len(clip.visual.transformer.resblocks)
        depth = within(node.PROMPT_DEPTH_VISION, blocks, "image", f"TRAINER.{self.node_name()}.PROMPT_DEPTH_VISION")
        weights = self.text_rows().weights()  # before the image encoder has prompts
        vision = prompt_vision(clip, VisionPrompts(clip.visual, node.N_CTX_VISION, depth))
        return VPTHead(weights, clip.logit_scale.exp(), vision)

    def zero_shot(self, split: str | None = None) -> float | None:
        with self.clip.images.unprompted():
            return super().zero_shot(split)
