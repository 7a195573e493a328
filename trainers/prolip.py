"""ProLIP: the image encoder's last projection is trained, held to where it starts; the rest of CLIP is frozen.

Paper: CLIP's Visual Embedding Projector is a Few-shot Cornucopia, https://arxiv.org/abs/2410.05270

    logits = exp(logit_scale) * normalise(h @ W + b) @ T.T,   loss = cross-entropy + lambda * sum((W - W0)^2)

h (B, V) is the state before the projection W (V, D): a ViT's `visual.proj`, a ResNet's `attnpool.c_proj` with its
frozen bias b. T (K, D) are the class names' features, of length 1. The states are a second field of the feature cache.
Nothing learned belongs to a class, so a trained W serves any classes.

Recipe (the authors' repository): Adam, eps 1e-4, all images in a batch, one view after the other from the second on,
300 epochs with a cosine; lr 1e-5 and lambda one over the shots, without validation. SEARCH tries learning rates from
1e-2 to 1e-8 and lambdas from 10 to 0 and trains with the first that is best on the validation set. The authors take 300
views, here DATASET.FEATURES.VIEWS.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, key, number, one_of
from dassl_lite.engine.files.checkpoint import CheckpointStore
from dassl_lite.engine.methods.shared_keys import VIEW_KEYS, no_search
from dassl_lite.models.image_tower import Projection
from dassl_lite.optim import build_optimizer
from dassl_lite.utils import get_logger

logger = get_logger(__name__)

RATES = [10.0**-power for power in range(2, 9)]
LAMBDAS = (10.0, 1.0, 0.1, 0.01, 0.001, 0.0001, 0.0)


class ProjectedHead(nn.Module):
    """Cosine logits of states, which a trained projection maps to features.

    Args:
        projection: where it starts.
        text_features: T (K, D), of length 1.
        scale: exp(logit_scale).
    """

    start: Tensor
    bias: Tensor | None
    text_features: Tensor
    penalty: Tensor  # lambda

    def __init__(self, projection: Projection, text_features: Tensor, scale: float) -> None:
        super().__init__()
        self.scale = scale
        start, bias = projection.weight.detach().float(), projection.bias
        self.weight = nn.Parameter(start.clone(memory_format=torch.contiguous_format))
        self.register_buffer("start", start.clone(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone(), persistent=False)
        self.register_buffer("text_features", text_features, persistent=False)
        self.register_buffer("penalty", torch.tensor(0.0))

    def project(self, states: Tensor) -> Tensor:
        """Features (B, D) of states (B, V)."""
        return Projection(self.weight, self.bias)(states)

    def forward(self, states: Tensor) -> Tensor:
        return self.scale * F.normalize(self.project(states), dim=-1) @ self.text_features.t()

    def distance(self) -> Tensor:
        return (self.weight - self.start).square().sum()


class WholeViews:
    """Epochs of one batch: all images, in another view each time, the second one first.

    Args:
        views: states (V, N, W).
        labels: (N,).
        epoch: returns the current epoch.
    """

    gives_features = True

    def __init__(self, views: Tensor, labels: Tensor, epoch: Callable[[], int]) -> None:
        self.views, self.labels, self.epoch = views, labels, epoch
        self.batch_size = len(labels)

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield {"feature": self.views[(self.epoch() + 1) % len(self.views)], "label": self.labels}


def _penalty_is_computed(run: FeatureTrainer) -> str:
    return "" if run.method_cfg.LAMBDA_BY == "value" else f"LAMBDA_BY is {run.method_cfg.LAMBDA_BY}"


def _is_searched(run: FeatureTrainer) -> str:
    return "" if no_search(run) else "it is selected on the validation set (SEARCH is True)"


@TRAINER_REGISTRY.register()
class ProLIP(FeatureTrainer):
    """The image encoder's last projection is trained."""

    takes_ensemble = True
    takes_states = True
    fits_first = True
    model_name = "prolip"
    head: ProjectedHead
    keys = (
        key(
            "LAMBDA_BY",
            "shots",
            one_of("shots", "squared_shots", "value"),
            "1 / shots | 1 / shots^2 | value: LAMBDA",
            _is_searched,
        ),
        key(
            "LAMBDA",
            0.1,
            number(at_least=0, at_most=1e6),
            "penalty on the distance from the start",
            lambda run: _is_searched(run) or _penalty_is_computed(run),
        ),
        key("SEARCH", False, None, "select OPTIM.LR and the penalty on the validation set, in 49 trainings"),
        *VIEW_KEYS,
    )

    @property
    def epoch_steps(self) -> int:
        return 1

    def build_head(self) -> nn.Module:
        return ProjectedHead(self.clip.image_projection, self.zero_shot_weights(), self.clip.logit_scale.exp().item())

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        return super().loss(logits, label) + self.head.penalty * self.head.distance()

    def embed(self, input: Tensor) -> Tensor:
        return self.head.project(input)

    def fit(self) -> None:
        """Collect all images' states, and search, before the epochs."""
        shots = self.training_set(augmented=True, views=self.method_cfg.AUGMENT_EPOCH)
        self.train_loader_x = WholeViews(shots.views, shots.labels, lambda: self.epoch)
        node, per_class = self.method_cfg, len(shots.labels) / self.num_classes
        self.head.penalty.fill_(
            {"shots": 1 / per_class, "squared_shots": per_class**-2, "value": node.LAMBDA}[node.LAMBDA_BY]
        )
        val = self.selection_set() if node.SEARCH else None
        resumed = CheckpointStore(self.cfg.RESUME or self.output_dir).newest_common_epoch([self.model_name])
        if val is not None and resumed is None:  # a checkpoint has both
            self.search(val.features, val.labels)

    def search(self, features: Tensor, labels: Tensor) -> None:
        """Select learning rate and penalty on the validation set (on a tie the first); a file keeps all accuracies."""
        start, head, tried = self.head.weight.detach().clone(), self.head, []
        epochs = self.cfg.OPTIM.MAX_EPOCH
        logger.info(f"Search on the *val* set: {len(RATES) * len(LAMBDAS)} trainings of {epochs} epochs")
        for rate, penalty in itertools.product(RATES, LAMBDAS):
            self.restart(start, rate, penalty)
            for epoch in range(epochs):
                self.epoch, self.num_batches = epoch, 1
                self.forward_backward(next(iter(self.train_loader_x)))
            with torch.no_grad():
                right = (self.model_inference(features).argmax(dim=1) == labels).double().mean().item()
            tried.append([rate, penalty, 100 * right])
        self.epoch = 0
        rate, penalty, best = max(tried, key=lambda one: one[2])
        logger.info(f"lr {rate:g}, lambda {penalty:g}: accuracy {best:.2f}% on the *val* set")
        self.write_found({"lr": rate, "lambda": penalty, "grid": tried}, "search.json")
        self.restart(start, rate, penalty)
        head.requires_grad_(True)

    def restart(self, start: Tensor, rate: float, penalty: float) -> None:
        """Restart training with another learning rate and penalty."""
        optim_cfg = self.cfg.OPTIM.clone()
        optim_cfg.defrost()
        optim_cfg.LR = rate
        with torch.no_grad():
            self.head.weight.copy_(start)
        self.head.penalty.fill_(penalty)
        self.optim = self._optims[self.model_name] = build_optimizer(self.head, optim_cfg)
        self.sched = self._scheds[self.model_name] = self.build_schedule()
