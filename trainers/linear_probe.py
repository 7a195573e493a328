"""Linear probe: one fully connected layer on CLIP's frozen image features.

Paper: Learning Transferable Visual Models From Natural Language Supervision, https://arxiv.org/abs/2103.00020

    logits = W f + b,   f (B, D) not normalised, W (K, D) and b (K,) start at 0: the problem is convex

FIT gradient trains the layer like any other method. None is published for few shots; the recipe is ours: Adam, batch
256, lr 3e-2, 100 epochs, no weight decay (5e-4, Dassl's default, holds a layer back whose features have length 1). It
is the best on validation features of length 1 and 10 together: docs/results/linear_probe_recipe.py.

FIT logistic_regression is CoOp's baseline: one view of the test transform, C chosen on the validation set. By default
the C with the lowest log loss is taken. C_BY accuracy is the baseline's own search, where rounding errors of the
features decide ties. The plain module is dassl_lite.models.CLIPModel.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, idle_if, key, number, one_of
from dassl_lite.engine.methods.feature_source import FeatureSet
from dassl_lite.engine.methods.shared_keys import LOSS_KEYS
from dassl_lite.models import logistic_regression as logistic
from dassl_lite.utils import get_logger

logger = get_logger(__name__)


class LinearLayer(nn.Linear):
    """A fully connected layer that starts at zero; a checkpoint must have every class."""

    class_rows = ("weight", "bias")
    class_rows_required = True

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def samples(data: FeatureSet) -> logistic.Samples:
    """Features and labels as NumPy arrays, in float64 for scikit-learn."""
    return logistic.Samples(data.features.double().cpu().numpy(), data.labels.cpu().numpy())


_fits = idle_if("FIT", "gradient")  # why the keys of logistic regression have no effect


def _searches(run: FeatureTrainer) -> str:
    return _fits(run) or ("" if run.has_selection_set else "there is no validation set")


def _bisects(run: FeatureTrainer) -> str:
    return _searches(run) or idle_if("C_BY", "log_loss")(run)


@TRAINER_REGISTRY.register()
class LinearProbe(FeatureTrainer):
    """One fully connected layer on the image features, by gradient or by logistic regression."""

    head: LinearLayer
    model_name = "linear_probe"
    takes_multi_label = True
    keys = (
        key("FIT", "gradient", one_of("gradient", "logistic_regression"), "gradient | logistic_regression"),
        key(
            "C_BY",
            "log_loss",
            one_of("log_loss", "accuracy"),
            "validation measure that chooses C; accuracy: as CoOp",
            _searches,
        ),
        key("C_STEPS", 8, number(at_least=1, at_most=64), "with accuracy: rounds of the binary search for C", _bisects),
        key(
            "C",
            0.316,
            number(above=0, at_most=1e12),
            "inverse regularisation of logistic regression, without a validation set",
            lambda run: _fits(run) or ("C is chosen on the validation set" if run.has_selection_set else ""),
        ),
        dataclasses.replace(LOSS_KEYS[0], idle=idle_if("FIT", "logistic_regression")),
    )

    def has_epochs(self) -> bool:
        return self.method_cfg.FIT == "gradient"

    def build_head(self) -> nn.Module:
        return LinearLayer(self.clip.embed_dim, self.num_classes)

    @torch.no_grad()
    def fit(self) -> None:
        """Logistic regression."""
        train, val, c = samples(self.training_set(augmented=False)), self.selection_set(), self.method_cfg.C
        tolerance = logistic.SWEEP_TOLERANCE
        if val is None:
            logger.info(f"No search: C {c:g} is used as configured")
        elif self.method_cfg.C_BY == "accuracy":
            sweep = logistic.sweep_c(train, samples(val), self.method_cfg.C_STEPS)
            c = sweep.c
            logger.info(f"Search of C on the *val* set: {c:.4g}, accuracy: {100 * sweep.rounds[-1].accuracy:.2f}%")
        else:
            c, loss = logistic.smooth_c(train, samples(val))
            tolerance = logistic.SMOOTH_TOLERANCE
            logger.info(f"Search of C on the *val* set: {c:.4g}, log loss: {loss:.4f}")
        classifier = logistic.fit(train, c, tolerance)
        weight, bias = logistic.weights_of(classifier, self.num_classes)
        self.head.weight.copy_(torch.from_numpy(weight))
        self.head.bias.copy_(torch.from_numpy(bias))
