"""Evaluators, found by the name in TEST.EVALUATOR."""

from dassl_lite.evaluation.evaluator import EVALUATOR_REGISTRY, Classification, EvaluatorBase, build_evaluator
from dassl_lite.evaluation.metrics import expected_calibration_error

__all__ = ["EVALUATOR_REGISTRY", "Classification", "EvaluatorBase", "build_evaluator", "expected_calibration_error"]
