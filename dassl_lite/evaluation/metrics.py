"""Numbers computed from labels, predictions, scores and confidences.

Shapes: N images, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


class ClassCounts:
    """How often each label occurs, is predicted, and is predicted correctly.

    Args:
        labels: (N,) int64, N above 0.
        predicted: (N,) int64.
        num_classes: columns of the logits. A label beyond them counts as an image that the model gets wrong.

    Attributes:
        num_true, num_predicted, num_correct: (K,) int64; K is ``num_classes``, or more where a label is larger.
    """

    def __init__(self, labels: Tensor, predicted: Tensor, num_classes: int) -> None:
        self.size = max(num_classes, int(labels.max()) + 1, int(predicted.max()) + 1)
        self.labels, self.predicted = labels, predicted
        self.num_true = torch.bincount(labels, minlength=self.size)
        self.num_predicted = torch.bincount(predicted, minlength=self.size)
        self.num_correct = torch.bincount(labels[labels == predicted], minlength=self.size)
        self.present = self.num_true.nonzero().flatten()

    def macro_f1(self) -> float:
        """Mean F1 over the labels that occur; F1 = 2 correct / (true + predicted)."""
        f1 = 2 * self.num_correct.double() / (self.num_true + self.num_predicted)
        return f1[self.present].mean().item()

    def by_label(self) -> dict[int, tuple[int, int]]:
        """``(num_true, num_correct)`` of each label that occurs."""
        return {label: (int(self.num_true[label]), int(self.num_correct[label])) for label in self.present.tolist()}

    def confusion(self) -> Tensor:
        """Confusion matrix (K, K) float64: true label by predicted label, each row divided by its sum."""
        pairs = torch.bincount(self.labels * self.size + self.predicted, minlength=self.size**2)
        return pairs.reshape(self.size, self.size).double() / self.num_true.clamp_min(1).unsqueeze(1)


def expected_calibration_error(confidence: Tensor, correct: Tensor, num_bins: int = 15) -> float:
    """Expected calibration error over bins of equal width, https://arxiv.org/abs/1706.04599, equations 2 and 3.

        ECE = sum_m  n_m / N * | accuracy_m - confidence_m |,   bin m = ((m - 1) / M, m / M]

    Args:
        confidence: (N,) largest softmax probability per image.
        correct: (N,) whether the predicted class is the true one.
        num_bins: number of bins M.

    Returns:
        A fraction between 0 and 1.
    """
    confidence = confidence.double()
    bins = (confidence * num_bins).ceil().long().sub(1).clamp(0, num_bins - 1)
    # n_m |accuracy_m - confidence_m| is the absolute value of the bin's summed differences.
    gaps = torch.zeros(num_bins, dtype=torch.float64, device=confidence.device)
    gaps.index_add_(0, bins, correct.double() - confidence)
    return (gaps.abs().sum() / len(confidence)).item()


def average_precisions(scores: Tensor, targets: Tensor) -> Tensor:
    """Average precision of each class: the mean, over its images, of the precision at the rank of each.

        AP = sum_n (R_n - R_{n-1}) P_n,   P_n and R_n with the images that score at least as much as the n-th

    Images with equal scores have one rank, the last of theirs, as in scikit-learn.

    Args:
        scores: (N, K), any increasing function of the logits.
        targets: bool (N, K), whether an image has a class.

    Returns:
        (K,) float64, fractions; NaN for a class without an image.
    """
    found = [_average_precisions(*part) for part in zip(scores.split(64, 1), targets.split(64, 1), strict=True)]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.float64)


def _average_precisions(scores: Tensor, targets: Tensor) -> Tensor:
    """The same of few classes; it takes some twenty times the memory of the scores."""
    ranked, order = scores.sort(dim=0, descending=True)
    hits = targets.gather(0, order).double()
    ranks = torch.arange(1, len(scores) + 1, device=scores.device, dtype=torch.float64)[:, None]
    precision = hits.cumsum(0) / ranks
    # Of equal scores, the rank of the last one: the least rank from here on at which the score falls.
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
