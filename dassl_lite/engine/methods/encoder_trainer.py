"""EncoderTrainer: methods that train inside CLIP's encoders, for a number of steps.

The head still maps image features (B, D) to logits (B, K), but the features carry gradients where the method trains
the image encoder; then every step encodes its images. A method that trains the text encoder alone keeps to extracted
features, as any FeatureTrainer.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import torch
from yacs.config import CfgNode

from dassl_lite.engine.methods.key_rules import number, rules
from dassl_lite.engine.methods.text_trainer import TextTrainer
from dassl_lite.optim import build_lr_scheduler
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)


class EncoderTrainer(TextTrainer):
    """A FeatureTrainer whose encoders are trained."""

    key_rules = rules(STEPS_PER_SHOT=number(at_least=0))

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        super().extend_cfg(cfg)
        cfg.TRAINER[cls.node_name()].STEPS_PER_SHOT = 500  # length of the training; 0: OPTIM.MAX_EPOCH epochs

    # ---- images -------------------------------------------------------------------------------------------------

    @property
    def trains_images(self) -> bool:
        """Whether the image encoder is trained; known once the head is built."""
        return any(parameter.requires_grad for parameter in self.clip.visual.parameters())

    def _use_features(self) -> None:
        if self.trains_images:
            logger.info("The image encoder is trained: every step encodes its images, DATASET.FEATURES is not used")
        else:
            super()._use_features()

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Image features (B, D), with gradients where the image encoder is trained."""
        with self.autocast():
            return self.clip.encode_image(images.to(self.device))

    # ---- length -------------------------------------------------------------------------------------------------

    def build_model(self) -> None:
        self.epoch_steps = max(1, len(self.train_loader_x))
        self.total_steps = self.steps_to_train()
        self.max_epoch = math.ceil(self.total_steps / self.epoch_steps)
        super().build_model()

    def steps_to_train(self) -> int:
        """STEPS_PER_SHOT for every training image of a class; if it is 0, OPTIM.MAX_EPOCH epochs."""
        shots = self.cfg.DATASET.NUM_SHOTS
        if shots < 1:  # all images: as many as a class has on average
            shots = math.ceil(len(self.dm.dataset.train_x) / self.num_classes)
        return self.method_cfg.STEPS_PER_SHOT * shots or self.cfg.OPTIM.MAX_EPOCH * self.epoch_steps

    def build_schedule(self) -> Any:
        optim_cfg = self.cfg.OPTIM.clone()
        optim_cfg.defrost()
        optim_cfg.MAX_EPOCH = self.total_steps / self.epoch_steps  # the last epoch may be cut
        return build_lr_scheduler(self.optim, optim_cfg, self.epoch_steps if self.steps_by_batch else 1)

    def run_epoch(self) -> None:
        """As many batches as are left of the steps."""
        self.num_batches = self.epoch_steps
        self._run_batches(islice(self.train_loader_x, self.total_steps - self.epoch * self.epoch_steps))
