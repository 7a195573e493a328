"""Logistic regression on features, its regularisation chosen on a validation set as in CLIP's paper.

Protocol: Learning Transferable Visual Models From Natural Language Supervision, https://arxiv.org/abs/2103.00020,
linear probes, in the form of CoOp's baseline: scikit-learn's LBFGS, at most 1000 iterations; C out of 10^6, 10^4 ...
10^-6, then a binary search on a log scale between a tenth and ten times the best.

Letters: N images, D feature width, K classes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dassl_lite.utils.errors import UserError

FIRST_C = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class Samples:
    """Features (N, D) and labels (N,)."""

    features: NDArray[Any]
    labels: NDArray[Any]


@dataclass(frozen=True)
class Round:
    """A step of the binary search: both ends of the range and their validation accuracies, 0 to 1."""

    left: float
    right: float
    left_accuracy: float
    right_accuracy: float

    @property
    def c(self) -> float:
        """The better end; of equals the left one, which regularises more."""
        return self.right if self.right_accuracy > self.left_accuracy else self.left

    @property
    def accuracy(self) -> float:
        """That of the better end."""
        return max(self.left_accuracy, self.right_accuracy)

    def next_range(self) -> tuple[float, float]:
        """The half of the range, on a log scale, on the better end's side."""
        left, right = np.log10(self.left), np.log10(self.right)
        middle = 0.5 * (right + left)
        ends = (middle, right) if self.c == self.right else (left, middle)
        return float(np.power(10, ends[0])), float(np.power(10, ends[1]))


@dataclass(frozen=True)
class Sweep:
    """What was tried: the validation accuracies of ``FIRST_C``, then the rounds."""

    first: tuple[float, ...]
    rounds: tuple[Round, ...]

    @property
    def c(self) -> float:
        """The C chosen."""
        return self.rounds[-1].c


def sweep_c(train: Samples, val: Samples, steps: int = 8) -> Sweep:
    """Choose C on ``val`` (of equals the first tried), refined in ``steps`` rounds.

    Raises:
        UserError: fewer than two classes.
    """

    @functools.cache
    def accuracy(c: float) -> float:
        return float((fit(train, c).predict(val.features) == val.labels).mean())

    first = tuple(accuracy(c) for c in FIRST_C)
    peak = FIRST_C[int(np.argmax(first))]
    left, right = 1e-1 * peak, 1e1 * peak
    rounds = []
    for _ in range(max(steps, 1)):
        rounds.append(Round(left, right, accuracy(left), accuracy(right)))
        left, right = rounds[-1].next_range()
    return Sweep(first, tuple(rounds))


def fit(train: Samples, c: float) -> Any:
    """scikit-learn's classifier, fitted with inverse regularisation strength ``c``.

    Raises:
        UserError: fewer than two classes.
    """
    from sklearn.linear_model import LogisticRegression  # takes seconds to import

    if len(np.unique(train.labels)) < 2:
        raise UserError("logistic regression needs training images of at least two classes")
    return LogisticRegression(C=c, max_iter=MAX_ITERATIONS).fit(train.features, train.labels)


def weights_of(classifier: Any, num_classes: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """A fitted classifier as one layer: weight (K, D) and bias (K,); zero for a class that it has not seen."""
    rows, bias = classifier.coef_, classifier.intercept_
    if len(rows) == 1:  # of two classes, scikit-learn keeps the difference
        rows, bias = np.concatenate([-rows / 2, rows / 2]), np.concatenate([-bias / 2, bias / 2])
    weight, all_bias = np.zeros((num_classes, rows.shape[1])), np.zeros(num_classes)
    weight[classifier.classes_], all_bias[classifier.classes_] = rows, bias
    return weight, all_bias
