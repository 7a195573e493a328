"""Numbers computed from labels, predictions, scores and confidences.

Shapes: N images, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


class ClassCounts:
    """How often each label occurs, is predicted, and is predicted correctly. Memory does not grow with the images.

    Args:
        pairs: whether to count each pair of labels, for `confusion`.

    Attributes:
        num_true, num_predicted, num_correct: (K,) int64; K is the largest number of classes, or more where a label is
            larger: such an image counts as one that the model gets wrong.
    """

    def __init__(self, pairs: bool = False) -> None:
        self.num_true = self.num_predicted = self.num_correct = torch.zeros(0, dtype=torch.int64)
        self._pairs = torch.zeros(0, 0, dtype=torch.int64) if pairs else None

    def add(self, labels: Tensor, predicted: Tensor, num_classes: int) -> ClassCounts:
        """Count images: labels and predictions, (n,) int64 with n above 0; ``num_classes``: columns of the logits."""
        size = max(num_classes, int(labels.max()) + 1, int(predicted.max()) + 1, len(self.num_true))
        self.num_true = _grown(self.num_true, size) + torch.bincount(labels, minlength=size)
        self.num_predicted = _grown(self.num_predicted, size) + torch.bincount(predicted, minlength=size)
        correct = labels[labels == predicted]
        self.num_correct = _grown(self.num_correct, size) + torch.bincount(correct, minlength=size)
        if self._pairs is not None:
            found = torch.bincount(labels * size + predicted, minlength=size**2).reshape(size, size)
            found[: len(self._pairs), : len(self._pairs)] += self._pairs
            self._pairs = found
        return self

    @property
    def present(self) -> Tensor:
        """The labels that occur."""
        return self.num_true.nonzero().flatten()

    def macro_f1(self) -> float:
        """Mean F1 over the labels that occur; F1 = 2 correct / (true + predicted)."""
        f1 = 2 * self.num_correct.double() / (self.num_true + self.num_predicted)
        return f1[self.present].mean().item()

    def by_label(self) -> dict[int, tuple[int, int]]:
        """``(num_true, num_correct)`` of each label that occurs."""
        return {label: (int(self.num_true[label]), int(self.num_correct[label])) for label in self.present.tolist()}

    def confusion(self) -> Tensor:
        """Confusion matrix (K, K) float64: true label by predicted label, each row divided by its sum."""
        assert self._pairs is not None, "pairs were counted"
        return self._pairs.double() / self.num_true.clamp_min(1).unsqueeze(1)


def _grown(counts: Tensor, size: int) -> Tensor:
    return torch.cat([counts, counts.new_zeros(size - len(counts))])


class Calibration:
    """Expected calibration error over bins of equal width, https://arxiv.org/abs/1706.04599, equations 2 and 3.

        ECE = sum_m  n_m / N * | accuracy_m - confidence_m |,   bin m = ((m - 1) / M, m / M]

    Kept as sums. Args:
        num_bins: number of bins M.

    Attributes:
        bad: number of confidences that are infinite or NaN.
    """

    def __init__(self, num_bins: int = 15) -> None:
        # n_m (accuracy_m - confidence_m) is the bin's summed differences.
        self._gaps = torch.zeros(num_bins, dtype=torch.float64)
        self._total = self.bad = 0

    def add(self, confidence: Tensor, correct: Tensor) -> Calibration:
        """Count images: (n,) largest softmax probability, and whether the predicted class is the true one."""
        confidence = confidence.double()
        bins = (confidence * len(self._gaps)).ceil().long().sub(1).clamp(0, len(self._gaps) - 1)
        self._gaps.index_add_(0, bins, correct.double() - confidence)
        self._total += len(confidence)
        self.bad += int((~confidence.isfinite()).sum())
        return self

    def error(self) -> float:
        """A fraction between 0 and 1."""
        return (self._gaps.abs().sum() / self._total).item()


def expected_calibration_error(confidence: Tensor, correct: Tensor, num_bins: int = 15) -> float:
    """`Calibration` in one call: (N,) confidences, and whether each prediction is right."""
    return Calibration(num_bins).add(confidence.cpu(), correct.cpu()).error()


def average_precisions(scores: Tensor, targets: Tensor) -> Tensor:
    """Average precision of each class: the mean, over its images, of the precision at the rank of each.

        AP = sum_n (R_n - R_{n-1}) P_n,   P_n and R_n with the images that score at least as much as the n-th

    Images with equal scores share the last of their ranks, as in scikit-learn.

    Args:
        scores: (N, K), any increasing function of the logits.
        targets: bool (N, K), whether an image has a class.

    Returns:
        (K,) float64, fractions; NaN for a class without an image.
    """
    found = [_average_precisions(*part) for part in zip(scores.split(64, 1), targets.split(64, 1), strict=True)]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.float64)


def _average_precisions(scores: Tensor, targets: Tensor) -> Tensor:
    """`average_precisions` for a few classes at a time: it takes about twenty times the memory of the scores."""
    ranked, order = scores.sort(dim=0, descending=True)
    hits = targets.gather(0, order).double()
    ranks = torch.arange(1, len(scores) + 1, device=scores.device, dtype=torch.float64)[:, None]
    precision = hits.cumsum(0) / ranks
    # Equal scores get the rank of the last: the lowest rank from here on after which the score falls.
    last = torch.full_like(ranked, len(scores) - 1, dtype=torch.int64)
    falls = ranked[:-1] != ranked[1:]
    last[:-1] = torch.where(falls, (ranks[:-1] - 1).long(), last[:-1])
    last = last.flip(0).cummin(0).values.flip(0)
    return (hits * precision.gather(0, last)).sum(0) / hits.sum(0)


def best_threshold(scores: Tensor, targets: Tensor, prior: float = 0.0) -> float:
    """The score above which a class is predicted, the same for all classes, with the highest micro-F1.

    It lies halfway between two scores, unless ``prior`` lies between them too; on a tie, the nearest to ``prior`` wins.

    Args:
        scores: (N, K).
        targets: bool (N, K), whether an image has a class.
        prior: threshold to prefer where it makes no difference.
    """
    values, order = scores.double().flatten().sort(descending=True)
    hits = targets.flatten()[order].double().cumsum(0)
    f1 = 2 * hits / (torch.arange(1, len(hits) + 1, device=hits.device) + hits[-1].clamp_min(1))
    lower = torch.cat([values[1:], values[-1:] - 1])
    middle = (values + lower) / 2
    inside = (lower < prior) & (prior < values)
    middle = torch.where(inside, torch.full_like(middle, prior), middle)
    f1 = torch.where(lower < values, f1, -1.0)  # nothing lies between equal scores
    best = middle[f1 == f1.max()]
    return best[(best - prior).abs().argmin()].item()
