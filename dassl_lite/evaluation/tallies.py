"""What an evaluator has seen, in the fields that evaluators derived from Dassl's read and write."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor


def _field(name: str) -> Any:
    def get(self: Tallies) -> Any:
        self._settle()
        return self._fields[name]

    def put(self: Tallies, value: Any) -> None:
        self._settle()
        self._fields[name] = value
        if name == "y_true" and not value:  # how a reset of one's own begins anew
            self._fields["confidence"] = []

    return property(get, put)


class Tallies:
    """Labels and predictions so far.

    Batches wait where they were computed, so that one costs no wait for the device; they are read in one go when
    somebody looks at a field.
    """

    _correct = _field("correct")  # images
    _total = _field("total")
    _y_true = _field("y_true")  # a label per image
    _y_pred = _field("y_pred")
    _per_class_res = _field("per_class_res")  # label -> 1 or 0 per image, right or wrong; None: not asked for
    _confidence = _field("confidence")  # ours: largest softmax probability per image

    def _forget(self, per_class: bool) -> None:
        """Start anew; ``per_class``: whether ``_per_class_res`` is asked for."""
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._fields: dict[str, Any] = {"correct": 0, "total": 0, "y_true": [], "y_pred": [], "confidence": []}
        self._fields["per_class_res"] = defaultdict(list) if per_class else None

    def _take(self, labels: Tensor, predicted: Tensor, confidence: Tensor) -> None:
        """A batch (B,) each, on one device."""
        self._waiting.append((labels, predicted, confidence))

    def _settle(self) -> None:
        if not self._waiting:
            return
        labels, predicted, confidence = (torch.cat(part).tolist() for part in zip(*self._waiting, strict=True))
        self._waiting = []
        fields, matches = self._fields, [int(a == b) for a, b in zip(labels, predicted, strict=True)]
        fields["correct"] += sum(matches)
        fields["total"] += len(labels)
        fields["y_true"].extend(labels)
        fields["y_pred"].extend(predicted)
        fields["confidence"].extend(confidence)
        if fields["per_class_res"] is not None:
            for label, match in zip(labels, matches, strict=True):
                fields["per_class_res"][label].append(match)
