"""FeatureTrainer: methods that leave CLIP's image encoder frozen train on features that are extracted once.

A method is a head: a module that maps image features (B, D) to logits (B, K). It gives ``build_head`` and, where it
differs, ``loss``; everything else (CLIP, precision, cache, batches, schedule, files, remapping) happens here.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from yacs.config import CfgNode

from dassl_lite.data import describe, is_random
from dassl_lite.data.datum import Datum
from dassl_lite.data.feature_cache.loader import FeatureLoader
from dassl_lite.engine.contract.trainer import TrainerX
from dassl_lite.engine.methods.feature_source import fetch_features, holds_features, load_backbone
from dassl_lite.engine.methods.init_weights import load_init_weights
from dassl_lite.engine.methods.key_rules import check_keys, rules
from dassl_lite.engine.methods.precision import known_precision, precision_for
from dassl_lite.engine.methods.threads import threads_for
from dassl_lite.engine.parallel import distributed
from dassl_lite.engine.parallel.shared_inference import outputs
from dassl_lite.metrics import compute_accuracy
from dassl_lite.models.clip import CLIPBackbone
from dassl_lite.models.heads import cosine_logits
from dassl_lite.models.prompts import class_weights
from dassl_lite.optim import build_lr_scheduler, build_optimizer
from dassl_lite.utils.files import cache_root
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)


class EncoderWithHead(nn.Module):
    """Image encoder and head as one model: images (B, 3, H, W) to logits (B, K)."""

    def __init__(self, clip: CLIPBackbone, head: nn.Module) -> None:
        super().__init__()
        self.clip, self.head = clip, head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.clip.encode_image(images))


class FeatureTrainer(TrainerX):
    """A trainer whose model is a head over frozen image features."""

    takes_features = True
    takes_init_weights = True  # False: what it learns does not start from weights, so MODEL.INIT_WEIGHTS is refused
    model_name = "model"  # name the head is registered under: its folder of checkpoints
    config_node = ""  # node of cfg.TRAINER with the method's keys; empty: the class's name
    key_rules = rules(PREC=known_precision)  # what its keys may be; the bases' rules hold too

    # ---- what a method gives ------------------------------------------------------------------------------------

    def build_head(self) -> nn.Module:
        """The head, in float32 on any device; may use ``self.clip``, ``self.classnames``, ``self.templates()``."""
        raise NotImplementedError(f"{type(self).__name__} does not define build_head()")

    def loss(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Training loss, a scalar, of logits (B, K) and labels (B,)."""
        return F.cross_entropy(logits, label)

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Declare the method's own config keys under its node of ``cfg.TRAINER``; a method with more overrides it."""
        node = cfg.TRAINER[cls.node_name()] = CfgNode()
        node.PREC = "fp32"  # fp32 | amp | fp16 | bf16

    # ---- building -----------------------------------------------------------------------------------------------

    @classmethod
    def node_name(cls) -> str:
        """Name of the node of ``cfg.TRAINER`` with the method's keys."""
        return cls.config_node or cls.__name__

    @property
    def method_cfg(self) -> CfgNode:
        """The method's own config keys."""
        return self.cfg.TRAINER[self.node_name()]

    def check_cfg(self, cfg: CfgNode) -> None:
        check_keys(type(self), cfg.TRAINER[self.node_name()], f"TRAINER.{self.node_name()}")

    def build_model(self) -> None:
        self.precision = precision_for(self.method_cfg.PREC, self.device)
        self.clip: CLIPBackbone = load_backbone(self)
        self.head = self.build_head().to(self.device)
        load_init_weights(self)
        self.model = EncoderWithHead(self.clip, self.head)
        trainable = [name for name, p in self.head.named_parameters() if p.requires_grad]
        self.optim: Any = None
        self.sched: Any = None
        if trainable:
            more = f" and {len(trainable) - 4} more" if len(trainable) > 4 else ""
            logger.info(f"Trainable: {', '.join(trainable[:4])}{more}")
            self.optim = build_optimizer(self.head, self.cfg.OPTIM)
            self.sched = self.build_schedule()
        self.scaler = torch.amp.GradScaler(self.device.type) if self._needs_scaler() else None
        self.register_model(self.model_name, self.head, self.optim, self.sched)
        self._use_features()

    def build_schedule(self) -> Any:
        """The learning-rate schedule of ``self.optim``; a method whose length is not MAX_EPOCH overrides it."""
        return build_lr_scheduler(self.optim, self.cfg.OPTIM, len(self.train_loader_x) if self.steps_by_batch else 1)

    @property
    def steps_by_batch(self) -> bool:
        """Whether the learning rate changes after every batch, not only after an epoch's last."""
        return self.cfg.OPTIM.SCHEDULE_UNIT == "batch"

    @property
    def classnames(self) -> list[str]:
        """K class names in label order, as the dataset gives them."""
        return list(self.dm.dataset.classnames)

    @property
    def template(self) -> str:
        """The dataset's own prompt template, with {} for the class name."""
        return self.cfg.DATASET.TEMPLATE or self.dm.dataset.template

    @property
    def text_cache(self) -> Path | None:
        """Where text features of the frozen CLIP are kept; None without a cache (VIEWS 0) or without a CLIP."""
        return cache_root() / "text" if self.cfg.DATASET.FEATURES.VIEWS and not holds_features(self) else None

    def _needs_scaler(self) -> bool:
        return self.precision == "amp" and self.device.type == "cuda"

    # ---- features -----------------------------------------------------------------------------------------------

    def _use_features(self) -> None:
        """Put feature loaders in the place of the image loaders, unless VIEWS is 0 (and there are images)."""
        views = self.cfg.DATASET.FEATURES.VIEWS
        if views == 0 and not holds_features(self):
            return
        data, dm = self.dm.dataset, self.dm
        train_views = views if is_random(dm.tfm_train) else 1
        self.train_loader_x = self.feature_loader(dm.train_loader_x, data.train_x, dm.tfm_train, train_views)
        self.test_loader = self.feature_loader(dm.test_loader, data.test, dm.tfm_test, 1)
        self.val_loader = self.feature_loader(dm.val_loader, data.val, dm.tfm_test, 1)

    def feature_loader(
        self, loader: Any, items: Sequence[Datum] | None, transform: Any, views: int
    ) -> FeatureLoader | None:
        """Features of ``items`` in the order of ``loader``'s batches; kept on disk, unless VIEWS is 0."""
        if not items:
            return None
        return FeatureLoader(loader, items, partial(fetch_features, self, items, transform, views), self.device)

    @torch.no_grad()
    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Un-normalised image features (B, D) of images (B, 3, H, W), in the run's precision."""
        with self.autocast():
            return self.clip.encode_image(images.to(self.device))

    def autocast(self) -> Any:
        """The mixed-precision context of PREC amp; does nothing otherwise."""
        if self.precision != "amp":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.float16 if self.device.type == "cuda" else torch.bfloat16)

    # ---- training and inference ---------------------------------------------------------------------------------

    def before_epoch(self) -> None:
        if isinstance(self.train_loader_x, FeatureLoader):
            self.train_loader_x.epoch = self.epoch

    def run_epoch(self) -> None:
        with threads_for(self.step_cost()) if isinstance(self.train_loader_x, FeatureLoader) else nullcontext():
            super().run_epoch()

    def step_cost(self) -> int:
        """Multiplications in the head's forward pass of a batch, about."""
        weights = sum(tensor.numel() for tensor in (*self.head.parameters(), *self.head.buffers()))
        return weights * self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        features, label = self.parse_batch_train(batch)
        with self.autocast():
            logits = self.head(features)
            loss = self.loss(logits.float(), label)
        self.model_backward_and_update(loss)
        summary = {"loss": loss.item(), "acc": compute_accuracy(logits, label)[0].item()}
        if self.steps_by_batch or self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return summary

    def model_backward_and_update(self, loss: torch.Tensor, names: Any = None) -> None:
        if self.scaler is None:
            super().model_backward_and_update(loss, names)
            return
        self.detect_anomaly(loss)
        self.model_zero_grad(names)
        self.scaler.scale(loss).backward()
        distributed.average_gradients(self._models.values())
        self.scaler.step(self.optim)
        self.scaler.update()

    def parse_batch_train(self, batch: dict[str, Any]) -> Any:
        """(image features (B, D) in float32, labels (B,)); images are encoded where the batch holds images."""
        features = batch["feature"] if "feature" in batch else self.encode_image(batch["img"])
        return features.float(), batch["label"].to(self.device)

    def parse_batch_test(self, batch: dict[str, Any]) -> Any:
        return self.parse_batch_train(batch)

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) for image features (B, D)."""
        with self.autocast():
            return self.head(input).float()

    @torch.no_grad()
    def zero_shot(self, split: str | None = None) -> float:
        """Accuracy in percent of CLIP without adaptation: the dataset's own template, cosine similarity."""
        loader = self.val_loader if (split or self.cfg.TEST.SPLIT) == "val" else self.test_loader
        weights = class_weights(self.clip, self.classnames, [self.template], self.text_cache).float().to(self.device)

        def infer(batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
            features, label = self.parse_batch_test(batch)
            return cosine_logits(features, weights, 1.0), label

        correct = total = 0
        for logits, label in outputs(loader, infer):
            correct += int((logits.argmax(-1) == label).sum())
            total += len(label)
        return 100.0 * correct / max(total, 1)

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def checkpoint_meta(self) -> dict[str, Any]:
        return {
            **super().checkpoint_meta(),
            "backbone": self.clip.name,
            "backbone_digest": self.clip.digest,
            "precision": self.clip.precision,
            "template": self.template,
            "transform": describe(self.dm.tfm_test),
        }
