"""Numbers computed from labels, predictions and confidences.

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
