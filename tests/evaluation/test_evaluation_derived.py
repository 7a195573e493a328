"""Third-party evaluators derived from Dassl's, which read its fields or fill them themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dassl_lite.config import get_cfg_default
from dassl_lite.evaluation import EVALUATOR_REGISTRY, Classification, build_evaluator

NAMES = {0: "cat", 1: "dog", 2: "owl"}
# Predictions: right, right, wrong (the second best is right), right, wrong (neither is right).
LOGITS = torch.tensor([[3.0, 1, 0], [2, 0, 1], [3, 2, 0], [0, 1, 3], [3, 0, 2]])
LABELS = torch.tensor([0, 0, 1, 2, 1])


class Reading(Classification):
    """Reads the fields during the run and after it."""

    def __init__(self, cfg, lab2cname=None, **kwargs):
        super().__init__(cfg, lab2cname=lab2cname, **kwargs)
        self.seen = []

    def reset(self):
        super().reset()
        self.seen.clear()  # set after super().__init__(), which must not call this

    def process(self, mo, gt):
        super().process(mo, gt)
        self.seen.append((self._correct, self._total))

    def evaluate(self):
        results = super().evaluate()
        table = {self._lab2cname[label]: list(found) for label, found in self._per_class_res.items()}
        pairs = list(zip(self._y_true, self._y_pred, strict=True))
        self.fields = {"table": table, "pairs": pairs, "kinds": {type(n) for pair in pairs for n in pair}}
        return results


class Counting(Classification):
    """Counts the top two predictions, and resets only the fields that Dassl has."""

    def reset(self):
        self._correct = 0
        self._total = 0
        self._y_true = []
        self._y_pred = []
        if self._per_class_res is not None:
            self._per_class_res = defaultdict(list)

    def process(self, mo, gt):
        best = mo.topk(2, dim=1).indices
        matches = best.eq(gt[:, None]).any(1).float()
        self._correct += int(matches.sum().item())
        self._total += gt.shape[0]
        self._y_true.extend(gt.data.cpu().numpy().tolist())
        self._y_pred.extend(best[:, 0].data.cpu().numpy().tolist())
        if self._per_class_res is not None:
            for i, label in enumerate(gt):
                self._per_class_res[label.item()].append(int(matches[i].item()))


class Resetting(Classification):
    """Overrides reset but not process."""

    reset = Counting.reset


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    kept = dict(EVALUATOR_REGISTRY._table)
    for kind in (Reading, Counting, Resetting):
        EVALUATOR_REGISTRY.register(kind)
    yield
    EVALUATOR_REGISTRY._table = kept


def run(name: str, per_class: bool = True) -> tuple[Any, Any]:
    """The evaluator, built by name, and its results on the second split that it sees."""
    cfg = get_cfg_default()
    cfg.TEST.EVALUATOR, cfg.TEST.PER_CLASS_RESULT = name, per_class
    evaluator = build_evaluator(cfg, lab2cname=NAMES)
    for _ in range(2):
        evaluator.reset()
        for logits, labels in zip(LOGITS.split(2), LABELS.split(2), strict=True):
            evaluator.process(logits, labels)
        results = evaluator.evaluate()
    return evaluator, results


def test_dassls_fields_contain_the_processed_batches() -> None:
    evaluator, results = run("Reading")
    assert evaluator.seen == [(2, 2), (3, 4), (3, 5)]
    assert evaluator.fields["table"] == {"cat": [1, 1], "dog": [0, 0], "owl": [1]}
    assert evaluator.fields["pairs"] == [(0, 0), (0, 0), (1, 0), (2, 2), (1, 0)]
    assert evaluator.fields["kinds"] == {int}
    assert results["accuracy"] == pytest.approx(60.0)


def test_the_per_class_field_is_none_unless_requested() -> None:
    evaluator, _ = run("Classification", per_class=False)
    assert evaluator._per_class_res is None  # Dassl's code checks this before writing


def test_counts_of_a_derived_evaluator_are_evaluated() -> None:
    evaluator, results = run("Counting")
    assert results["accuracy"] == pytest.approx(80.0)  # from the top two predictions
    assert results["macro_f1"] == pytest.approx(100 * (2 / 3 + 0 + 1) / 3)  # from the top prediction
    assert results["perclass_accuracy"] == pytest.approx(100 * (1 + 0.5 + 1) / 3)
    assert [(row["total"], row["correct"]) for row in evaluator.per_class] == [(2, 2), (2, 1), (1, 1)]
    assert "ece" not in results  # its process records no confidences


def test_a_derived_reset_forgets_the_previous_split() -> None:
    assert run("Resetting")[1] == run("Classification")[1]
