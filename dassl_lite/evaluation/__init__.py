"""Evaluators, found by the name in TEST.EVALUATOR."""

from dassl_lite.evaluation.build import EVALUATOR_REGISTRY, build_evaluator
from dassl_lite.evaluation.calibration import expected_calibration_error
from dassl_lite.evaluation.evaluator import Classification, EvaluatorBase

__all__ = ["EVALUATOR_REGISTRY", "Classification", "EvaluatorBase", "build_evaluator", "expected_calibration_error"]
