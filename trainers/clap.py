"""ZSLP and CLAP: a linear probe that starts from the class names; CLAP holds each class to its name.

Paper: A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models, https://arxiv.org/abs/2312.12730

    logits = exp(logit_scale) * normalise(f) @ normalise(w).T
    loss = cross-entropy [ + mean over classes of lambda_k * |w_k - t_k|^2 ]        CLAP: with the part in brackets

w (K, D) starts at t, the mean over templates of un-normalised text features, class names verbatim. lambda_k is the mean
probability that the first w gives the training images of class k for that class. Nothing is validated.

Recipe (the authors' repository): SGD, momentum 0.9, no weight decay, lr 0.1 with a cosine over 300 epochs after one at
1e-5, batch 256, twenty augmented views; here DATASET.FEATURES.VIEWS of them, which other methods share. An epoch draws
its batches from the rows of all views, but has only as many of them as one view has.

Deviations: lambda is part of a checkpoint; a class without images, whose lambda their code cannot compute, has 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, key, one_of
from dassl_lite.engine.contract.keys import Key
from dassl_lite.engine.methods.shared_keys import VIEW_KEYS
from dassl_lite.models.heads import CosineHead

CONSTRAINTS = (
    "l2",
    "l2-corrected",
    "l2-constant",
    "l2-balanced",
    "l2-adaptative",
    "cosine",
)  # as the authors spell them


class Prototypes(CosineHead):
    """Cosine logits against learned prototypes that are held to their starting point.

    Args:
        base: t (K, D), not normalised.
        scale: exp(logit_scale), a scalar.
        random: start at random.
    """

    class_rows = ("prototypes", "base_text_features", "strength", "step")
    base_text_features: Tensor
    strength: Tensor  # lambda (K,)
    step: Tensor  # (K,), of l2-adaptative: the last epoch's distances, by which the next one raises lambda

    def __init__(self, base: Tensor, scale: Tensor, random: bool = False) -> None:
        super().__init__(scale)
        self.prototypes = nn.Parameter(base.clone())
        self.class_rows_required = random
        if random:
            nn.init.kaiming_normal_(self.prototypes)
        self.register_buffer("base_text_features", base)
        self.register_buffer("strength", base.new_ones(len(base)))
        self.register_buffer("step", base.new_zeros(len(base)))

    def class_prototypes(self) -> Tensor:
        return self.prototypes

    def distances(self, cosine: bool = False) -> Tensor:
        """How far each prototype is from its text feature (K,)."""
        if cosine:
            return 1 - F.cosine_similarity(self.prototypes, self.base_text_features, dim=-1)
        return (self.prototypes - self.base_text_features).square().sum(dim=-1)


class Rows:
    """Batches of the rows of all views in a random order, but only as many as one view has.

    Args:
        features, labels: (M, D), not normalised, and (M,).
        size: batch size B.
        batches: number of batches.
        half: draw half of the rows, with replacement.
    """

    gives_features = True

    def __init__(self, features: Tensor, labels: Tensor, size: int, batches: int, half: bool = False) -> None:
        self.features, self.labels, self.size, self.batches, self.half = features, labels, size, batches, half

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Dicts with ``feature`` (B, D) and ``label`` (B,); NumPy draws, as for the authors."""
        count = len(self.labels)
        drawn = np.random.choice(count, count // 2) if self.half else np.arange(count)
        order = torch.from_numpy(drawn[np.random.rand(len(drawn)).argsort()]).to(self.labels.device)
        for rows in order.split(self.size)[: self.batches]:
            yield {"feature": self.features[rows], "label": self.labels[rows]}


@TRAINER_REGISTRY.register()
class ZSLP(FeatureTrainer):
    """A linear probe with cosine logits that starts from the class names."""

    fits_first = True
    model_name = "clap"
    head: Prototypes
    keys: ClassVar[Sequence[Key]] = (
        key("INIT", "zero_shot", one_of("zero_shot", "random"), "where the prototypes start: class names | at random"),
        key("TEXT_ROWS", False, None, "add as many rows of text features to the training rows, drawn at random"),
        *VIEW_KEYS,
    )

    def templates(self) -> list[str]:
        """ImageNet: the ensemble and its own; other datasets: their own."""
        return [*self.dm.dataset.ensemble_templates, self.template]

    def build_head(self) -> nn.Module:
        random = self.method_cfg.INIT == "random"
        return Prototypes(self.text_rows(verbatim=True).float().means(), self.clip.logit_scale.exp(), random)

    def fit(self) -> None:
        """Collect the rows, before the epochs."""
        shots, steps = self.training_set(augmented=True, views=self.method_cfg.AUGMENT_EPOCH), self.epoch_steps
        features, labels = shots.views.flatten(0, 1), shots.labels.repeat(len(shots.views))
        if with_text := self.method_cfg.TEXT_ROWS:
            text = self.text_rows(verbatim=True)
            drawn = torch.from_numpy(np.random.choice(len(text.values), len(features)))
            features = torch.cat([features, text.values.to(features)[drawn]])
            labels = torch.cat([labels, text.labels.cpu()[drawn].to(labels)])
        self.train_loader_x = Rows(features, labels, self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE, steps, with_text)
        self.hold(features, labels)

    def hold(self, features: Tensor, labels: Tensor) -> None:
        """Set how strongly the classes are held, from rows (M, D) and labels (M,); ZSLP does not hold them."""


@TRAINER_REGISTRY.register()
class CLAP(ZSLP):
    """The same, with each prototype held to its class name."""

    keys = (
        key(
            "CONSTRAINT",
            "l2",
            one_of(*CONSTRAINTS),
            "l2 | l2-corrected: lambda of mean 1 | l2-constant: the mean for all | l2-balanced: 1 for all | "
            "l2-adaptative: raised after every epoch | cosine",
        ),
    )

    @torch.no_grad()
    def hold(self, features: Tensor, labels: Tensor) -> None:
        own = self.head(features).softmax(dim=1)[torch.arange(len(labels)), labels]
        counts = labels.bincount(minlength=self.num_classes)
        sums = torch.zeros_like(self.head.strength).index_add(0, labels, own)
        strength = torch.where(counts > 0, sums / counts.clamp(min=1), 1.0)
        constraint = self.method_cfg.CONSTRAINT
        if constraint == "l2-corrected":
            strength = strength * len(strength) / strength.sum()
        elif constraint == "l2-constant":
            strength = strength.mean().expand_as(strength)
        elif constraint == "l2-balanced":
            strength = torch.ones_like(strength)
        self.head.strength.copy_(strength)

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        held = self.head.strength * self.head.distances(cosine=self.method_cfg.CONSTRAINT == "cosine")
        return super().loss(logits, label) + held.mean()

    @torch.no_grad()
    def run_epoch(self) -> None:
        with torch.enable_grad():
            super().run_epoch()
        if self.method_cfg.CONSTRAINT == "l2-adaptative":
            distances, head = self.head.distances(), self.head
            head.strength.copy_((head.strength + head.step * distances).clamp(min=0))
            head.step.copy_(distances)
