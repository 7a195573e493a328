"""Dynamic convolution and optimal transport against their formulas and other people's solvers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch.nn import functional as F

from dassl_lite.networks import ops
from dassl_lite.utils.errors import UserError

TEMPLATES = {"conv_nn": (3, 3), "conv_11": (1, 1), "conv_n1": (3, 1), "conv_1n": (1, 3)}


def points(number: int, seed: int) -> torch.Tensor:
    """(number, 3) float64, away from the origin."""
    return torch.from_numpy(np.random.RandomState(seed).rand(number, 3) + 0.1)


def test_an_images_kernel_is_the_shared_one_plus_its_weighted_templates() -> None:
    """All five as one 3 x 3 kernel per image, with the smaller ones in the middle."""
    torch.manual_seed(0)
    layer = ops.Conv2dDynamic(4, 8, kernel_size=3, stride=2, padding=1, squeeze=5)
    x, other = torch.randn(3, 4, 7, 7), torch.randn(3, 4, 2, 2)
    hidden = (other.mean((2, 3)) @ layer.attention.fc1.weight.T + layer.attention.fc1.bias).clamp_min(0)
    scores = (hidden @ layer.attention.fc2.weight.T + layer.attention.fc2.bias).exp()
    weights = scores / scores.sum(1, keepdim=True)
    out = layer(x, other)
    assert list(layer.kernel_templates) == list(TEMPLATES)
    for image in range(3):
        kernel, bias = layer.conv.weight.clone(), layer.conv.bias.clone()
        for weight, (name, (height, width)) in zip(weights[image], TEMPLATES.items(), strict=True):
            part = layer.kernel_templates[name]
            full = part.weight
            if name == "conv_nn":  # in groups: output channels 2c and 2c + 1 see input channel c only
                full = torch.zeros(8, 4, 3, 3)
                for channel in range(8):
                    full[channel, channel // 2] = part.weight[channel, 0]
            rows, columns = (3 - height) // 2, (3 - width) // 2
            kernel += weight * F.pad(full, (columns, columns, rows, rows))
            bias += weight * part.bias
        torch.testing.assert_close(out[image], F.conv2d(x[image : image + 1], kernel, bias, 2, 1)[0])
    torch.testing.assert_close(layer(x), layer(x, x))


def test_an_impossible_dynamic_convolution_is_refused() -> None:
    for size, padding in ((3, 0), (4, 2)):
        with pytest.raises(ValueError, match="must be odd, the second half of it"):
            ops.Conv2dDynamic(4, 8, size, 1, padding, squeeze=2)
    with pytest.raises(ValueError, match="set squeeze"):
        ops.Attention(8, 4)


@pytest.mark.parametrize(("name", "scipys"), [("cosine", "cosine"), ("euclidean", "sqeuclidean")])
@pytest.mark.parametrize("iterations", [1, 5])
def test_the_plan_is_that_of_sinkhorns_products(name: str, scipys: str, iterations: int) -> None:
    """Cuturi's form, without logarithms: rows and columns of exp(-cost / eps) scaled in turn."""
    x, y = points(5, 0), points(7, 1)
    cost = cdist(x, y, scipys)
    kernel, columns = np.exp(-cost / 0.1), np.ones(7)
    for _ in range(iterations):
        rows = (1 / 5) / (kernel @ columns)
        columns = (1 / 7) / (kernel.T @ rows)
    divergence = ops.SinkhornDivergence(name, eps=0.1, max_iter=iterations)
    divergence.thre = 0.0
    found, plan = divergence.transport_cost(x, y, return_pi=True)
    expected = rows[:, None] * kernel * columns
    np.testing.assert_allclose(plan, expected, rtol=1e-9)
    assert found.item() == pytest.approx((expected * cost).sum(), rel=1e-9)


@pytest.mark.slow
def test_transport_with_little_entropy_is_the_best_assignment() -> None:
    x, y = points(6, 2), points(6, 3)
    cost = cdist(x, y, "sqeuclidean")
    best = cost[linear_sum_assignment(cost)].sum() / 6
    divergence = ops.SinkhornDivergence("euclidean", eps=1e-3, max_iter=5000)
    divergence.thre = 0.0
    assert divergence.transport_cost(x, y).item() == pytest.approx(best, rel=1e-3)


def test_sinkhorn_stops_once_the_potentials_settle() -> None:
    x, y = points(6, 2), points(6, 3)
    settled = ops.SinkhornDivergence("cosine", eps=0.1, max_iter=1000).transport_cost(x, y)
    exact = ops.SinkhornDivergence("cosine", eps=0.1, max_iter=1000)
    exact.thre = 0.0
    assert settled != exact.transport_cost(x, y)
    assert settled.item() == pytest.approx(exact.transport_cost(x, y).item(), rel=1e-2)


@pytest.mark.parametrize("through_plan", [False, True])
def test_gradients_flow_through_the_plan_only_with_bp_to_sinkhorn(through_plan: bool) -> None:
    x, y = points(4, 0).requires_grad_(), points(4, 1)
    divergence = ops.SinkhornDivergence("euclidean", eps=0.5, max_iter=3, bp_to_sinkhorn=through_plan)
    cost, plan = divergence.transport_cost(x, y, return_pi=True)
    cost.backward()
    assert x.grad is not None
    plan = plan.detach()
    of_fixed_plan = 2 * (plan.sum(1, keepdim=True) * x.detach() - plan @ y)
    assert torch.allclose(x.grad, of_fixed_plan) is not through_plan
    if through_plan:
        assert torch.autograd.gradcheck(lambda z: divergence.transport_cost(z, y), x)


def test_a_divergence_combines_its_three_costs() -> None:
    x, y = points(4, 0), points(6, 1)
    divergence, energy = ops.SinkhornDivergence(), ops.MinibatchEnergyDistance()

    def cost(a: torch.Tensor, b: torch.Tensor) -> float:
        return divergence.transport_cost(a, b).item()

    assert divergence(x, y).item() == pytest.approx(2 * cost(x, y) - cost(x, x) - cost(y, y))
    across = sum(cost(a, b) for a in (x[:2], x[2:]) for b in (y[:3], y[3:]))
    assert energy(x, y).item() == pytest.approx(across - 2 * cost(x[:2], x[2:]) - 2 * cost(y[:3], y[3:]))
    assert energy(x, x).item() < energy(x, x + torch.tensor([3.0, 0, 0])).item()
    with pytest.raises(ValueError, match="the batch sizes are 3 and 6; both must be even"):
        energy(x[:3], y)
    with pytest.raises(UserError, match="Did you mean 'cosine'"):
        ops.SinkhornDivergence("cosin")(x, y)
