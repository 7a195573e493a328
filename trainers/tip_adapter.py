"""Tip-Adapter: CLIP's zero-shot logits plus the logits of a cache of the shots; Tip-Adapter-F trains the cache's keys.

Paper: Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification, https://arxiv.org/abs/2111.03930

    logits = exp(logit_scale) * f @ W.T + alpha * exp(-beta * (1 - f @ keys.T)) @ values

f (B, D), W (K, D) and keys (N, D) have length 1; keys are the features of the N training images, averaged over
augmented views, values (N, K) their one-hot labels. Recipe (the authors' repository): ten views; alpha and beta from a
grid search per dataset; -F: AdamW, eps 1e-4, batch 256, lr 1e-3 with a cosine schedule per batch, 20 epochs (EuroSAT
100). The authors keep the epoch of -F that is best on the test set; here TEST.FINAL_MODEL decides, and nothing is
selected on the test set.
"""

from __future__ import annotations

import torch
from torch import nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, key, number
from dassl_lite.engine.methods.shared_keys import VIEW_KEYS, is_searched, range_keys
from dassl_lite.models.key_value_cache import KeyValueCache
from dassl_lite.utils import get_logger

logger = get_logger(__name__)


def grid(end: float, steps: int) -> list[float]:
    """Values from 0.1 up to, but excluding, ``end``."""
    return [0.1 + i * (end - 0.1) / steps for i in range(steps)]


@TRAINER_REGISTRY.register()
class TipAdapter(FeatureTrainer):
    """Zero-shot CLIP plus a cache of the shots; nothing is trained."""

    trains = False
    takes_ensemble = True
    takes_init_weights = False  # the keys are the shots
    model_name = "tip_adapter"
    config_node = "TipAdapter"
    head: KeyValueCache
    keys = (
        key(
            "ALPHA",
            1.17,
            number(at_least=0, at_most=1e6),
            "weight of the cache during training of -F, and without a search",
            is_searched,
        ),
        key("BETA", 1.0, number(at_least=0, at_most=1e6), "sharpness of the cache, likewise", is_searched),
        key("SEARCH", True, None, "select both on the validation set, among ALPHA_STEPS * BETA_STEPS pairs"),
        *range_keys("ALPHA", 3.0, 20),
        *range_keys("BETA", 7.0, 200),
        *VIEW_KEYS,
    )

    def build_head(self) -> nn.Module:
        return KeyValueCache(self.zero_shot_weights(), self.clip.logit_scale.exp().item(), trainable=self.trains)

    def fit(self) -> None:
        """Fill the cache with the shots; the training-free method then searches alpha and beta."""
        shots = self.training_set(augmented=True, views=self.method_cfg.AUGMENT_EPOCH)
        self.head.fill(shots.views, shots.labels)
        if not self.trains:
            self.search()

    def search(self) -> None:
        """Select alpha and beta on the validation set (on a tie the first); keep the grid (beta by alpha) in a file."""
        node, val = self.method_cfg, self.selection_set() if self.method_cfg.SEARCH else None
        if val is None:
            logger.info(f"No search: alpha {node.ALPHA:g} and beta {node.BETA:g} are used as configured")
            self.head.set_alpha_beta(node.ALPHA, node.BETA)
            return
        alphas, betas = grid(node.ALPHA_MAX, node.ALPHA_STEPS), grid(node.BETA_MAX, node.BETA_STEPS)
        accuracies = self.head.accuracies(val.features, val.labels, torch.tensor(betas), torch.tensor(alphas))
        row, column = divmod(int(accuracies.argmax()), len(alphas))
        alpha, beta, best = alphas[column], betas[row], accuracies[row, column].item()
        logger.info(f"Search on the *val* set: alpha {alpha:.2f}, beta {beta:.2f}, accuracy: {best:.2f}%")
        self.head.set_alpha_beta(alpha, beta)
        found = {"alpha": alpha, "beta": beta, "accuracy": best, "alphas": alphas, "betas": betas}
        self.write_found({**found, "grid": accuracies.tolist()}, f"search-{self.epoch + 1}.json")


@TRAINER_REGISTRY.register()
class TipAdapterF(TipAdapter):
    """Tip-Adapter with trained keys."""

    trains = True
    fits_first = True
    model_name = "tip_adapter_f"

    def run_epoch(self) -> None:
        """Train the keys with the configured alpha and beta; search both if the result is going to be tested."""
        self.head.set_alpha_beta(self.method_cfg.ALPHA, self.method_cfg.BETA)
        super().run_epoch()
        if self.epoch + 1 == self.max_epoch or self.cfg.TEST.FINAL_MODEL == "best_val":
            self.search()
