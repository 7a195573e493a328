"""CrossModalProbe: a linear probe for which the class names are further shots.

Paper: Multimodality Helps Unimodality: Cross-Modal Few-Shot Learning with Multimodal Models,
https://arxiv.org/abs/2301.06267

    logits = exp(logit_scale) * normalise(f) @ w.T,   f: image features and, in the other half of a batch, text features

w (K, D) starts at the text features' mean over templates, normalised; it has no bias and is not normalised again. HEAD
adapter puts 0.2 A(x) + 0.8 x between them, with CLIP-Adapter's bottleneck A. WISE_FT mixes the zero-shot weights into
those that are evaluated.

Recipe (the authors' repository): AdamW, 12800 steps, 50 of them warm-up, then a cosine; every prompt of a class is a
row. They look at the validation set after every 100th step (the first included) and keep the best, over twelve
settings of rate, decay and batch: TEST.FINAL_MODEL best_val does so for one (lr 1e-3, weight decay 0.01, batch 32).
Here an epoch ends where they look, the steps after the last look are left out, and sets smaller than half a batch are
used whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, key, number, one_of
from dassl_lite.optim import build_lr_scheduler
from dassl_lite.trainers.clip_adapter import bottleneck

ADAPTED, REDUCTION = 0.2, 4


class CrossModalHead(nn.Module):
    """A linear layer without bias on features of length 1, of images or of texts.

    Args:
        zero_shot: (K, D), of length 1.
        scale: exp(logit_scale).
        random: start at random, not at zero-shot.
        adapter: adapt the features first.
        wise_ft: share of the zero-shot weights in what is evaluated.
    """

    class_rows = ("weight", "zero_shot_weights")
    zero_shot_weights: Tensor

    def __init__(self, zero_shot: Tensor, scale: float, random: bool, adapter: bool, wise_ft: float) -> None:
        super().__init__()
        self.scale, self.wise_ft, self.class_rows_required = scale, wise_ft, random
        self.weight = nn.Parameter(zero_shot.clone())
        if random:
            nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as nn.Linear
        self.adapter = bottleneck(zero_shot.shape[1], REDUCTION) if adapter else None
        self.register_buffer("zero_shot_weights", zero_shot)

    @property
    def is_linear(self) -> bool:
        return self.adapter is None

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K) for features (B, D)."""
        features = F.normalize(features, dim=-1)
        if self.adapter is not None:
            features = ADAPTED * self.adapter(features) + (1 - ADAPTED) * features
        mixed = self.wise_ft and not self.training
        weight = torch.lerp(self.weight, self.zero_shot_weights, self.wise_ft) if mixed else self.weight
        return self.scale * features @ weight.t()


class Draws:
    """Batches of rows from several sets, each shuffled by itself and gone through again and again.

    Args:
        sets: features (M, D) and labels (M,) of each set, and how many of its rows a batch takes.
        length: tells how many batches come next.
    """

    gives_features = True

    def __init__(self, sets: list[tuple[Tensor, Tensor, int]], length: Callable[[], int]) -> None:
        self.sets, self.length = sets, length

    def __len__(self) -> int:
        return self.length()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Dicts with ``feature`` (B, D) and ``label`` (B,); all rows are drawn before the first."""
        drawn = []
        for _, labels, size in self.sets:
            passes = self.passes(len(labels), size)
            drawn.append(torch.stack([next(passes) for _ in range(len(self))]).to(labels.device))
        for rows in zip(*drawn, strict=True):
            chosen = list(zip(rows, self.sets, strict=True))
            yield {
                "feature": torch.cat([features[own] for own, (features, _, _) in chosen]),
                "label": torch.cat([labels[own] for own, (_, labels, _) in chosen]),
            }

    def passes(self, count: int, size: int) -> Iterator[Tensor]:
        """Rows of a set, ``size`` at a time, without end; what is left of a pass is dropped."""
        while True:
            yield from torch.randperm(count)[: count // size * size].split(size)


@TRAINER_REGISTRY.register()
class CrossModalProbe(FeatureTrainer):
    """A linear probe on image and text features."""

    takes_ensemble = True
    fits_first = True
    model_name = "cross_modal_probe"
    keys = (
        key("INIT", "zero_shot", one_of("zero_shot", "random"), "where the weights start: class names | at random"),
        key("HEAD", "linear", one_of("linear", "adapter"), "linear | adapter: a bottleneck comes before the weights"),
        key("TEXT_SHOTS", True, None, "half of each batch are text features; False: images only"),
        key("ITERATIONS", 12_800, number(at_least=1, at_most=10_000_000), "steps, with OPTIM's schedule over them"),
        key("EVAL_EVERY", 100, number(at_least=1, at_most=10_000_000), "steps of an epoch; the first one has one step"),
        key("WISE_FT", 0.0, number(at_least=0, at_most=1), "share of the zero-shot weights in what is evaluated"),
    )

    @property
    def epoch_steps(self) -> int:
        return int(self.method_cfg.EVAL_EVERY)

    def steps_to_train(self) -> int:
        epochs = 1 + (self.method_cfg.ITERATIONS - 1) // self.epoch_steps
        return epochs * self.epoch_steps

    def length_key(self) -> str:
        return "ITERATIONS"

    def build_schedule(self) -> Any:
        """With OPTIM.SCHEDULE_UNIT batch, over ITERATIONS; OPTIM.WARMUP_EPOCH then counts steps."""
        if not self.steps_by_batch:
            return super().build_schedule()
        optim_cfg = self.cfg.OPTIM.clone()
        optim_cfg.defrost()
        optim_cfg.MAX_EPOCH = self.method_cfg.ITERATIONS
        return build_lr_scheduler(self.optim, optim_cfg, 1)

    def build_head(self) -> nn.Module:
        node, zero_shot = self.method_cfg, F.normalize(self.text_rows().float().means(), dim=-1)
        scale = self.clip.logit_scale.exp().item()
        return CrossModalHead(zero_shot, scale, node.INIT == "random", node.HEAD == "adapter", node.WISE_FT)

    def fit(self) -> None:
        """Collect the rows of both kinds, before the epochs."""
        shots, size = self.training_set(augmented=True), self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        rows = [(shots.views.flatten(0, 1), shots.labels.repeat(len(shots.views)))]
        if self.method_cfg.TEXT_SHOTS:
            text = self.text_rows().float()
            rows.append((text.values.to(self.device), text.labels.to(self.device)))
        size = max(size // len(rows), 1)
        sets = [(features, labels, min(size, len(labels))) for features, labels in rows]
        self.train_loader_x = Draws(sets, lambda: self.epoch_steps if self.epoch else 1)
