"""The mean of several heads: its probabilities, and the weights that make labels most likely."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from dassl_lite.models.blend import Blend, calibrate, stack


def test_a_blend_gives_the_weighted_mean_of_its_members_probabilities():
    draw = torch.Generator().manual_seed(0)
    members = [torch.nn.Linear(6, 4) for _ in range(3)]
    blend, features = Blend(), torch.randn(5, 6, generator=draw)
    blend.fill(members, [{}] * 3, torch.tensor([0.5, 0.3, 0.2]), torch.tensor([1.0, 2.0, 0.1]))
    expected = sum(
        weight * (factor * member(features)).softmax(dim=1)
        for weight, factor, member in zip((0.5, 0.3, 0.2), (1.0, 2.0, 0.1), members, strict=True)
    )
    assert torch.allclose(blend(features).exp(), expected, atol=1e-6)


@pytest.mark.parametrize("credits", [(1.0, 1.0, 1.0), (4.0, 0.5, 20.0)])
def test_weights_are_the_most_likely_ones_given_the_credits(credits):
    own = np.random.default_rng(0).dirichlet((1, 1), (3, 40))[..., 0]
    own[0] = own[0] ** 0.3

    def cost(free: np.ndarray) -> float:
        weights = np.exp(free) / np.exp(free).sum()
        return -np.log(weights @ own).sum() - (np.array(credits) * np.log(weights)).sum()

    best = np.exp(minimize(cost, np.zeros(3), tol=1e-10).x)
    found = stack(torch.from_numpy(own), torch.tensor(credits))
    assert np.allclose(found.numpy(), best / best.sum(), atol=1e-4)


def test_weights_equal_the_credits_without_measurements():
    assert stack(torch.zeros(2, 0), torch.tensor([3.0, 1.0])).tolist() == [0.75, 0.25]


def test_the_temperature_has_the_lowest_log_loss_of_those_tried():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 4, generator=draw)
    labels = torch.multinomial((0.5 * logits).softmax(dim=1), 1, generator=draw)[:, 0]
    temperature, loss = calibrate(logits, labels)
    assert temperature in (0.3, 0.5, 0.7)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(temperature * logits, labels).item())
