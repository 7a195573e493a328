"""mAP and F1 of images with several classes, compared with scikit-learn, and the threshold for F1."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor

from dassl_lite.config import get_cfg_default
from dassl_lite.evaluation import (
    Classification,
    MultiLabelClassification,
    average_precisions,
    best_threshold,
    build_evaluator,
)
from dassl_lite.utils.errors import UserError


def random_case(n: int = 80, k: int = 7, *, ties: bool = False, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and classes (N, K); the last class has no image."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(n, k, generator=generator) < torch.linspace(0.5, 0.05, k)
    targets[:, -1] = False
    logits = torch.randn(n, k, generator=generator) + 1.5 * targets
    return (logits.round() if ties else logits), targets


def evaluator(threshold: float | None = None, **test: Any) -> MultiLabelClassification:
    cfg = get_cfg_default()
    for name, value in test.items():
        cfg.TEST[name] = value
    found = build_evaluator(cfg, {0: "ant", 6: "yak"}, multi_label=True)
    assert isinstance(found, MultiLabelClassification)
    found.threshold = threshold
    return found


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_equals_scikit_learn(ties: bool) -> None:
    logits, targets = random_case(ties=ties)
    found = average_precisions(logits, targets)
    for label in range(6):
        expected = average_precision_score(targets[:, label].numpy(), logits[:, label].numpy())
        assert found[label].item() == pytest.approx(expected, rel=1e-12)
    assert found[6].isnan()


def test_classes_beyond_the_first_chunk_are_computed() -> None:
    logits, targets = random_case(30, 150)
    parts = [average_precisions(logits[:, i : i + 1], targets[:, i : i + 1]) for i in range(150)]
    assert torch.allclose(average_precisions(logits, targets), torch.cat(parts), rtol=1e-12, equal_nan=True)


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.7])
def test_metrics_equal_scikit_learn_over_classes_with_images(threshold: float) -> None:
    logits, targets = random_case()
    evaluation = evaluator(threshold)
    for start in range(0, 80, 32):
        evaluation.process(logits[start : start + 32], targets[start : start + 32])
    results = evaluation.evaluate()
    true, predicted = targets.numpy(), (logits > threshold).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        micro = f1_score(true, predicted, average="micro", zero_division=0)
        macro = f1_score(true[:, :6], predicted[:, :6], average="macro", zero_division=0)
    precision = average_precision_score(true[:, :6], logits[:, :6].numpy(), average="macro")
    assert list(results) == ["mAP", "micro_f1", "macro_f1"]
    assert list(results.values()) == pytest.approx([100 * precision, 100 * micro, 100 * macro], rel=1e-12)


def test_classes_without_images_are_left_out_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    evaluation = evaluator()
    evaluation.process(*random_case())
    evaluation.evaluate()
    assert "leave out the classes that no image here has: 1 (yak)" in caplog.text
    assert evaluation.per_class[6] == {"label": 6, "classname": "yak", "total": 0, "ap": None}
    assert evaluation.per_class[0]["classname"] == "ant"


def test_every_class_is_logged_on_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dassl_lite")
    evaluation = evaluator(PER_CLASS_RESULT=True)
    evaluation.process(*random_case())
    evaluation.evaluate()
    ant = evaluation.per_class[0]
    assert f"* class: 0 (ant)\ttotal: {ant['total']}\tAP: {ant['ap']:.1f}%" in caplog.text
    assert "* class: 6 (yak)\ttotal: 0\tAP: none" in caplog.text


def test_without_a_threshold_there_is_no_f1() -> None:
    evaluation = evaluator()
    evaluation.process(*random_case())
    assert list(evaluation.evaluate()) == ["mAP"]


def test_one_label_per_image_is_read_as_a_single_class() -> None:
    logits, labels = torch.randn(20, 4, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 4
    one, several = evaluator(0.1), evaluator(0.1)
    one.process(logits, labels)
    several.process(logits, torch.eye(4, dtype=torch.bool)[labels])
    assert one.evaluate() == several.evaluate()


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(UserError, match="no images"):
        evaluator().evaluate()
    evaluation = evaluator()
    evaluation.process(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(UserError, match="no image of the split has a class"):
        evaluation.evaluate()


def test_bad_logits_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    evaluation = evaluator()
    logits, targets = random_case()
    logits[3, 2] = float("nan")
    evaluation.process(logits, targets)
    evaluation.evaluate()
    assert "1 of 80 rows of logits contain NaN or infinity" in caplog.text


def test_a_configured_evaluator_replaces_the_default() -> None:
    cfg = get_cfg_default()
    assert type(build_evaluator(cfg)) is Classification
    cfg.TEST.EVALUATOR = "MultiLabelClassification"
    assert type(build_evaluator(cfg)) is MultiLabelClassification


# ---- the threshold ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True])
def test_no_other_threshold_has_a_higher_micro_f1(seed: int, ties: bool) -> None:
    logits, targets = random_case(40, 5, ties=ties, seed=seed)

    def f1(threshold: float) -> float:
        predicted = logits > threshold
        return float(2 * (predicted & targets).sum() / (predicted.sum() + targets.sum()))

    tried = torch.cat([logits.flatten(), logits.flatten() + 1e-4, logits.flatten() - 1e-4]).tolist()
    assert f1(best_threshold(logits, targets)) == max(map(f1, tried))


@pytest.mark.parametrize(("prior", "expected"), [(0.0, 0.0), (0.9, 0.9), (3.0, 0.25), (-2.0, 0.25)])
def test_the_threshold_is_the_prior_if_it_lies_in_the_gap(prior: float, expected: float) -> None:
    """Any threshold between -0.5 and 1.0 separates the classes."""
    scores, targets = torch.tensor([[2.0, 1.0], [-0.5, -1.0]]), torch.tensor([[True, True], [False, False]])
    assert best_threshold(scores, targets, prior) == expected


def test_among_equally_good_gaps_the_nearest_to_the_prior_is_chosen() -> None:
    """Micro-F1 is 2/3 in both gaps: one of two found and nothing wrong, or two found and two wrong."""
    scores, targets = torch.tensor([[4.0], [3.0], [2.0], [1.0], [-5.0]]), torch.tensor([[1], [0], [0], [1], [0]]).bool()
    assert best_threshold(scores, targets, prior=9.0) == 3.5
    assert best_threshold(scores, targets, prior=-9.0) == -2.0
