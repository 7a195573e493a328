"""The cosine head's sigmoid: its loss, its calibration, and what a checkpoint keeps of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from dassl_lite.metrics import compute_accuracy
from dassl_lite.models.heads import CosineHead, FixedPrototypes, class_targets, platt_scaling, sigmoid_loss


def made(n: int = 60, k: int = 5) -> tuple[Tensor, Tensor]:
    """Logits as a CLIP gives them, around 25, and the classes of each image."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(n, k, generator=generator) < 0.3
    return 25 + 3 * torch.randn(n, k, generator=generator) + 4 * targets, targets


def test_the_loss_is_summed_over_classes_and_averaged_over_images() -> None:
    logits, targets = made()
    p = (logits - 26).double().sigmoid()
    by_hand = -(targets * p.log() + ~targets * (1 - p).log()).sum(1).mean()
    assert sigmoid_loss((logits - 26).double(), targets).item() == pytest.approx(by_hand.item(), rel=1e-9)


def test_a_label_is_its_class_alone() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    assert class_targets(labels, 3).tolist() == F.one_hot(labels, 3).bool().tolist()
    assert sigmoid_loss(logits, labels) == sigmoid_loss(logits, F.one_hot(labels, 3).bool())


def test_platt_scaling_is_logistic_regression_on_the_logit() -> None:
    logits, targets = made()
    expected = LogisticRegression(C=np.inf, tol=1e-8).fit(
        logits.double().reshape(-1, 1).numpy(), targets.flatten().numpy()
    )
    log_factor, bias = platt_scaling(logits, targets)
    assert math.exp(log_factor) == pytest.approx(expected.coef_.item(), rel=1e-3)
    assert bias == pytest.approx(expected.intercept_.item(), rel=1e-3)


@pytest.mark.parametrize("sign", [0.0, -1.0])
def test_uninformative_or_inverted_logits_keep_a_small_factor(sign: float) -> None:
    logits, targets = made()
    log_factor, bias = platt_scaling(sign * logits, targets)
    assert -5.0 <= log_factor <= 0.1
    assert math.isfinite(bias)


def test_only_a_calibrated_head_scales_and_shifts_its_logits() -> None:
    head = FixedPrototypes(torch.randn(3, 8), 100.0)
    features = torch.randn(4, 8)
    before = head(features)
    assert list(head.state_dict()) == []
    head.calibrate(log_factor=math.log(0.5), bias=-3.0)
    assert torch.allclose(head(features), 0.5 * before - 3.0)
    assert [name for name, _ in head.named_parameters()] == list(head.state_dict()) == list(CosineHead.optional_state)


def test_an_image_counts_once_in_the_accuracy_if_any_of_its_classes_is_found() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    targets = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]]).bool()
    assert [value.item() for value in compute_accuracy(logits, targets, (1, 2, 3))] == [25.0, 50.0, 75.0]
