"""TextTrainer: methods whose gradients run through one of CLIP's encoders, mostly the text encoder.

Its head computes text features of all classes: in training at every step, in evaluation once.
"""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from dassl_lite.engine.methods.feature_trainer import FeatureTrainer
from dassl_lite.engine.methods.key_rules import number, rules
from dassl_lite.models.heads import ClassFeatures


class TextTrainer(FeatureTrainer):
    """A FeatureTrainer whose head is a `ClassFeatures`."""

    key_rules = rules(TEXT_CHUNK=number(at_least=0))
    head: ClassFeatures

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        super().extend_cfg(cfg)
        node = cfg.TRAINER[cls.node_name()]
        node.TEXT_CHUNK = 0  # classes in one go through the text encoder; 0: by memory
        node.TEXT_CHECKPOINT = False  # compute activations again in the backward pass: less memory, more time

    def text_options(self) -> dict[str, Any]:
        """How the text encoder is to save memory, as `TextTower` takes it."""
        return {"chunk": self.method_cfg.TEXT_CHUNK, "checkpoint": self.method_cfg.TEXT_CHECKPOINT}

    def test(self, split: str | None = None) -> float:
        with self.head.fixed():
            return super().test(split)

    def _needs_scaler(self) -> bool:
        """Gradients run through an encoder in half precision: with fp16 too, not only with amp."""
        return self.precision in ("amp", "fp16") and self.device.type == "cuda"
