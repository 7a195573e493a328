"""PromptTrainer: methods that learn prompts, through the frozen text encoder.

The head is a `PromptLearner`: it maps image features (B, D) to logits (B, K) and computes the class weights on the
way. In training that is every step; in evaluation it happens once. As the image encoder is frozen too, its features
are extracted once, as for every FeatureTrainer.
"""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from dassl_lite.engine.feature_trainer import FeatureTrainer
from dassl_lite.models.prompt_layout import PromptLayout, lay_out
from dassl_lite.models.prompt_learner import PromptLearner
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)


class PromptTrainer(FeatureTrainer):
    """A FeatureTrainer whose head is a `PromptLearner`.

    Learned parameters are in float32 in every precision; PREC fp16 and bf16 are those of the two encoders. (The
    reference learns in fp16 where it encodes in fp16.)
    """

    model_name = "prompt_learner"
    head: PromptLearner

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        super().extend_cfg(cfg)
        node = cfg.TRAINER[cls.config_node or cls.__name__]
        node.N_CTX = 16  # context vectors
        node.CTX_INIT = ""  # words to start from, such as "a photo of a"; their number then replaces N_CTX
        node.TEXT_CHUNK = 0  # classes in one go through the text encoder; 0: by memory
        node.TEXT_CHECKPOINT = False  # compute activations again in the backward pass: less memory, more time

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        name = f"TRAINER.{self.config_node or type(self).__name__}"
        node = cfg.TRAINER[self.config_node or type(self).__name__]
        if node.N_CTX < 1:
            raise UserError(f"{name}.N_CTX is {node.N_CTX}; it must be at least 1")
        if node.TEXT_CHUNK < 0:
            raise UserError(f"{name}.TEXT_CHUNK is {node.TEXT_CHUNK}; it must be 0 (chosen by memory) or more")
        if "{" in node.CTX_INIT or (node.CTX_INIT and not node.CTX_INIT.strip("_ ")):
            raise UserError(f"{name}.CTX_INIT is '{node.CTX_INIT}'; it must be words alone, like 'a photo of a'")

    def lay_out(self, **options: Any) -> PromptLayout:
        """The prompts of this dataset's classes; options as `prompt_layout.lay_out` takes them."""
        node = self.method_cfg
        layout = lay_out(self.clip, self.classnames, node.N_CTX, node.CTX_INIT, **options)
        words = " ".join(node.CTX_INIT.replace("_", " ").split()) or " ".join("X" * layout.n_ctx)
        logger.info(f'Initial context: "{words}"')
        logger.info(f"Number of context words (tokens): {layout.n_ctx}")
        return layout

    def text_options(self) -> dict[str, Any]:
        """How the text encoder is to save memory, as a `PromptLearner` takes it."""
        return {"chunk": self.method_cfg.TEXT_CHUNK, "checkpoint": self.method_cfg.TEXT_CHECKPOINT}

    def test(self, split: str | None = None) -> float:
        with self.head.fixed():
            return super().test(split)

    def step_cost(self) -> int:
        """That of the widest product in the text encoder: what a step costs is many products, each shared out."""
        layout, width = self.head.layout, self.clip.text.width
        return (1 + layout.shared + sum(layout.lengths)) * width * 4 * width

    def _needs_scaler(self) -> bool:
        """Gradients run through the text encoder in half precision: with fp16 too, not only with amp."""
        return self.precision in ("amp", "fp16") and self.device.type == "cuda"
