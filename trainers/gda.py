"""GDA: zero-shot logits plus a Gaussian discriminant analysis of the shots, in closed form.

Paper: A Hard-to-Beat Baseline for Training-Free CLIP-based Adaptation, https://arxiv.org/abs/2402.04087

    logits = exp(logit_scale) * f @ T.T + alpha * (f @ W.T + b),   W = mu P,   b_k = -log K - mu_k . P mu_k / 2
    P = D * (S + trace(S) / (M - 1) * I)^-1,   S = sum over the M rows of (x - mu_y) (x - mu_y).T

f, T (K, D) and the rows x have length 1; the rows are the features of all augmented views, mu their class means. For
base classes the authors take P = pinv(mean of the classes' covariances): COVARIANCE per_class. A class without images
is described by the 64 rows nearest to its name, with 16 copies of the name: `gaussian_discriminant.fit_names`.

Recipe (the authors' repository): ten views; alpha is the first of 1e-4, 1e-3, ..., 100 that is most accurate on the
validation set (for ImageNet theirs is the test set). Without a validation set of its own, alpha is chosen here by
leaving out each training image in turn, in closed form; where a class has one image only, ALPHA is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, key, number, one_of
from dassl_lite.engine.methods.shared_keys import VIEW_KEYS
from dassl_lite.models import gaussian_discriminant as gaussian
from dassl_lite.utils import get_logger

logger = get_logger(__name__)

ALPHAS = [10.0**power for power in range(-4, 3)]
START = 0.1  # kept if every alpha is wrong about every image


class GaussianHead(nn.Module):
    """Zero-shot logits plus alpha times those of a discriminant, empty until `fill` or until a checkpoint is loaded.

    Args:
        text_features: T (K, D), of length 1.
        scale: exp(logit_scale).
    """

    is_linear = True
    class_rows = ("text_features", "weight", "bias")
    text_features: Tensor
    weight: Tensor
    bias: Tensor
    alpha: Tensor
    rows: Tensor  # (M, D), which describe classes without images

    def __init__(self, text_features: Tensor, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("text_features", text_features)
        self.register_buffer("weight", torch.zeros_like(text_features))
        self.register_buffer("bias", text_features.new_zeros(len(text_features)))
        self.register_buffer("alpha", torch.tensor(0.0))
        self.register_buffer("rows", text_features.new_zeros(0, text_features.shape[1]))

    def prepare_to_load(self, weights: Mapping[str, Tensor], meta: Mapping[str, Any], path: Path) -> None:
        """Make room for as many rows as a checkpoint has."""
        self.rows = self.rows.new_zeros(len(weights["rows"]) if "rows" in weights else 0, self.rows.shape[1])

    def fill(self, rows: Tensor, discriminant: gaussian.Discriminant) -> None:
        self.rows = rows.to(self.text_features)
        self.weight.copy_(discriminant.weight)
        self.bias.copy_(discriminant.bias)

    def logits(self, image_features: Tensor) -> tuple[Tensor, Tensor]:
        """Zero-shot logits and those of the discriminant, (B, K) each, in float32: they are differences of large
        numbers."""
        with torch.autocast(image_features.device.type, enabled=False):
            features = F.normalize(image_features.float(), dim=-1)
            return self.scale * features @ self.text_features.t(), features @ self.weight.t() + self.bias

    def forward(self, image_features: Tensor) -> Tensor:
        zero_shot, scores = self.logits(image_features)
        return zero_shot + self.alpha * scores


@TRAINER_REGISTRY.register()
class GDA(FeatureTrainer):
    """Zero-shot CLIP plus a Gaussian discriminant of the shots; nothing is trained."""

    trains = False
    takes_ensemble = True
    takes_init_weights = False
    model_name = "gda"
    head: GaussianHead
    keys = (
        key(
            "ALPHA_BY",
            "val",
            one_of("val", "leave_one_out", "none"),
            "val (leave_one_out without a val set) | leave_one_out | none: ALPHA",
        ),
        key(
            "ALPHA",
            START,
            number(at_least=0, at_most=1e6),
            "weight of the discriminant where it is not chosen",
            lambda run: "" if run.method_cfg.ALPHA_BY == "none" else f"ALPHA_BY is {run.method_cfg.ALPHA_BY}",
        ),
        key(
            "COVARIANCE",
            "pooled",
            one_of("pooled", "per_class"),
            "pooled, with its trace on the diagonal | per_class: mean of the classes' own, as for base classes",
        ),
        key(
            "KEEP_ROWS",
            100_000,
            number(at_least=1, at_most=10_000_000),
            "most rows that a checkpoint keeps to describe other classes",
        ),
        *VIEW_KEYS,
    )

    def build_head(self) -> nn.Module:
        return GaussianHead(self.zero_shot_weights(), self.clip.logit_scale.exp().item())

    @torch.no_grad()
    def fit(self) -> None:
        """Fit the discriminant to all views of the shots, then choose alpha."""
        node, shots = self.method_cfg, self.training_set(augmented=True, views=self.method_cfg.AUGMENT_EPOCH)
        views, labels = F.normalize(shots.views, dim=-1), shots.labels
        rows, text = views.flatten(0, 1), self.head.text_features
        per_class = node.COVARIANCE == "per_class"
        found = gaussian.fit(rows, labels.repeat(len(views)), text, per_class=per_class)
        kept = rows[:: -(-len(rows) // node.KEEP_ROWS)]
        self.head.fill(kept, found)
        self.head.alpha.fill_(self.choose_alpha(views, labels))

    def choose_alpha(self, views: Tensor, labels: Tensor) -> float:
        """The first most accurate alpha; the accuracies (percent) go into a file."""
        by, val = self.method_cfg.ALPHA_BY, self.selection_set() if self.method_cfg.ALPHA_BY == "val" else None
        if val is not None:
            zero_shot, scores = self.head.logits(val.features)
            labels = val.labels
        elif by == "none" or not self.can_leave_out(labels):
            logger.info(f"alpha {self.method_cfg.ALPHA:g} is used as configured")
            return float(self.method_cfg.ALPHA)
        else:
            by = self.tuned_on = "leave_one_out"
            queries = F.normalize(views.mean(dim=0), dim=-1)
            zero_shot = self.head.scale * queries @ self.head.text_features.t()
            scores = gaussian.leave_one_out(views, labels, self.head.text_features).to(zero_shot)
            measured = ~scores.isnan().any(dim=1)
            zero_shot, scores, labels = zero_shot[measured], scores[measured], labels[measured]
        correct = [((zero_shot + alpha * scores).argmax(dim=1) == labels).double().mean().item() for alpha in ALPHAS]
        best = max(correct)
        alpha = ALPHAS[correct.index(best)] if best else START
        logger.info(f"alpha {alpha:g}, chosen by {by}: accuracy {100 * best:.2f}%")
        found = {"alpha": alpha, "by": by, "alphas": ALPHAS, "accuracies": [100 * share for share in correct]}
        self.write_found(found, "search.json")
        return alpha

    def can_leave_out(self, labels: Tensor) -> bool:
        """Whether an image can be left out that is not its class's only one."""
        return bool((labels.bincount() > 1).any())

    def adapt_state_dict(
        self, model: nn.Module, weights: dict[str, Tensor], meta: dict[str, Any], path: Path
    ) -> dict[str, Tensor]:
        """Classes that the checkpoint lacks are described by their names and the checkpoint's rows."""
        picked = super().adapt_state_dict(model, weights, meta, path)
        lacking = [row for row, stored in enumerate(self.class_match.rows) if stored < 0] if self.class_match else []
        if lacking and len(picked["rows"]):
            text = picked["text_features"][lacking]
            new = gaussian.fit_names(text.cpu(), picked["rows"].cpu())
            picked["weight"][lacking] = new.weight.to(picked["weight"])
            shift = math.log(len(lacking) / len(weights["bias"])) if len(lacking) < len(picked["bias"]) else 0.0
            picked["bias"][lacking] = (new.bias + shift).to(picked["bias"])  # as if -log K were the checkpoint's
            logger.info(f"New classes: {len(lacking)} are described by their names and the training images near them")
        return picked
