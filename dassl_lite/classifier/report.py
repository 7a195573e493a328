"""What a classifier finds on labelled images, and the temperature that makes its probabilities honest.

Shapes: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from dassl_lite.evaluation import expected_calibration_error

HOTTEST = 20.0  # temperatures are found between 1 / HOTTEST and this
_Z = 1.959963984540054  # of a 95 % interval


class Calibration(NamedTuple):
    """What `FewShotClassifier.calibrate` found; calibration errors in percent.

    Attributes:
        temperature: that logits are divided by.
        images: that it was chosen on.
        chosen_on, measured_on: where these, and those of the errors, come from.
        ece_before, ece_after: expected calibration error at temperature 1, and at this one.
    """

    temperature: float
    images: int
    chosen_on: str
    ece_before: float
    ece_after: float
    measured_on: str


def best_temperature(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """The temperature of the least cross-entropy, https://arxiv.org/abs/1706.04599, held near 1 where images are few.

        T = argmin  sum_n CE(logits_n / T, label_n) + log(T)^2 / 2

    Without the last term a few images that are all right would make every answer certain.

    Args:
        logits: (N, K).
        labels: (N,) int64.
    """
    logits, rows = logits.astype(np.float64), np.arange(len(labels))

    def cost(log_temperature: float) -> float:
        log_probabilities = log_softmax(logits / math.exp(log_temperature), axis=1)
        return float(-log_probabilities[rows, labels].sum() + log_temperature**2 / 2)

    limit = math.log(HOTTEST)
    return math.exp(minimize_scalar(cost, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-6}).x)


def calibration_error(logits: NDArray[Any], labels: NDArray[Any], temperature: float) -> float:
    """Expected calibration error, in percent, of logits (N, K) divided by a temperature."""
    probabilities = torch.softmax(torch.from_numpy(logits).double() / temperature, dim=1)
    confidence, predicted = probabilities.max(dim=1)
    return 100.0 * expected_calibration_error(confidence, predicted == torch.from_numpy(labels))


def interval(correct: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion, in percent."""
    share, spread = correct / total, _Z**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / total + spread / total / 4) / (1 + spread)
    return 100.0 * max(0.0, middle - half), 100.0 * min(1.0, middle + half)


def report(
    results: Mapping[str, float], truth: Sequence[int], predicted: Sequence[int], labels: Sequence[Any]
) -> dict[str, Any]:
    """Metrics, and how each class was classified, as plain values.

    Args:
        results: an evaluator's, in percent.
        truth, predicted: (N,) numbers of classes.
        labels: (K,) of the classes.

    Returns:
        ``results``, and ``interval`` of the accuracy, ``images``, ``per_class`` (label, images, correct, accuracy) and
        ``confusion``, K lists of K numbers of images, true by predicted class.
    """
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(confusion, (np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)), 1)
    totals, correct = confusion.sum(axis=1), confusion.diagonal()
    return {
        **{name: float(value) for name, value in results.items()},
        "interval": list(interval(int(correct.sum()), len(truth))),
        "images": len(truth),
        "per_class": [
            {"label": label, "images": int(total), "correct": int(right), "accuracy": 100.0 * int(right) / int(total)}
            for label, total, right in zip(labels, totals, correct, strict=True)
            if total
        ],
        "confusion": confusion.tolist(),
    }


def most_confused(report: Mapping[str, Any], labels: Sequence[Any], most: int = 10) -> list[tuple[Any, Any, int]]:
    """The pairs of true and predicted class that are mixed up most often, with the number of images."""
    confusion = report["confusion"]
    pairs = [
        (labels[row], labels[column], count)
        for row, counts in enumerate(confusion)
        for column, count in enumerate(counts)
        if count and row != column
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:most]
