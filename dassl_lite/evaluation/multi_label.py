"""The evaluator of multi-label datasets: mean average precision, and F1 at a threshold.

Shapes: B images per batch, N images in total, K classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TypedDict

import torch
from torch import Tensor

from dassl_lite.config import CN
from dassl_lite.evaluation.evaluator import EVALUATOR_REGISTRY, EvaluatorBase
from dassl_lite.evaluation.metrics import average_precisions
from dassl_lite.utils.errors import UserError, printable
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)


class MultiLabelClassResult(TypedDict):
    """How one class was found: ``ap`` is average precision in percent, None where ``total``, its images, is 0."""

    label: int
    classname: str
    total: int
    ap: float | None


@EVALUATOR_REGISTRY.register()
class MultiLabelClassification(EvaluatorBase):
    """Mean average precision (mAP), micro-F1 and macro-F1, all in percent; for images with several classes.

    mAP and macro-F1 are means over the classes that have test images. A class is predicted where its logit is above
    ``threshold``; without one there is no F1. On a dataset of one class per image, each label stands for its class.

    Args:
        cfg: TEST.PER_CLASS_RESULT logs every class.
        lab2cname: class name of each label.

    Attributes:
        threshold: logit above which a class is predicted; a trainer sets it before ``evaluate``, not from test images.
        per_class: after ``evaluate``, one entry per class.
    """

    per_class: list[MultiLabelClassResult]
    threshold: float | None = None

    def __init__(self, cfg: CN, lab2cname: Mapping[int, str] | None = None, **kwargs: object) -> None:
        super().__init__(cfg)
        self._lab2cname = lab2cname or {}
        self.reset()

    def reset(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []
        self.per_class = []

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Add logits (B, K) and the classes of each image: bool (B, K), or one label each (B,)."""
        logits, targets = mo.detach().float(), gt.detach().to(mo.device)
        if targets.dim() == 1:
            targets = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, targets[:, None], True)
        self._batches.append((logits, targets.bool()))

    def evaluate(self) -> OrderedDict[str, float]:
        """Compute the metrics and log them.

        Returns:
            In percent: mAP; with a threshold micro_f1 and macro_f1.

        Raises:
            UserError: no batch was processed, or no image has a class.
        """
        if not self._batches:
            raise UserError("nothing to evaluate: the split has no images")
        logits, targets = (torch.cat(part).cpu() for part in zip(*self._batches, strict=True))
        if bad := int((~logits.isfinite()).any(1).sum()):
            logger.warning(f"{bad} of {len(logits)} rows of logits contain NaN or infinity; the results are unreliable")
        totals = targets.sum(0)
        present = totals > 0
        if not present.any():
            raise UserError("nothing to evaluate: no image of the split has a class")
        precisions = 100.0 * average_precisions(logits, targets)
        results: OrderedDict[str, float] = OrderedDict(mAP=precisions[present].mean().item())
        if self.threshold is not None:
            predicted = logits > self.threshold
            right, guessed = (predicted & targets).sum(0).double(), predicted.sum(0).double()
            results["micro_f1"] = 100.0 * (2 * right.sum() / (guessed.sum() + totals.sum())).item()
            results["macro_f1"] = 100.0 * (2 * right / (guessed + totals))[present].mean().item()
        self.per_class = [
            {"label": label, "classname": self._name(label), "total": total, "ap": ap if total else None}
            for label, (total, ap) in enumerate(zip(totals.tolist(), precisions.tolist(), strict=True))
        ]
        self._log(len(logits), results)
        return results

    def _name(self, label: int) -> str:
        return self._lab2cname.get(label, str(label))

    def _log(self, images: int, results: Mapping[str, float]) -> None:
        logger.info("=> result")
        logger.info(f"* total: {images:,}")
        for name, value in results.items():
            logger.info(f"* {name}: {value:.1f}%")
        if self.cfg.TEST.PER_CLASS_RESULT:
            logger.info("=> per-class result")
            for row in self.per_class:
                ap = "none" if row["ap"] is None else f"{row['ap']:.1f}%"
                logger.info(
                    f"* class: {row['label']} ({printable(row['classname'])})\ttotal: {row['total']:,}\tAP: {ap}"
                )
        if empty := [printable(row["classname"]) for row in self.per_class if not row["total"]]:
            first = ", ".join(empty[:3]) + (", ..." if len(empty) > 3 else "")
            logger.warning(f"mAP and macro_f1 leave out the classes that no image here has: {len(empty)} ({first})")
