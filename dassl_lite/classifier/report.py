"""A classifier's metrics on labelled images, and the temperature that calibrates its probabilities.

Shapes: N images, K classes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from dassl_lite.evaluation import build_evaluator, expected_calibration_error

HOTTEST = 20.0  # temperatures are searched between 1 / HOTTEST and HOTTEST
_Z = 1.959963984540054  # of a 95 % interval


class Calibration(NamedTuple):
    """The result of `FewShotClassifier.calibrate`; calibration errors in percent.

    Attributes:
        temperature: divides the logits.
        images: number of images that it was chosen on.
        chosen_on, measured_on: where the images come from that it was chosen on, and that the errors were measured on.
        ece_before, ece_after: expected calibration error at temperature 1, and at this one.
    """

    temperature: float
    images: int
    chosen_on: str
    ece_before: float
    ece_after: float
    measured_on: str


def best_temperature(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """The temperature with the lowest cross-entropy, https://arxiv.org/abs/1706.04599, kept near 1 if images are few.

        T = argmin  sum_n CE(logits_n / T, label_n) + log(T)^2 / 2

    Without the last term, a few images that are all classified correctly would make every prediction certain.

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


Asked = tuple[NDArray[Any], NDArray[Any]]  # logits (N, K) and class numbers (N,)


def calibrated(chosen_on: Asked, source: str, test: Asked | None = None) -> Calibration:
    """The best temperature on some images, and the calibration errors on test images or, without any, on the same ones.

    Args:
        source: where the images come from that the temperature is chosen on.
    """
    temperature = best_temperature(*chosen_on)
    seen = chosen_on if test is None else test
    return Calibration(
        temperature=temperature,
        images=len(chosen_on[1]),
        chosen_on=source,
        ece_before=calibration_error(*seen, 1.0),
        ece_after=calibration_error(*seen, temperature),
        measured_on=source if test is None else "test images of the fit",
    )


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
    """Overall metrics and per-class results, as plain values.

    Args:
        results: an evaluator's results, in percent.
        truth, predicted: (N,) class numbers.
        labels: (K,) labels of the classes.

    Returns:
        ``results``, plus the ``interval`` of the accuracy, ``images``, ``per_class`` (label, images, correct,
        accuracy) and ``confusion``, K lists of K image counts by true and predicted class.
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


def report_of_run(trainer: Any, labels: NDArray[Any], zero_shot: float | None) -> dict[str, Any] | None:
    """The report of a run on its test images; None if it was not evaluated.

    Args:
        labels: (K,) labels of the classes.
        zero_shot: accuracy before training, in percent.
    """
    evaluator, split = trainer.evaluator, trainer.cfg.TEST.SPLIT
    results = trainer.results.get(split)
    if not results or not getattr(evaluator, "_y_true", None):
        return None
    return {
        **report(results, evaluator._y_true, evaluator._y_pred, labels.tolist()),
        "on": f"{split} images of the run",
        **({} if zero_shot is None else {"zero_shot_accuracy": zero_shot}),
    }


def report_of_logits(
    trainer: Any, logits: NDArray[Any], truth: NDArray[Any], labels: NDArray[Any], temperature: float
) -> dict[str, Any]:
    """The report for logits (N, K) of images whose classes are ``truth`` (N,)."""
    cfg = trainer.cfg.clone()
    cfg.defrost()
    cfg.TEST.COMPUTE_CMAT, cfg.TEST.PER_CLASS_RESULT, cfg.TEST.EVALUATOR = False, False, "Classification"
    evaluator: Any = build_evaluator(cfg, lab2cname=dict(enumerate(map(str, labels.tolist()))))
    evaluator.most_kept = sys.maxsize  # the report covers every image
    evaluator.process(torch.from_numpy(logits / temperature), torch.from_numpy(truth))
    results = evaluator.evaluate()
    return report(results, evaluator._y_true, evaluator._y_pred, labels.tolist())


def most_confused(report: Mapping[str, Any], labels: Sequence[Any], most: int = 10) -> list[tuple[Any, Any, int]]:
    """The most frequent pairs of true and wrongly predicted class, each with its number of images."""
    confusion = report["confusion"]
    pairs = [
        (labels[row], labels[column], count)
        for row, counts in enumerate(confusion)
        for column, count in enumerate(counts)
        if count and row != column
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:most]
