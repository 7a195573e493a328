"""Evaluators: batches of logits and labels in, a dict of numbers out.

Shapes: B images per batch, N images in total, K classes.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor

from dassl_lite.config import CN, completed
from dassl_lite.evaluation.metrics import Calibration, ClassCounts
from dassl_lite.utils.errors import UserError, printable
from dassl_lite.utils.files import atomic_path
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.registry import Registry

logger = get_logger(__name__)

T = TypeVar("T")

EVALUATOR_REGISTRY = Registry("evaluator")
MOST_KEPT = 1_000_000  # the evaluator keeps labels and predictions of up to this many images; beyond that, only sums
_BLOCK = 65_536  # images counted at a time
MULTI_LABEL = "MultiLabelClassification"  # replaces Classification where images have several classes


def build_evaluator(
    cfg: CN, lab2cname: Mapping[int, str] | None = None, *, multi_label: bool = False, **kwargs: Any
) -> EvaluatorBase:
    """Build the evaluator named by TEST.EVALUATOR.

    Args:
        cfg: the full config.
        lab2cname: class name of each label.
        multi_label: whether images have several classes; if so, mAP and F1 replace the default, Classification.
        **kwargs: passed on to the evaluator.

    Raises:
        UserError: no such evaluator; the message lists the choices.
    """
    cfg = completed(cfg)
    name = MULTI_LABEL if multi_label and cfg.TEST.EVALUATOR == "Classification" else cfg.TEST.EVALUATOR
    evaluator = EVALUATOR_REGISTRY.get(name)
    if cfg.VERBOSE:
        logger.info(f"Loading evaluator: {name}")
    return evaluator(cfg, lab2cname=lab2cname, **kwargs)


class EvaluatorBase:
    """The contract: call ``reset()``, then ``process`` for every batch, then ``evaluate``."""

    def __init__(self, cfg: CN) -> None:
        self.cfg = cfg

    def reset(self) -> None:
        """Forget all batches."""
        raise NotImplementedError

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Add a batch: model output (B, K) and ground truth, (B,) or, for a multi-label dataset, bool (B, K)."""
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        """Return the metrics over all batches; the first one selects models."""
        raise NotImplementedError


class ClassResult(TypedDict):
    """How one class was classified; ``accuracy`` in percent."""

    label: int
    classname: str
    total: int
    correct: int
    accuracy: float


class _Field(Generic[T]):
    """An attribute of a ``PredictionRecord`` that is up to date whenever it is read or set."""

    def __set_name__(self, owner: type[PredictionRecord], name: str) -> None:
        self.name = name

    def __get__(self, record: PredictionRecord, owner: type[PredictionRecord] | None = None) -> T:
        record._flush()
        return record._fields[self.name]

    def __set__(self, record: PredictionRecord, value: T) -> None:
        record._flush()
        record._fields[self.name] = value
        if self.name == "_y_true" and not value:  # a derived evaluator's reset() knows Dassl's fields only
            record._fields["_confidence"] = []


class PredictionRecord:
    """Labels and predictions so far, under the names that evaluators derived from Dassl's read and write.

    Batches stay on their device and are copied to the CPU together when a field is read, so adding one never waits
    for the GPU.
    """

    _correct = _Field[int]()  # number of images
    _total = _Field[int]()
    _y_true = _Field[list[int]]()  # one label per image
    _y_pred = _Field[list[int]]()
    _per_class_res = _Field[
        "dict[int, list[int]] | None"
    ]()  # label -> 1 (right) or 0 (wrong) per image; None: not kept
    _confidence = _Field[list[float]]()  # not in Dassl: largest softmax probability per image

    _fields: dict[str, Any]
    _waiting: list[tuple[Tensor, Tensor, Tensor]]
    _page: tuple[Tensor, Tensor, Tensor] | None = None  # page that the next batch is written to
    _filled = 0  # rows of it in use

    def _start_record(self, per_class: bool) -> None:
        """Forget all batches; ``per_class``: whether to keep ``_per_class_res``."""
        self._waiting, self._page = [], None
        self._fields = {"_correct": 0, "_total": 0, "_y_true": [], "_y_pred": [], "_confidence": []}
        self._fields["_per_class_res"] = defaultdict(list) if per_class else None

    def _add_batch(self, labels: Tensor, predicted: Tensor, confidence: Tensor) -> None:
        """Add a batch, (B,) each and all on one device.

        It is copied to a page of many batches. Small tensors left between freed logits would keep malloc from reusing
        that memory, which would add up to the size of all logits.
        """
        batch, size = (labels, predicted, confidence), len(labels)
        page = self._page
        alike = page is not None and all(
            (to.dtype, to.device) == (of.dtype, of.device) for to, of in zip(page, batch, strict=True)
        )
        if page is None or not alike or self._filled + size > len(page[0]):
            room = max(_BLOCK, size)
            page = labels.new_empty(room), predicted.new_empty(room), confidence.new_empty(room)
            self._page, self._filled = page, 0
            self._waiting.append(page)
        end = self._filled + size
        for to, of in zip(page, batch, strict=True):
            to[self._filled : end] = of
        self._waiting[-1] = page[0][:end], page[1][:end], page[2][:end]
        self._filled = end

    def _unread(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Labels, predictions and confidences, (N,) each on the CPU, if all batches are waiting; else None."""
        fields = self._fields
        if not self._waiting or fields["_total"] or fields["_y_true"] or fields["_per_class_res"] is not None:
            return None
        if len(self._waiting) > 1:
            self._waiting = [tuple(torch.cat(part) for part in zip(*self._waiting, strict=True))]  # type: ignore[list-item]
            self._page = None
        labels, predicted, confidence = self._waiting[0]
        return labels.cpu(), predicted.cpu(), confidence.cpu()

    def _flush(self) -> None:
        """Add the waiting batches to the fields."""
        if not self._waiting:
            return
        labels, predicted, confidence = (torch.cat(part).tolist() for part in zip(*self._waiting, strict=True))
        self._waiting, self._page = [], None
        fields, matches = self._fields, [int(a == b) for a, b in zip(labels, predicted, strict=True)]
        fields["_correct"] += sum(matches)
        fields["_total"] += len(labels)
        fields["_y_true"].extend(labels)
        fields["_y_pred"].extend(predicted)
        fields["_confidence"].extend(confidence)
        if fields["_per_class_res"] is not None:
            for label, match in zip(labels, matches, strict=True):
                fields["_per_class_res"][label].append(match)


@EVALUATOR_REGISTRY.register()
class Classification(PredictionRecord, EvaluatorBase):
    """Accuracy, error rate, macro F1 and calibration error, all in percent.

    A derived evaluator may do its own counting in the fields of ``PredictionRecord``; ``evaluate`` uses what it finds
    there.

    Args:
        cfg: TEST.PER_CLASS_RESULT logs every class and adds their average, TEST.COMPUTE_CMAT saves the confusion
            matrix as OUTPUT_DIR/cmat.pt.
        lab2cname: class name of each label.

    Attributes:
        most_kept: images up to which labels and predictions are kept, beyond that only sums; None: ``MOST_KEPT``.
        per_class: after ``evaluate``, one entry per class that occurs.
        confusion: after ``evaluate`` with TEST.COMPUTE_CMAT, (K, K) float64: rows are true labels, columns predicted
            ones, each row divided by its sum; the row of a label that does not occur is all zeros.
    """

    most_kept: int | None = None
    per_class: list[ClassResult]
    confusion: Tensor | None

    def __init__(self, cfg: CN, lab2cname: Mapping[int, str] | None = None, **kwargs: object) -> None:
        super().__init__(cfg)
        self._lab2cname = lab2cname or {}
        # Not self.reset(): a derived one may use attributes that its own __init__ has yet to set.
        Classification.reset(self)

    def reset(self) -> None:
        self._start_record(self.cfg.TEST.PER_CLASS_RESULT)
        self._sums: tuple[ClassCounts, Calibration] | None = None
        self._num_classes = self._seen = self._unsummed = 0
        self.per_class = []
        self.confusion = None

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Add logits (B, K) and integer labels (B,); on a tie, the first class is predicted."""
        logits = mo.detach()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        highest, predicted = logits.max(dim=1)
        labels = gt.detach().to(predicted.device).reshape(-1)
        self._add_batch(labels, predicted, (highest - logits.logsumexp(dim=1)).exp())
        self._num_classes = max(self._num_classes, logits.shape[1])
        if type(self) is Classification:
            self._seen += len(labels)
            self._unsummed += len(labels)
            if self._seen > (MOST_KEPT if self.most_kept is None else self.most_kept) and self._unsummed >= _BLOCK:
                self._unsummed = 0
                self._sum_up()

    def _sum_up(self) -> None:
        """Replace the records by their sums. Only derived evaluators may need the single images; this one does not."""
        counts, calibration = self._sums = self._sums or (ClassCounts(self.cfg.TEST.COMPUTE_CMAT), Calibration())
        fields, waiting = self._fields, self._waiting
        self._waiting, self._page = [], None
        blocks = [tuple(torch.cat(part).cpu() for part in zip(*waiting, strict=True))] if waiting else []
        if fields["_y_true"]:
            kept = _indices(fields["_y_true"]), _indices(fields["_y_pred"]), torch.tensor(fields["_confidence"])
            blocks.insert(0, kept)
        self._start_record(per_class=False)
        for labels, predicted, confidence in blocks:
            counts.add(labels, predicted, self._num_classes)
            calibration.add(confidence, labels == predicted)

    def evaluate(self) -> OrderedDict[str, float]:
        """Compute the metrics, and log them in the format that the field's result parsers read.

        Returns:
            In percent: accuracy, error_rate, macro_f1; perclass_accuracy with TEST.PER_CLASS_RESULT; ece (unless a
            derived evaluator does its own counting).

        Raises:
            UserError: no batch was processed.
        """
        if self._sums is not None:
            self._sum_up()  # the rest
            counts, calibration = self._sums
            total, correct = int(counts.num_true.sum()), int(counts.num_correct.sum())
        else:
            unread = self._unread()  # faster than building lists of Python numbers that may never be read
            if unread is not None:
                labels, predicted, confidence = unread
                total, correct = len(labels), int((labels == predicted).sum())
            else:
                total, correct = self._total, self._correct
                labels, predicted = _indices(self._y_true), _indices(self._y_pred)
                confidence = torch.tensor(self._confidence, dtype=torch.float64)
            if not total:
                raise UserError("nothing to evaluate: the split has no images")
            counts = ClassCounts(self.cfg.TEST.COMPUTE_CMAT).add(labels, predicted, self._num_classes)
            calibration = None
            if len(confidence) == len(labels):  # a derived evaluator that does its own counting records none
                calibration = Calibration().add(confidence, labels == predicted)
        results: OrderedDict[str, float] = OrderedDict(accuracy=100.0 * correct / total)
        results["error_rate"] = 100.0 - results["accuracy"]
        results["macro_f1"] = 100.0 * counts.macro_f1()
        self.per_class = self._results_by_class(counts)
        self._log_summary(total, correct, results)
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._log_per_class()
        if self.cfg.TEST.COMPUTE_CMAT:
            self.confusion = counts.confusion()
            self._save_confusion(self.confusion)
        if calibration is not None:
            if calibration.bad:
                logger.warning(
                    f"{calibration.bad} of {total} rows of logits contain NaN or infinity; the results are unreliable"
                )
            results["ece"] = 100.0 * calibration.error()
        return results

    def _results_by_class(self, counts: ClassCounts) -> list[ClassResult]:
        # A derived evaluator may count more than equal labels as a match.
        own = None if self._fields["_per_class_res"] is None else self._per_class_res
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
        logger.info(f"* total: {total:,}")
        logger.info(f"* correct: {correct:,}")
        logger.info(f"* accuracy: {results['accuracy']:.1f}%")
        logger.info(f"* error: {results['error_rate']:.1f}%")
        logger.info(f"* macro_f1: {results['macro_f1']:.1f}%")

    def _log_per_class(self) -> float:
        """Log every class that occurs and return their mean accuracy."""
        logger.info("=> per-class result")
        for row in self.per_class:
            logger.info(
                f"* class: {row['label']} ({printable(row['classname'])})\ttotal: {row['total']:,}\t"
                f"correct: {row['correct']:,}\tacc: {row['accuracy']:.1f}%"
            )
        average = sum(row["accuracy"] for row in self.per_class) / len(self.per_class)
        logger.info(f"* average: {average:.1f}%")
        return average

    def _save_confusion(self, confusion: Tensor) -> None:
        path = Path(self.cfg.OUTPUT_DIR) / "cmat.pt"
        with atomic_path(path) as temporary:
            torch.save(confusion, temporary)
        logger.info(f"Confusion matrix is saved to {path}")


def _indices(values: Sequence[int]) -> Tensor:
    """(N,) int64 on the CPU."""
    return torch.from_numpy(np.asarray(values, dtype=np.int64))
