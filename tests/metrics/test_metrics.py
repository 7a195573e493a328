"""Accuracy and distances of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dassl_lite.metrics import compute_accuracy, compute_distance_matrix
from dassl_lite.utils.errors import UserError

CASES = ["plain", "missing_class", "ties"]


@pytest.mark.parametrize("name", CASES)
def test_top1_is_the_references(golden: Any, name: str) -> None:
    case = golden.json("dassl_protocol")["evaluator"][name]
    logits = torch.from_numpy(golden.npz("dassl_protocol")[f"eval.{name}.logits"])
    (top1,) = compute_accuracy(logits, torch.tensor(case["labels"]))
    assert top1.shape == (1,)
    assert top1[0].item() == pytest.approx(case["compute_accuracy_top1"], rel=1e-6)


def test_several_k_work_where_the_reference_crashes() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.4, 0.1, 0.3, 0.2]])
    top1, top2, top4 = compute_accuracy(logits, torch.tensor([3, 1, 3]), topk=(1, 2, 4))
    assert [top1.item(), top2.item(), top4.item()] == pytest.approx([100 / 3, 200 / 3, 100.0])


def test_of_several_outputs_the_first_counts() -> None:
    first, second = torch.eye(3), torch.eye(3).flip(0)
    assert compute_accuracy((first, second), torch.arange(3))[0].item() == 100.0


@pytest.mark.parametrize("topk", [(5,), (0,)])
def test_a_k_outside_the_classes_is_named(topk: tuple[int]) -> None:
    with pytest.raises(ValueError, match="from 1 to 3, the number of classes"):
        compute_accuracy(torch.eye(3), torch.arange(3), topk=topk)


def test_distances_are_those_of_torch() -> None:
    first, second = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).double().unbind()
    euclidean = compute_distance_matrix(first, second[:3])
    torch.testing.assert_close(euclidean, torch.cdist(first, second[:3]).square())
    cosine = compute_distance_matrix(first, second[:3], metric="cosine")
    expected = 1 - torch.cosine_similarity(first[:, None], second[None, :3], dim=2)
    torch.testing.assert_close(cosine, expected)


def test_the_distance_of_a_row_to_itself_is_at_least_zero() -> None:
    rows = 100 * torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    assert compute_distance_matrix(rows, rows).min() >= 0


def test_wrong_distances_are_named() -> None:
    with pytest.raises(UserError, match="cosine, euclidean"):
        compute_distance_matrix(torch.eye(2), torch.eye(2), metric="l1")
    with pytest.raises(ValueError, match="same number of columns"):
        compute_distance_matrix(torch.eye(2), torch.eye(3))
