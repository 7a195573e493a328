"""Evaluators, found by the name in TEST.EVALUATOR."""

from dassl_lite.evaluation.evaluator import EVALUATOR_REGISTRY, Classification, EvaluatorBase, build_evaluator
from dassl_lite.evaluation.metrics import average_precisions, best_threshold, expected_calibration_error
from dassl_lite.evaluation.multi_label import MultiLabelClassification

__all__ = [
    "EVALUATOR_REGISTRY",
    "Classification",
    "EvaluatorBase",
    "MultiLabelClassification",
    "average_precisions",
    "best_threshold",
    "build_evaluator",
    "expected_calibration_error",
]
