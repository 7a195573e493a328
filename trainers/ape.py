"""APE: Tip-Adapter on the feature channels that tell the classes apart; APE-T trains a residual of each class.

Paper: Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement, https://arxiv.org/abs/2304.01195

    APE     logits = exp(logit_scale) * f @ T.T + alpha * exp(-beta * (1 - f' . keys')) @ (y * exp(gamma * d))
    APE-T   logits = exp(logit_scale) * f @ (T + r).T + alpha * exp(-beta * (1 - f . (keys + r_y))) @ (y * v)

f, T (K, D) and the keys have length 1; keys are the N training images, averaged over views, y their one-hot labels. A
prime: on the chosen channels alone, normalised again. d (N,) is the KL divergence of a key's label from the softmax of
its cosines with the class names; r (K, D), 0 outside the chosen channels, and v (N,) are learned.

A channel's score is -w0 * similarity + w1 * variance: the mean over pairs of rows of different classes of their product
in that channel (rows: class names, in APE also the keys), and the variance of the class names.

Recipe (the authors' repository): ten views; beta, alpha and gamma from a grid on the validation set, per dataset. -T:
AdamW, eps 1e-3, weight decay 0.1, a cosine per batch, batch 256, then alpha and beta from a grid. The authors keep the
epoch of -T that is best on the validation set before that grid; TEST.FINAL_MODEL best_val keeps the best after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, key, number
from dassl_lite.engine.contract.keys import Key
from dassl_lite.engine.methods.shared_keys import VIEW_KEYS, is_searched, no_search, range_keys
from dassl_lite.models.key_value_cache import KeyValueCache
from dassl_lite.trainers.tip_adapter import grid
from dassl_lite.utils import UserError, get_logger

logger = get_logger(__name__)


def criterion(text: Tensor, rows: Tensor, labels: Tensor, similarity: float, variance: float) -> Tensor:
    """The score (D,) of each channel.

    Args:
        text: T (K, D).
        rows: (M, D) whose similarity across classes counts, and their labels (M,).
        similarity, variance: w0 and w1.
    """
    sums = torch.zeros_like(text).index_add(0, labels, rows)
    counts = labels.bincount(minlength=len(text)).to(text)
    products = sums.sum(dim=0).square() - sums.square().sum(dim=0)
    pairs = counts.sum().square() - counts.square().sum()
    return variance * text.var(dim=0) - similarity * products / pairs.clamp(min=1)


def accuracies(
    zero_shot: Tensor, affinity: Tensor, values: Tensor, labels: Tensor, betas: Tensor, alphas: Tensor
) -> Tensor:
    """Accuracy in percent for every beta, alpha and kind of values, which need not be one-hot.

    Args:
        zero_shot, affinity: of B images, (B, K) and (B, N).
        values: G kinds, (G, N, K).
        labels: (B,).
    """
    rows = []
    for beta in betas:
        votes = torch.exp(-beta * (1 - affinity)) @ values  # (G, B, K)
        right = [((zero_shot + alpha * votes).argmax(dim=-1) == labels).double().mean(dim=-1) for alpha in alphas]
        rows.append(torch.stack(right))
    return 100 * torch.stack(rows)


def room_for(channels: Tensor, text_features: Tensor, path: Path) -> Tensor:
    """Where a checkpoint's channels (C,) are loaded to, on the device of the text features (K, D).

    Raises:
        UserError: they are not channels of these features.
    """
    width = text_features.shape[1]
    whole = channels.dim() == 1 and channels.dtype == torch.int64
    if not whole or not len(channels) or not 0 <= int(channels.min()) <= int(channels.max()) < width:
        raise UserError(f"{path} does not contain channels of features of width {width}")
    return torch.zeros_like(channels, device=text_features.device)


class ChannelCache(KeyValueCache):
    """APE's cache: affinities on chosen channels, and votes weighted by how little CLIP expects them.

    Args:
        text_features, scale: as for a `KeyValueCache`.
        channels: number of chosen channels.
    """

    channels: Tensor  # (C,)
    divergence: Tensor  # (N,)
    gamma: Tensor

    def __init__(self, text_features: Tensor, scale: float, channels: int) -> None:
        super().__init__(text_features, scale)
        self.register_buffer("channels", torch.arange(channels))
        self.register_buffer("divergence", text_features.new_zeros(0))
        self.register_buffer("gamma", torch.tensor(0.0))

    def prepare_to_load(self, weights: Mapping[str, Tensor], meta: Mapping[str, Any], path: Path) -> None:
        super().prepare_to_load(weights, meta, path)
        self.divergence = self.divergence.new_zeros(len(self.keys))
        if "channels" in weights:
            self.channels = room_for(weights["channels"], self.text_features, path)

    def choose(self, scores: Tensor) -> None:
        """Choose the channels with the highest scores (D,); the cache is filled."""
        self.channels = scores.topk(len(self.channels)).indices
        expected = (self.chosen(self.keys.data) @ self.chosen(self.text_features).t()).softmax(dim=1)
        self.divergence = (self.values * ((self.values + 1e-6) / (expected + 1e-6)).log2()).sum(dim=1)

    def chosen(self, features: Tensor) -> Tensor:
        """The chosen channels, of length 1."""
        return F.normalize(features[:, self.channels], dim=-1)

    def soft_values(self, gamma: Tensor) -> Tensor:
        return self.values * torch.exp(gamma * self.divergence)[:, None]

    def _similarities(self, image_features: Tensor) -> tuple[Tensor, Tensor]:
        features = F.normalize(image_features, dim=-1)
        return self.scale * features @ self.text_features.t(), self.chosen(features) @ self.chosen(self.keys).t()

    def _vote(self, affinity: Tensor, beta: Tensor) -> Tensor:
        return torch.exp(-beta * (1 - affinity)) @ self.soft_values(self.gamma)

    @torch.no_grad()
    def searched(self, image_features: Tensor, labels: Tensor, *grid: Tensor) -> Tensor:
        """Accuracy in percent for every beta, alpha and gamma (three dimensions)."""
        betas, alphas, gammas = (values.to(self.keys) for values in grid)
        values = torch.stack([self.soft_values(gamma) for gamma in gammas])
        return accuracies(*self._similarities(image_features), values, labels, betas, alphas)


class ResidualCache(KeyValueCache):
    """APE-T's cache: residuals of the classes on chosen channels of text features and keys, weights of keys."""

    class_rows: Mapping[str, int] = {"values": 1, "text_features": 0, "residual": 0}
    channels: Tensor

    def __init__(self, text_features: Tensor, scale: float, channels: int) -> None:
        super().__init__(text_features, scale)
        self.register_buffer("channels", torch.arange(channels))
        self.value_weights = nn.Parameter(text_features.new_ones(0, 1))
        self.residual = nn.Parameter(text_features.new_zeros(len(text_features), channels))

    def prepare_to_load(self, weights: Mapping[str, Tensor], meta: Mapping[str, Any], path: Path) -> None:
        super().prepare_to_load(weights, meta, path)
        self.value_weights.data = self.value_weights.new_ones(len(self.keys), 1)
        if "channels" in weights:
            self.channels = room_for(weights["channels"], self.text_features, path)
            self.residual.data = self.residual.new_zeros(len(self.residual), len(self.channels))

    def choose(self, scores: Tensor) -> None:
        """Choose the channels with the highest scores (D,); the cache is filled."""
        self.channels = scores.topk(len(self.channels)).indices
        self.value_weights.data = self.value_weights.new_ones(len(self.keys), 1)

    def _similarities(self, image_features: Tensor) -> tuple[Tensor, Tensor]:
        features = F.normalize(image_features, dim=-1)
        residual = torch.zeros_like(self.text_features).index_copy(1, self.channels, self.residual)
        keys = self.keys + self.values @ residual
        return self.scale * features @ (self.text_features + residual).t(), features @ keys.t()

    def _vote(self, affinity: Tensor, beta: Tensor) -> Tensor:
        return torch.exp(-beta * (1 - affinity)) @ (self.values * self.value_weights)

    @torch.no_grad()
    def searched(self, image_features: Tensor, labels: Tensor, *grid: Tensor) -> Tensor:
        """Accuracy in percent for every beta and alpha (two dimensions)."""
        betas, alphas = (values.to(self.keys) for values in grid[:2])
        values = (self.values * self.value_weights)[None]
        return accuracies(*self._similarities(image_features), values, labels, betas, alphas)[..., 0]


def _of_ape(idle: Callable[[Any], str]) -> Callable[[Any], str]:
    """``idle`` of a key that APE-T does not have."""
    return lambda run: "APE-T has no gamma" if run.trains else idle(run)


def _amount(name: str, default: float, about: str, idle: Callable[[Any], str] = Key.idle) -> Key:
    return key(name, default, number(at_least=0, at_most=1e6), about, idle)


@TRAINER_REGISTRY.register()
class APE(FeatureTrainer):
    """Tip-Adapter on chosen channels; nothing is trained."""

    trains = False
    takes_ensemble = True
    takes_init_weights = False  # the keys are the shots
    model_name = "ape"
    cache: type[KeyValueCache] = ChannelCache
    head: Any
    keys: ClassVar[Sequence[Key]] = (
        _amount("ALPHA", 1.0, "weight of the cache during training of -T, and without a search", is_searched),
        _amount("BETA", 1.0, "sharpness of the cache, likewise", is_searched),
        _amount(
            "GAMMA",
            0.1,
            "weight of surprise, without a search",
            _of_ape(is_searched),
        ),
        key(
            "CHANNELS",
            0,
            number(at_least=0, at_most=1_000_000),
            "how many are chosen, at most D; 0: 0.8 D (the authors take 500 to 900 of RN50's 1024)",
        ),
        _amount("SIMILARITY_WEIGHT", 0.5, "w0: a channel's similarity across classes counts against it"),
        _amount("VARIANCE_WEIGHT", 0.5, "w1: the variance of the class names in a channel counts for it"),
        key("SEARCH", True, None, "select alpha, beta and (APE) gamma on the validation set"),
        *range_keys("ALPHA", 7.0, 20),
        *range_keys("BETA", 7.0, 200),
        *range_keys("GAMMA", 1.0, 20, start=0.0, idle=_of_ape(no_search)),
        *VIEW_KEYS,
    )

    def build_head(self) -> nn.Module:
        width = self.clip.embed_dim
        channels = min(self.method_cfg.CHANNELS or round(0.8 * width), width)
        return self.cache(self.zero_shot_weights(), self.clip.logit_scale.exp().item(), channels)

    @torch.no_grad()
    def fit(self) -> None:
        """Fill the cache and choose the channels; APE then searches."""
        node, head = self.method_cfg, self.head
        shots = self.training_set(augmented=True, views=node.AUGMENT_EPOCH)
        head.fill(shots.views, shots.labels)
        rows, labels = head.text_features, torch.arange(len(head.text_features), device=shots.labels.device)
        if not self.trains:
            rows, labels = torch.cat([rows, head.keys.data]), torch.cat([labels, shots.labels])
        head.choose(criterion(head.text_features, rows, labels, node.SIMILARITY_WEIGHT, node.VARIANCE_WEIGHT))
        self.reset()
        if not self.trains:
            self.search()

    def reset(self) -> None:
        """Reset to the configured values, which -T trains with."""
        node = self.method_cfg
        self.head.set_alpha_beta(node.ALPHA, node.BETA)
        if hasattr(self.head, "gamma"):
            self.head.gamma.fill_(node.GAMMA)

    def search(self) -> None:
        """Select on the validation set (on a tie the first, gamma first); keep the accuracies in a file."""
        node, val = self.method_cfg, self.selection_set() if self.method_cfg.SEARCH else None
        if val is None:
            logger.info("No search: alpha, beta and gamma are used as configured")
            return
        betas, alphas = grid(node.BETA_MAX, node.BETA_STEPS), grid(node.ALPHA_MAX, node.ALPHA_STEPS)
        gammas = [i * node.GAMMA_MAX / node.GAMMA_STEPS for i in range(node.GAMMA_STEPS)]
        found = self.head.searched(val.features, val.labels, *map(torch.tensor, (betas, alphas, gammas)))
        i, j, *k = (int(number) for number in torch.unravel_index(found.argmax(), found.shape))
        self.head.set_alpha_beta(alphas[j], betas[i])
        best = {"beta": betas[i], "alpha": alphas[j], "accuracy": found.max().item()}
        if k:
            best["gamma"] = gammas[k[0]]
            self.head.gamma.fill_(best["gamma"])
        logger.info("Search on the *val* set: " + ", ".join(f"{name} {value:.4g}" for name, value in best.items()))
        tried = {**best, "betas": betas, "alphas": alphas, "gammas": gammas, "grid": found.tolist()}
        self.write_found(tried, f"search-{self.epoch + 1}.json")


@TRAINER_REGISTRY.register()
class APET(APE):
    """APE's cache with a trained residual of each class and trained weights of the keys."""

    trains = True
    fits_first = True
    model_name = "ape_t"
    cache = ResidualCache
    keys = (
        _amount("SIMILARITY_WEIGHT", 0.2, "w0: a channel's similarity across class names counts against it"),
        _amount("VARIANCE_WEIGHT", 0.8, "w1: the variance of the class names in a channel counts for it"),
    )

    def run_epoch(self) -> None:
        """Train with the configured values; search if the result is going to be tested."""
        self.reset()
        super().run_epoch()
        if self.epoch + 1 == self.max_epoch or self.cfg.TEST.FINAL_MODEL == "best_val":
            self.search()
