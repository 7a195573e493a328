"""LP++: a linear classifier plus each class's text feature times a learned number; step sizes come from the data.

Paper: LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP, https://arxiv.org/abs/2404.02285

    logits = f @ w.T + b + alpha * (f @ T.T),   loss: cross-entropy over all N training images

f, T (K, D) and the training features x_i have length 1; alpha (K,). w starts at the sum of a class's features, b at
random, alpha at 250 times the mean over classes of the mean cosine of a class's images with its name. Steps (the
paper's Lipschitz constants): 4 N / |X|^2 (largest singular value of X) for w and b, with momentum 0.9;
N / (4 max_k sum_i (x_i . t_k)^2) for alpha, after every tenth epoch.

Recipe (the authors' repository): one augmented view, 300 epochs of one step; the last of the epochs that are best on
the validation set. Without one: the last epoch. Their code never clears alpha's gradient, so a step takes the sum over
all epochs so far: ALPHA_GRADIENT accumulated. The default takes the last gradient, which is no worse on images that
were neither trained nor tuned on (92.54 against 92.50 %, real features, 1, 4 and 8 shots).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, key, number, one_of
from dassl_lite.engine.contract.threads import threads_for
from dassl_lite.utils import get_logger

logger = get_logger(__name__)

MOMENTUM, ALPHA_EVERY, ALPHA_SCALE = 0.9, 10, 250.0


class BlendedLinear(nn.Linear):
    """A linear layer on features of length 1 plus weighted cosines with the class names.

    Args:
        text_features: T (K, D), of length 1.
    """

    class_rows = ("weight", "bias", "alpha", "text_features")
    text_features: Tensor
    alpha: Tensor

    def __init__(self, text_features: Tensor) -> None:
        super().__init__(text_features.shape[1], len(text_features))
        self.requires_grad_(False)  # `Descent` steps
        self.register_buffer("text_features", text_features)
        self.register_buffer("alpha", text_features.new_ones(len(text_features)))

    def prepare_to_load(self, weights: Mapping[str, Tensor], meta: Mapping[str, Any], path: Path) -> None:
        """A class that the checkpoint lacks has its name alone, weighted like the others on average."""
        self.weight.zero_()
        self.bias.zero_()
        if "alpha" in weights:
            self.alpha.fill_(weights["alpha"].mean().item())

    def forward(self, image_features: Tensor) -> Tensor:
        features = F.normalize(image_features, dim=-1)
        return super().forward(features) + self.alpha * (features @ self.text_features.t())


class Descent:
    """Gradient descent on a `BlendedLinear` with step sizes from Lipschitz constants.

    Args:
        head: whose weights start here.
        features, labels: x (N, D) of length 1, and (N,).
        accumulate: let alpha's gradient pile up over the epochs.
    """

    def __init__(self, head: BlendedLinear, features: Tensor, labels: Tensor, accumulate: bool) -> None:
        self.head, self.features, self.labels, self.accumulate = head, features, labels, accumulate
        self.cosines, self.targets = features @ head.text_features.t(), F.one_hot(labels, len(head.alpha)).to(features)
        count = len(labels)
        self.lr = 4 * count / torch.linalg.matrix_norm(features, 2).square().item()
        self.alpha_lr = count / (4 * self.cosines.square().sum(dim=0).max().item())
        self.momentum = torch.zeros_like(head.weight), torch.zeros_like(head.bias)
        self.alpha_gradient = torch.zeros_like(head.alpha)
        head.weight.copy_(self.targets.t() @ features)
        of_class = (self.targets * self.cosines).sum(dim=0) / self.targets.sum(dim=0)  # NaN without images
        head.alpha.fill_(ALPHA_SCALE * of_class.nanmean())

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the loss with respect to weight (K, D), bias (K,) and alpha (K,)."""
        wrong = (self.head(self.features).softmax(dim=1) - self.targets) / len(self.labels)
        return wrong.t() @ self.features, wrong.sum(dim=0), (wrong * self.cosines).sum(dim=0)

    def step(self, epoch: int) -> None:
        *gradients, alpha = self.gradients()
        for momentum, gradient, weights in zip(
            self.momentum, gradients, (self.head.weight, self.head.bias), strict=True
        ):
            momentum.mul_(MOMENTUM).add_(gradient)
            weights.sub_(self.lr * momentum)
        self.alpha_gradient = self.alpha_gradient + alpha if self.accumulate else alpha
        if (epoch + 1) % ALPHA_EVERY == 0:
            self.head.alpha.sub_(self.alpha_lr * self.alpha_gradient)


@TRAINER_REGISTRY.register()
class LPPlusPlus(FeatureTrainer):
    """A linear probe that blends in the class names, with step sizes from the data."""

    trains = False
    takes_ensemble = True
    takes_init_weights = False  # the shots say where it starts
    model_name = "lp_plus_plus"
    head: BlendedLinear
    keys = (
        key("EPOCHS", 300, number(at_least=1, at_most=1_000_000), "steps over all training images"),
        key(
            "ALPHA_GRADIENT",
            "last",
            one_of("last", "accumulated"),
            "alpha's step: the epoch's gradient | the sum over all epochs, as in the authors' code",
        ),
    )

    def build_head(self) -> nn.Module:
        return BlendedLinear(self.zero_shot_weights())

    @torch.no_grad()
    def fit(self) -> None:
        """Descend, and go back to the last of the epochs that are best on the validation set."""
        shots, head, val = self.training_set(augmented=True), self.head, self.selection_set()
        features = F.normalize(shots.features, dim=-1)
        descent = Descent(head, features, shots.labels, self.method_cfg.ALPHA_GRADIENT == "accumulated")
        best, best_epoch, kept = -1.0, self.method_cfg.EPOCHS, {}
        with threads_for(features.numel() * len(head.alpha)):
            for epoch in range(self.method_cfg.EPOCHS):
                descent.step(epoch)
                if val is None:
                    continue
                accuracy = (head(val.features).argmax(dim=1) == val.labels).double().mean().item()
                if accuracy >= best:
                    best, best_epoch = accuracy, epoch + 1
                    kept = {name: value.clone() for name, value in head.state_dict().items()}
        if val is not None:
            head.load_state_dict(kept)
            logger.info(f"Epoch {best_epoch} is kept: accuracy on the *val* set {100 * best:.2f}%")
