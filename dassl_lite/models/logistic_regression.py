"""Logistic regression on features, with its regularisation chosen on a validation set.

``sweep_c`` is the protocol of the linear probes of "Learning Transferable Visual Models From Natural Language
Supervision", https://arxiv.org/abs/2103.00020, as CoOp's baseline runs them: scikit-learn's LBFGS with at most 1000
iterations; C from 10^6, 10^4 ... 10^-6, then a binary search on a log scale between a tenth of the best and ten times
the best. Accuracy on few validation images has many ties, and rounding errors decide which C wins one: C may differ by
a factor of 100 between two machines. ``smooth_c`` minimises the validation log loss instead, which moves smoothly with
the features.

Shapes: N images, D width of the features, K classes.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dassl_lite.utils.errors import UserError

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

FIRST_C = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
MAX_ITERATIONS = 1000
SWEEP_TOLERANCE, SMOOTH_TOLERANCE = 1e-4, 1e-6  # tolerances of the gradient; the first is scikit-learn's default

_SMALL = 2**21  # number of elements below which several threads only wait for each other


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
        """The half of the range (on a log scale) next to the better end."""
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


def smooth_c(train: Samples, val: Samples) -> tuple[float, float]:
    """C with the lowest mean log loss on ``val``, and that loss in nats.

    The best of ``FIRST_C`` is refined by Brent's method on a log scale, up to its neighbours. Fits converge further
    (``SMOOTH_TOLERANCE``) than in the sweep, where a large C is cut short. Only validation images whose class
    has training images count.

    Raises:
        UserError: fewer than two classes, or no validation image of a class with training images.
    """
    from scipy.optimize import minimize_scalar  # slow to import
    from scipy.special import logsumexp

    known = np.isin(val.labels, train.labels)
    if not known.any():
        raise UserError("no validation image belongs to a class with training images, so C cannot be chosen")
    features, labels = val.features[known], val.labels[known]

    @functools.cache
    def loss(log_c: float) -> float:
        classifier = fit(train, 10.0**log_c, SMOOTH_TOLERANCE)
        weight, bias = weights_of(classifier, int(classifier.classes_.max()) + 1)
        logits = (features @ weight.T + bias)[:, classifier.classes_]
        column = np.searchsorted(classifier.classes_, labels)
        return float((logsumexp(logits, axis=1) - logits[np.arange(len(labels)), column]).mean())

    powers = [float(np.log10(c)) for c in FIRST_C]
    best = min(powers, key=loss)
    lowest, highest = max(best - 2, min(powers)), min(best + 2, max(powers))
    found = float(minimize_scalar(loss, bounds=(lowest, highest), method="bounded", options={"xatol": 0.01}).x)
    best = min(best, found, key=loss)
    return 10.0**best, loss(best)


def fit(train: Samples, c: float, tolerance: float = SWEEP_TOLERANCE) -> LogisticRegression:
    """scikit-learn's classifier, fitted with inverse regularisation strength ``c``.

    Raises:
        UserError: fewer than two classes.
    """
    from sklearn.exceptions import ConvergenceWarning  # slow to import
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    if len(np.unique(train.labels)) < 2:
        raise UserError("logistic regression needs training images of at least two classes")
    classifier = LogisticRegression(C=c, max_iter=MAX_ITERATIONS, tol=tolerance)
    with threadpool_limits(1 if train.features.size < _SMALL else None), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # expected for the largest C
        return classifier.fit(train.features, train.labels)


def weights_of(classifier: LogisticRegression, num_classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A fitted classifier as a linear layer: weight (K, D) and bias (K,), zero for classes without training images."""
    rows, bias = classifier.coef_, classifier.intercept_
    if len(rows) == 1:  # for two classes, scikit-learn stores the difference
        rows, bias = np.concatenate([-rows / 2, rows / 2]), np.concatenate([-bias / 2, bias / 2])
    weight, all_bias = np.zeros((num_classes, rows.shape[1])), np.zeros(num_classes)
    weight[classifier.classes_], all_bias[classifier.classes_] = rows, bias
    return weight, all_bias
