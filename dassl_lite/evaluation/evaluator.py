"""Evaluators: batches of logits and labels in, a dict of numbers out."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dassl_lite.config import CN
from dassl_lite.evaluation.build import EVALUATOR_REGISTRY
from dassl_lite.evaluation.calibration import expected_calibration_error
from dassl_lite.evaluation.class_counts import ClassCounts
from dassl_lite.evaluation.tallies import Tallies
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import atomic_path

logger = logging.getLogger(__name__)


class EvaluatorBase:
    """The contract: ``reset()``, then ``process`` for every batch, then ``evaluate``."""

    def __init__(self, cfg: CN) -> None:
        self.cfg = cfg

    def reset(self) -> None:
        """Forget every batch."""
        raise NotImplementedError

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Take in a batch: model output (B, K) and ground truth (B,)."""
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        """The metrics over all batches; the first is the one that models are selected by."""
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(Tallies, EvaluatorBase):
    """Accuracy, error rate, macro F1 and calibration error, all in percent.

    An evaluator derived from it may count for itself, in the fields of ``Tallies``: what they hold is evaluated.

    Args:
        cfg: TEST.PER_CLASS_RESULT logs every class and adds their average, TEST.COMPUTE_CMAT saves the confusion
            matrix as OUTPUT_DIR/cmat.pt.
        lab2cname: class name of each label.

    Attributes:
        per_class: after ``evaluate``, a dict per class that occurs (label, classname, total, correct, accuracy).
        confusion: after ``evaluate`` with TEST.COMPUTE_CMAT, (K, K) float64: row = true label, column = predicted,
            each row divided by its sum; a label that does not occur has a row of zeros.
    """

    def __init__(self, cfg: CN, lab2cname: Mapping[int, str] | None = None, **kwargs: Any) -> None:
        super().__init__(cfg)
        self._lab2cname = lab2cname or {}
        Classification.reset(self)  # not a derived one's, which may need what its own __init__ has yet to set

    def reset(self) -> None:
        self._forget(self.cfg.TEST.PER_CLASS_RESULT)
        self._num_classes = 0
        self.per_class: list[dict[str, Any]] = []
        self.confusion: Tensor | None = None

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Take in logits (B, K) and labels (B,), integers; of equal logits the first counts."""
        logits = mo.detach()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        highest, predicted = logits.max(dim=1)
        self._take(gt.detach().to(predicted.device).reshape(-1), predicted, (highest - logits.logsumexp(dim=1)).exp())
        self._num_classes = max(self._num_classes, logits.shape[1])

    def evaluate(self) -> OrderedDict[str, float]:
        """The metrics, logged as the field's result parsers expect them.

        Returns:
            accuracy, error_rate, macro_f1; perclass_accuracy with TEST.PER_CLASS_RESULT; ece (not where a derived
            evaluator counts for itself). Percent.

        Raises:
            UserError: there was no batch.
        """
        total, correct = self._total, self._correct
        if not total:
            raise UserError("nothing to evaluate: the split has no images")
        labels, predicted = _indices(self._y_true), _indices(self._y_pred)
        results: OrderedDict[str, float] = OrderedDict(accuracy=100.0 * correct / total)
        results["error_rate"] = 100.0 - results["accuracy"]
        counts = ClassCounts(labels, predicted, self._num_classes)
        results["macro_f1"] = 100.0 * counts.macro_f1()
        self.per_class = self._per_class_table(counts)
        self._log_summary(total, correct, results)
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._log_per_class()
        if self.cfg.TEST.COMPUTE_CMAT:
            self.confusion = counts.confusion()
            self._save_confusion(self.confusion)
        if len(self._confidence) == len(labels):  # not so where a derived evaluator counts for itself
            confidence = torch.tensor(self._confidence, dtype=torch.float64)
            if odd := int((~confidence.isfinite()).sum()):
                logger.warning("%s of %s rows of logits are not finite: these results mean little", odd, total)
            results["ece"] = 100.0 * expected_calibration_error(confidence, labels == predicted)
        return results

    def _per_class_table(self, counts: ClassCounts) -> list[dict[str, Any]]:
        own = self._per_class_res  # a derived evaluator may count other matches than labels that are equal
        found = {k: (len(own[k]), sum(own[k])) for k in sorted(own)} if own else counts.by_label()
        return [
            {
                "label": label,
                "classname": self._lab2cname.get(label, str(label)),
                "total": total,
                "correct": correct,
                "accuracy": 100.0 * correct / total,
            }
            for label, (total, correct) in found.items()
        ]

    def _log_summary(self, total: int, correct: int, results: Mapping[str, float]) -> None:
        logger.info("=> result")
        logger.info("* total: %s", f"{total:,}")
        logger.info("* correct: %s", f"{correct:,}")
        logger.info("* accuracy: %.1f%%", results["accuracy"])
        logger.info("* error: %.1f%%", results["error_rate"])
        logger.info("* macro_f1: %.1f%%", results["macro_f1"])

    def _log_per_class(self) -> float:
        """Log every class that occurs, and return the average of their accuracies."""
        logger.info("=> per-class result")
        for row in self.per_class:
            logger.info(
                "* class: %s (%s)\ttotal: %s\tcorrect: %s\tacc: %.1f%%",
                row["label"],
                row["classname"],
                f"{row['total']:,}",
                f"{row['correct']:,}",
                row["accuracy"],
            )
        average = sum(row["accuracy"] for row in self.per_class) / len(self.per_class)
        logger.info("* average: %.1f%%", average)
        return average

    def _save_confusion(self, confusion: Tensor) -> None:
        path = Path(self.cfg.OUTPUT_DIR) / "cmat.pt"
        with atomic_path(path) as temporary:
            torch.save(confusion, temporary)
        logger.info("Confusion matrix is saved to %s", path)


def _indices(values: Sequence[int]) -> Tensor:
    """(N,) int64 on the CPU."""
    return torch.from_numpy(np.asarray(values, dtype=np.int64))
