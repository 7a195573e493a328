"""Tip-Adapter: CLIP's zero-shot logits plus those of a cache of the shots; and -F, which trains the cache's keys.

Paper: Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification, https://arxiv.org/abs/2111.03930

    logits = exp(logit_scale) * f @ W.T + alpha * exp(-beta * (1 - f @ keys.T)) @ values

f (B, D), W (K, D), keys (N, D): of length 1; keys: the N training images' features, averaged over augmented views;
values (N, K): their labels, one-hot. Recipe (the authors' repository): ten views, alpha and beta searched by dataset
on a grid; -F: AdamW, eps 1e-4, batch 256, lr 1e-3 along a cosine by batch, 20 epochs (EuroSAT 100). The authors keep
the epoch of -F that is best on the test set; here TEST.FINAL_MODEL decides, and nothing is chosen on the test set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer
from dassl_lite.engine.methods.feature_sets import selection_set, training_set
from dassl_lite.engine.methods.key_rules import number, rules
from dassl_lite.models.key_value_cache import KeyValueCache
from dassl_lite.models.prompts import class_weights
from dassl_lite.utils import get_logger, write_json

logger = get_logger(__name__)


def grid(end: float, steps: int) -> list[float]:
    """Values from 0.1 up to, and without, ``end``."""
    return [0.1 + i * (end - 0.1) / steps for i in range(steps)]


@TRAINER_REGISTRY.register()
class TipAdapter(FeatureTrainer):
    """A cache of the shots beside zero-shot CLIP; nothing is trained."""

    trains = False
    takes_init_weights = False  # the keys are the shots
    model_name = "tip_adapter"
    config_node = "TipAdapter"
    head: KeyValueCache
    key_rules = rules(
        **dict.fromkeys(("ALPHA", "BETA"), number(at_least=0)),
        **dict.fromkeys(("ALPHA_MAX", "BETA_MAX"), number(at_least=0.1)),
        **dict.fromkeys(("ALPHA_STEPS", "BETA_STEPS", "AUGMENT_EPOCH"), number(at_least=1)),
    )

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        super().extend_cfg(cfg)
        node = cfg.TRAINER[cls.node_name()]
        node.ALPHA = 1.17  # weight of the cache in -F's training, and where there is no search
        node.BETA = 1.0  # sharpness of the cache, likewise
        node.SEARCH = True  # choose both on the validation set, out of ALPHA_STEPS * BETA_STEPS pairs
        node.ALPHA_MAX, node.ALPHA_STEPS = 3.0, 20  # alphas from 0.1 up to, and without, ALPHA_MAX
        node.BETA_MAX, node.BETA_STEPS = 7.0, 200
        node.AUGMENT_EPOCH = 10  # views in a key where DATASET.FEATURES.VIEWS is 0; else a key has its views

    def build_head(self) -> nn.Module:
        templates = list(self.dm.dataset.ensemble_templates) or [self.template]
        with torch.no_grad():
            weights = class_weights(self.clip, self.classnames, templates, self.text_cache).float()
        return KeyValueCache(weights, self.clip.logit_scale.exp().item(), trainable=self.trains)

    def fit(self) -> None:
        self.fill_cache()
        self.search()

    def fill_cache(self) -> None:
        shots = training_set(self, augmented=True, views=self.method_cfg.AUGMENT_EPOCH)
        self.head.fill(shots.views, shots.labels)

    def search(self) -> None:
        """Choose alpha and beta on the validation set, of equals the first; keep the grid (beta by alpha) in a file."""
        node, val = self.method_cfg, selection_set(self) if self.method_cfg.SEARCH else None
        if val is None:
            logger.info(f"No search: alpha {node.ALPHA:g} and beta {node.BETA:g} are taken as configured")
            self.head.weigh(node.ALPHA, node.BETA)
            return
        alphas, betas = grid(node.ALPHA_MAX, node.ALPHA_STEPS), grid(node.BETA_MAX, node.BETA_STEPS)
        accuracies = self.head.accuracies(val.features, val.labels, torch.tensor(betas), torch.tensor(alphas))
        row, column = divmod(int(accuracies.argmax()), len(alphas))
        alpha, beta, best = alphas[column], betas[row], accuracies[row, column].item()
        logger.info(f"Search on the *val* set: alpha {alpha:.2f}, beta {beta:.2f}, accuracy: {best:.2f}%")
        self.head.weigh(alpha, beta)
        found = {"alpha": alpha, "beta": beta, "accuracy": best, "alphas": alphas, "betas": betas}
        path = Path(self.output_dir) / self.model_name / f"search-{self.epoch + 1}.json"
        write_json({**found, "grid": accuracies.tolist()}, path)

    def adapt_state_dict(self, model: Any, weights: Any, meta: Any, path: Path) -> dict[str, torch.Tensor]:
        model.resize(len(weights["keys"]) if "keys" in weights else 0)  # another dataset has other shots
        return super().adapt_state_dict(model, weights, meta, path)


@TRAINER_REGISTRY.register()
class TipAdapterF(TipAdapter):
    """Tip-Adapter with trained keys."""

    trains = True
    model_name = "tip_adapter_f"

    def before_train(self) -> None:
        self.fill_cache()
        super().before_train()

    def before_epoch(self) -> None:
        super().before_epoch()
        self.head.weigh(self.method_cfg.ALPHA, self.method_cfg.BETA)

    def after_epoch(self) -> None:
        if self.epoch + 1 == self.max_epoch or self.cfg.TEST.FINAL_MODEL == "best_val":
            self.search()
        super().after_epoch()
