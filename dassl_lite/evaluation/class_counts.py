"""What the metrics per class are made of."""

from __future__ import annotations

import torch
from torch import Tensor


class ClassCounts:
    """int64 counts (K,) of true, predicted and correctly predicted labels.

    Args:
        labels, predicted: (N,) int64, N above 0.
        num_classes: columns of the logits; K is larger where a label is.
    """

    def __init__(self, labels: Tensor, predicted: Tensor, num_classes: int) -> None:
        # A label beyond the logits' columns is one that the model cannot predict: wrong, but counted.
        self.size = max(num_classes, int(labels.max()) + 1, int(predicted.max()) + 1)
        self.labels, self.predicted = labels, predicted
        self.true = torch.bincount(labels, minlength=self.size)
        self.claimed = torch.bincount(predicted, minlength=self.size)
        self.hit = torch.bincount(labels[labels == predicted], minlength=self.size)
        self.present = self.true.nonzero().flatten()

    def macro_f1(self) -> float:
        """Mean over the labels that occur of 2 hit / (true + claimed), the harmonic mean of precision and recall."""
        f1 = 2 * self.hit.double() / (self.true + self.claimed)
        return f1[self.present].mean().item()

    def by_label(self) -> dict[int, tuple[int, int]]:
        """Of each label that occurs, how often it does and how often it is right."""
        return {label: (int(self.true[label]), int(self.hit[label])) for label in self.present.tolist()}

    def confusion(self) -> Tensor:
        """(true label, predicted label) float64, rows divided by their sums."""
        pairs = torch.bincount(self.labels * self.size + self.predicted, minlength=self.size**2)
        return pairs.reshape(self.size, self.size).double() / self.true.clamp_min(1).unsqueeze(1)
