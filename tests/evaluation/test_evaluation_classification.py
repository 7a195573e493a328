"""The evaluator's numbers, log lines and files compared with the reference and scikit-learn."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score

from dassl_lite.config import CN, get_cfg_default
from dassl_lite.evaluation import (
    EVALUATOR_REGISTRY,
    Classification,
    build_evaluator,
    expected_calibration_error,
)
from dassl_lite.utils.errors import UserError

CASES = ["plain", "perclass_cmat", "missing_class", "ties"]
NAMES = {label: f"name {label}" for label in range(6)}


def config(tmp_path: Path, per_class: bool = False, cmat: bool = False) -> CN:
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.TEST.PER_CLASS_RESULT = per_class
    cfg.TEST.COMPUTE_CMAT = cmat
    return cfg


def case_of(golden: Any, name: str) -> tuple[dict[str, Any], torch.Tensor]:
    """A case with its logits; the largest case only has predictions, from which logits are constructed."""
    case, arrays = golden.json("dassl_protocol")["evaluator"][name], golden.npz("dassl_protocol")
    key = f"eval.{name}.logits"
    if key in arrays.files:
        return case, torch.from_numpy(arrays[key])
    return case, torch.nn.functional.one_hot(torch.tensor(case["preds"]), 6).float()


def evaluate(evaluator: Any, logits: torch.Tensor, labels: list[int], batch: int = 10) -> Any:
    for outputs, targets in zip(logits.split(batch), torch.tensor(labels).split(batch), strict=True):
        evaluator.process(outputs, targets)
    return evaluator.evaluate()


@pytest.mark.parametrize("name", CASES)
def test_results_equal_the_reference_in_order(golden: Any, tmp_path: Path, name: str) -> None:
    case, logits = case_of(golden, name)
    evaluator = Classification(config(tmp_path, per_class="perclass_accuracy" in case["order"]), NAMES)
    results = evaluate(evaluator, logits, case["labels"])
    assert list(results) == [*case["order"], "ece"]
    for metric, expected in case["results"].items():
        assert results[metric] == pytest.approx(expected, rel=1e-12), metric


@pytest.mark.parametrize("name", CASES)
def test_evaluator_log_lines_equal_the_reference(
    golden: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    case, logits = case_of(golden, name)
    cfg = config(tmp_path, per_class="perclass_accuracy" in case["order"], cmat="cmat" in case)
    with caplog.at_level(logging.INFO):
        evaluate(Classification(cfg, NAMES), logits, case["labels"])
    text = "".join(f"{record.getMessage()}\n" for record in caplog.records)
    assert text.replace(str(tmp_path), "<output_dir>") == case["stdout"]


@pytest.mark.parametrize("name", ["perclass_cmat", "missing_class"])
def test_the_confusion_matrix_file_equals_the_reference_and_loads_safely(
    golden: Any, tmp_path: Path, name: str
) -> None:
    case, logits = case_of(golden, name)
    evaluator = Classification(config(tmp_path, cmat=True), NAMES)
    evaluate(evaluator, logits, case["labels"])
    saved = torch.load(tmp_path / "cmat.pt", weights_only=True)
    np.testing.assert_allclose(saved.numpy(), case["cmat"], rtol=1e-14)
    assert evaluator.confusion is not None
    assert torch.equal(saved, evaluator.confusion)


@pytest.mark.parametrize("name", CASES)
def test_predictions_equal_the_reference_even_for_ties(golden: Any, tmp_path: Path, name: str) -> None:
    case, logits = case_of(golden, name)
    evaluator = Classification(config(tmp_path))
    evaluate(evaluator, logits, case["labels"])
    assert evaluator._y_pred == case["preds"]


def test_results_on_random_data_equal_scikit_learn(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 20, generator=generator)
    labels = torch.randint(3, 17, (500,), generator=generator)  # labels 0-2 and 17-19 never occur
    predicted = logits.argmax(1)
    evaluator = Classification(config(tmp_path, cmat=True))
    results = evaluate(evaluator, logits, labels.tolist(), batch=64)
    f1 = f1_score(labels, predicted, average="macro", labels=np.unique(labels))
    assert results["macro_f1"] == pytest.approx(100 * f1, rel=1e-12)
    matrix = confusion_matrix(labels, predicted, labels=range(20))
    expected = matrix / matrix.sum(1, keepdims=True).clip(1)
    np.testing.assert_allclose(evaluator.confusion, expected, rtol=1e-12)


def test_the_per_class_table_is_always_available(tmp_path: Path) -> None:
    evaluator = Classification(config(tmp_path), {0: "cat", 2: "dog"})
    evaluate(evaluator, torch.eye(3)[[0, 0, 1, 2]], [0, 2, 2, 2])
    assert evaluator.per_class == [
        {"label": 0, "classname": "cat", "total": 1, "correct": 1, "accuracy": 100.0},
        {"label": 2, "classname": "dog", "total": 3, "correct": 1, "accuracy": pytest.approx(100 / 3)},
    ]


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_results_do_not_depend_on_the_batch_size(golden: Any, tmp_path: Path, batch: int) -> None:
    case, logits = case_of(golden, "plain")
    evaluator = Classification(config(tmp_path), NAMES)
    assert evaluate(evaluator, logits, case["labels"], batch) == evaluate(
        Classification(config(tmp_path), NAMES), logits, case["labels"], 10
    )


def test_reset_forgets_the_previous_split(tmp_path: Path) -> None:
    evaluator = Classification(config(tmp_path))
    evaluate(evaluator, torch.eye(3), [1, 2, 0])
    evaluator.reset()
    assert evaluate(evaluator, torch.eye(3), [0, 1, 2])["accuracy"] == 100.0


def test_half_precision_logits_are_accepted(tmp_path: Path) -> None:
    logits = 60 * torch.eye(3, dtype=torch.float16)
    results = evaluate(Classification(config(tmp_path)), logits, [0, 1, 2])
    assert (results["accuracy"], results["ece"]) == (100.0, 0.0)


def test_a_label_beyond_the_logits_counts_as_wrong(tmp_path: Path) -> None:
    results = evaluate(Classification(config(tmp_path, cmat=True)), torch.eye(3), [0, 1, 7])
    assert results["accuracy"] == pytest.approx(200 / 3)


def test_logits_that_are_not_finite_log_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logits = torch.eye(3)
    logits[1, 2] = float("nan")
    evaluate(Classification(config(tmp_path)), logits, [0, 1, 2])
    assert "1 of 3 rows of logits contain NaN or infinity" in caplog.text


def test_evaluating_without_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to evaluate"):
        Classification(config(tmp_path)).evaluate()


def test_calibration_error_matches_a_hand_computed_example() -> None:
    """Bins of width 0.5: two of two are right at 0.25 and 0.5, one of two at 0.75 and 1.0."""
    confidence = torch.tensor([0.25, 0.5, 0.75, 1.0])
    correct = torch.tensor([True, True, False, True])
    expected = 0.5 * abs(1.0 - 0.375) + 0.5 * abs(0.5 - 0.875)
    assert expected_calibration_error(confidence, correct, num_bins=2) == pytest.approx(expected)


def test_calibration_error_is_small_if_calibrated_and_equals_the_gap_if_overconfident() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(100_000, generator=generator)
    correct = torch.rand(100_000, generator=generator) < confidence
    assert expected_calibration_error(confidence, correct) < 0.01
    assert expected_calibration_error(torch.ones(100_000), correct) == pytest.approx(0.5, abs=0.01)


def test_ece_is_computed_on_the_softmax_of_the_logits(tmp_path: Path) -> None:
    logits = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.randint(0, 5, (200,), generator=torch.Generator().manual_seed(1))
    confidence, predicted = logits.softmax(1).max(1)
    expected = 100 * expected_calibration_error(confidence, predicted == labels)
    results = evaluate(Classification(config(tmp_path)), logits, labels.tolist())
    assert results["ece"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_processing_a_batch_does_not_synchronise_with_the_gpu(golden: Any, tmp_path: Path) -> None:
    case, logits = case_of(golden, "perclass_cmat")
    evaluator = Classification(config(tmp_path, cmat=True), NAMES)
    logits, labels = logits.cuda(), torch.tensor(case["labels"]).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        evaluator.process(logits, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert evaluator.evaluate()["accuracy"] == pytest.approx(case["results"]["accuracy"], rel=1e-12)


def test_building_logs_the_name_and_an_unknown_name_lists_the_choices(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = config(tmp_path)
    with caplog.at_level(logging.INFO):
        assert isinstance(build_evaluator(cfg, lab2cname=NAMES), Classification)
    assert caplog.messages == ["Loading evaluator: Classification"]
    cfg.TEST.EVALUATOR = "Clasification"
    with pytest.raises(UserError, match=r"unknown evaluator 'Clasification'\. Did you mean 'Classification'"):
        build_evaluator(cfg)


def test_a_plugin_registers_its_own_evaluator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EVALUATOR_REGISTRY, "_table", dict(EVALUATOR_REGISTRY._table))

    @EVALUATOR_REGISTRY.register()
    class Own(Classification):
        pass

    cfg = config(tmp_path)
    cfg.TEST.EVALUATOR = "Own"
    assert isinstance(build_evaluator(cfg), Own)


def test_stored_results_do_not_fragment_the_memory_of_the_logits() -> None:
    """Otherwise, malloc could not reuse the memory of the logits."""
    evaluator = Classification(get_cfg_default())
    draw = torch.Generator().manual_seed(1)
    batches = [(torch.randn(size, 3, generator=draw), torch.arange(size) % 3) for size in (5, 1, 70_000, 7, 0, 9)]
    for logits, labels in batches:
        evaluator.process(logits, labels)
    pages = {part.untyped_storage().data_ptr() for batch in evaluator._waiting for part in batch}
    assert len(pages) == 3 * 3  # labels, predictions, confidences: before, in and after the large batch
    logits, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    assert evaluator.evaluate()["accuracy"] == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())
    assert evaluator._y_true == labels.tolist()
    assert evaluator._y_pred == logits.argmax(1).tolist()
    evaluator.reset()
    evaluator.process(*batches[0])
    assert evaluator._y_true == [0, 1, 2, 0, 1]
    evaluator.process(*batches[1])  # after the fields were read
    assert evaluator._total == 6
