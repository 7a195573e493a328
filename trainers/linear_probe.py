"""Linear probe: one fully connected layer on CLIP's frozen image features.

Paper: Learning Transferable Visual Models From Natural Language Supervision, https://arxiv.org/abs/2103.00020

    logits = W f + b,   f (B, D) not normalised, W (K, D) and b (K,) start at 0: the problem is convex

FIT gradient trains the layer as any other method (Adam, batch 256, lr 1e-2, 100 epochs: ours, as no recipe is
published for few shots; on validation features of five sets 1e-2 and 1e-1 did equally well, 1e-3 worse). FIT
logistic_regression is CoOp's baseline in the CLIP paper's form: one view of the test transform, C searched on the
validation set. As a plain module: dassl_lite.models.CLIPModel.
"""

from __future__ import annotations

import torch
from torch import nn
from yacs.config import CfgNode

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer
from dassl_lite.engine.methods.feature_sets import FeatureSet, selection_set, training_set
from dassl_lite.engine.methods.key_rules import number, one_of, rules
from dassl_lite.models import logistic_regression as logistic
from dassl_lite.utils import get_logger

logger = get_logger(__name__)


class LinearLayer(nn.Linear):
    """A fully connected layer, all zero at first; a checkpoint must have every class."""

    class_rows = ("weight", "bias")
    class_rows_required = True

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def samples(data: FeatureSet) -> logistic.Samples:
    """For scikit-learn, in float64."""
    return logistic.Samples(data.features.double().cpu().numpy(), data.labels.cpu().numpy())


@TRAINER_REGISTRY.register()
class LinearProbe(FeatureTrainer):
    """One fully connected layer on the image features, by gradient or by logistic regression."""

    head: LinearLayer
    model_name = "linear_probe"
    key_rules = rules(FIT=one_of("gradient", "logistic_regression"), C=number(above=0), C_STEPS=number(at_least=1))

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        super().extend_cfg(cfg)
        node = cfg.TRAINER[cls.node_name()]
        node.FIT = "gradient"  # gradient | logistic_regression
        node.C = 0.316  # logistic regression without a validation set: inverse strength of its regularisation
        node.C_STEPS = 8  # with one: rounds of the binary search for C

    def build_head(self) -> nn.Module:
        self.trains = self.method_cfg.FIT == "gradient"
        return LinearLayer(self.clip.embed_dim, self.num_classes)

    @torch.no_grad()
    def fit(self) -> None:
        """Logistic regression."""
        train, val, c = samples(training_set(self, augmented=False)), selection_set(self), self.method_cfg.C
        if val is None:
            logger.info(f"No sweep: C {c:g} is taken as configured")
        else:
            sweep = logistic.sweep_c(train, samples(val), self.method_cfg.C_STEPS)
            c = sweep.c
            logger.info(f"Sweep of C on the *val* set: C {c:.4g}, accuracy: {100 * sweep.rounds[-1].accuracy:.2f}%")
        weight, bias = logistic.weights_of(logistic.fit(train, c), self.num_classes)
        self.head.weight.copy_(torch.from_numpy(weight))
        self.head.bias.copy_(torch.from_numpy(bias))
