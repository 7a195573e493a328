"""Logistic regression on features, with its regularisation chosen on a validation set as in CLIP's paper.

Protocol: the linear probes of "Learning Transferable Visual Models From Natural Language Supervision",
https://arxiv.org/abs/2103.00020, as CoOp's baseline runs them: scikit-learn's LBFGS with at most 1000 iterations; C
from 10^6, 10^4 ... 10^-6, then a binary search on a log scale between a tenth of the best and ten times the best.

Shapes: N images, D width of the features, K classes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dassl_lite.utils.errors import UserError

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

FIRST_C = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class Samples:
    """Features (N, D), float, and labels (N,), int."""

    features: NDArray[np.floating]
    labels: NDArray[np.integer]


@dataclass(frozen=True)
class Round:
    """A step of the binary search: the ends of the range and their validation accuracies, from 0 to 1."""

    left: float
    right: float
    left_accuracy: float
    right_accuracy: float

    @property
    def c(self) -> float:
        """The better end; the left one, which regularises more, if they are equal."""
        return self.right if self.right_accuracy > self.left_accuracy else self.left

    @property
    def accuracy(self) -> float:
        """Accuracy of the better end."""
        return max(self.left_accuracy, self.right_accuracy)

    def next_range(self) -> tuple[float, float]:
        """The half of the range, on a log scale, next to the better end."""
        left, right = np.log10(self.left), np.log10(self.right)
        middle = 0.5 * (right + left)
        ends = (middle, right) if self.c == self.right else (left, middle)
        return float(np.power(10, ends[0])), float(np.power(10, ends[1]))


@dataclass(frozen=True)
class Sweep:
    """The search: validation accuracies of ``FIRST_C``, then the rounds."""

    first: tuple[float, ...]
    rounds: tuple[Round, ...]

    @property
    def c(self) -> float:
        """The chosen C."""
        return self.rounds[-1].c


def sweep_c(train: Samples, val: Samples, steps: int = 8) -> Sweep:
    """Choose C on ``val``, the first tried if several are equal, and refine it in ``steps`` rounds.

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


def fit(train: Samples, c: float) -> LogisticRegression:
    """scikit-learn's classifier, fitted with inverse regularisation strength ``c``.

    Raises:
        UserError: fewer than two classes.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import

    if len(np.unique(train.labels)) < 2:
        raise UserError("logistic regression needs training images of at least two classes")
    return LogisticRegression(C=c, max_iter=MAX_ITERATIONS).fit(train.features, train.labels)


def weights_of(classifier: LogisticRegression, num_classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A fitted classifier as a linear layer: weight (K, D) and bias (K,), zero for classes without training images."""
    rows, bias = classifier.coef_, classifier.intercept_
    if len(rows) == 1:  # for two classes, scikit-learn stores the difference
        rows, bias = np.concatenate([-rows / 2, rows / 2]), np.concatenate([-bias / 2, bias / 2])
    weight, all_bias = np.zeros((num_classes, rows.shape[1])), np.zeros(num_classes)
    weight[classifier.classes_], all_bias[classifier.classes_] = rows, bias
    return weight, all_bias
