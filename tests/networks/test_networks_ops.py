"""Layers against their papers' formulas, written out per image and per channel."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import nn

from dassl_lite.networks import ops
from dassl_lite.networks.ops import utils
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.seeding import set_random_seed

MIXERS = [ops.MixStyle, ops.EFDMix]


def maps(batch: int = 6, seed: int = 0) -> torch.Tensor:
    """Feature maps (B, 3, 4, 5) whose channels differ in mean and width."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(batch, 3, 1, 1, generator=generator) + 0.5
    return (torch.randn(batch, 3, 4, 5, generator=generator) * scale + 3 * scale).double()


def test_mixstyle_gives_each_image_the_mixed_mean_and_width() -> None:
    x, partners = maps(), torch.tensor([3, 0, 5, 1, 2, 4])
    share = torch.linspace(0, 1, 6).double().view(6, 1, 1, 1)
    mixed = ops.MixStyle(eps=0.0).blend(x, partners, share)
    for i, j in enumerate(partners.tolist()):
        lam = share[i].item()
        for c in range(3):
            mean = lam * x[i, c].mean() + (1 - lam) * x[j, c].mean()
            std = lam * x[i, c].std() + (1 - lam) * x[j, c].std()
            torch.testing.assert_close(mixed[i, c], (x[i, c] - x[i, c].mean()) / x[i, c].std() * std + mean)


def test_efdmix_moves_each_rank_towards_the_partners() -> None:
    x, partners = maps(), torch.tensor([3, 0, 5, 1, 2, 4])
    share = torch.linspace(0, 1, 6).double().view(6, 1, 1, 1)
    mixed = ops.EFDMix().blend(x, partners, share)
    for i, j in enumerate(partners.tolist()):
        lam = share[i].item()
        own, other = x[i].flatten(1).sort().values, x[j].flatten(1).sort().values
        torch.testing.assert_close(mixed[i].flatten(1).sort().values, lam * own + (1 - lam) * other)
        assert torch.equal(mixed[i].flatten(1).argsort(), x[i].flatten(1).argsort())


def test_the_gradient_of_efdmix_is_the_identitys() -> None:
    x = maps().requires_grad_()
    ops.EFDMix(p=1.0).train()(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("kind", MIXERS)
def test_maps_are_unchanged_in_evaluation_when_switched_off_and_at_probability_zero(kind: Any) -> None:
    x, layer = maps(), kind(p=1.0)
    assert not torch.equal(layer(x), x)
    assert layer.eval()(x) is x
    layer.train().set_activation_status(False)
    assert layer(x) is x
    assert kind(p=-1e-9)(x) is x


def test_a_batch_is_mixed_as_often_as_asked() -> None:
    random.seed(0)
    x, layer = maps(2), ops.MixStyle(p=0.3)
    mixed = sum(layer(x) is not x for _ in range(500))
    assert 110 < mixed < 190


@pytest.mark.parametrize("kind", MIXERS)
def test_the_draws_come_in_the_references_order(kind: Any) -> None:
    x = maps()
    set_random_seed(3)
    mixed = kind(p=1.0)(x)
    set_random_seed(3)
    random.random()
    share = torch.distributions.Beta(0.1, 0.1).sample((6, 1, 1, 1))
    torch.testing.assert_close(mixed, kind().blend(x, torch.randperm(6), share))


@pytest.mark.parametrize("batch", [6, 7])
def test_crossdomain_partners_are_all_from_the_other_half(batch: int) -> None:
    layer = ops.MixStyle(mix="crossdomain")
    partners = layer._partners(batch)
    assert sorted(partners.tolist()) == list(range(batch))
    half = math.ceil(batch / 2)
    assert partners[:half].min() >= batch // 2
    assert partners[half:].max() < batch // 2
    assert len({tuple(layer._partners(batch).tolist()) for _ in range(30)}) > 3


@pytest.mark.parametrize(
    ("kind", "on", "off", "activate", "deactivate"),
    [
        (
            ops.MixStyle,
            ops.run_with_mixstyle,
            ops.run_without_mixstyle,
            ops.activate_mixstyle,
            ops.deactivate_mixstyle,
        ),
        (ops.EFDMix, ops.run_with_efdmix, ops.run_without_efdmix, ops.activate_efdmix, ops.deactivate_efdmix),
    ],
)
def test_the_contexts_switch_their_own_kind_and_put_it_back(
    kind: Any, on: Any, off: Any, activate: Any, deactivate: Any
) -> None:
    other = ops.EFDMix if kind is ops.MixStyle else ops.MixStyle
    model = nn.Sequential(kind(), nn.Sequential(kind()), other())
    model.apply(deactivate)
    assert [layer._activated for layer in (model[0], model[1][0], model[2])] == [False, False, True]
    with on(model, mix="crossdomain"):
        assert model[0]._activated
        assert model[1][0].mix == "crossdomain"
        assert model[2].mix == "random"
    assert not model[0]._activated
    model.apply(activate)
    try:
        with off(model):
            assert not model[1][0]._activated
            raise InterruptedError
    except InterruptedError:
        pass
    assert model[1][0]._activated


def test_ways_to_mix_are_set_by_name_and_a_wrong_one_is_named() -> None:
    model = nn.Sequential(ops.MixStyle(), ops.EFDMix())
    model.apply(ops.crossdomain_mixstyle)
    assert [layer.mix for layer in model] == ["crossdomain", "random"]
    model.apply(ops.crossdomain_efdmix).apply(ops.random_mixstyle)
    assert [layer.mix for layer in model] == ["random", "crossdomain"]
    model.apply(ops.random_efdmix)
    with pytest.raises(UserError, match="Did you mean 'crossdomain'"):
        ops.MixStyle(mix="cross_domain")


@pytest.mark.parametrize("preserve_order", [False, True])
def test_mixup_mixes_images_and_labels_by_the_same_share(preserve_order: bool) -> None:
    ones, zeros = torch.ones(200, 1, 2, 2), torch.zeros(200, 1, 2, 2)
    first, second = torch.eye(2)[[0] * 200], torch.eye(2)[[1] * 200]
    torch.manual_seed(0)
    images, labels = ops.mixup(ones, zeros, first, second, beta=0.5, preserve_order=preserve_order)
    assert torch.equal(images[:, 0, 0, 0], labels[:, 0])
    torch.testing.assert_close(labels.sum(1), torch.ones(200))
    assert (labels[:, 0].min() >= 0.5) == preserve_order


def test_only_the_gradient_is_reversed_and_scaled() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    out = ops.ReverseGrad()(x, grad_scaling=0.25)
    assert torch.equal(out, x)
    (out * torch.tensor([3.0, 4.0])).sum().backward()
    assert torch.equal(x.grad, torch.tensor([-0.75, -1.0]))
    with pytest.raises(ValueError, match="must be 0 or more"):
        ops.ReverseGrad()(x, grad_scaling=-1)


@pytest.mark.parametrize("dims", [2, 4])
@pytest.mark.parametrize("adaptive", [True, False])
def test_transnorm_normalises_each_domain_by_itself(dims: int, adaptive: bool) -> None:
    x = maps() if dims == 4 else maps()[..., 0, 0]
    layer = (ops.TransNorm2d if dims == 4 else ops.TransNorm1d)(3, adaptive_alpha=adaptive).double()
    nn.init.uniform_(layer.weight)
    nn.init.uniform_(layer.bias)
    out = layer(x)
    closeness = []
    for c in range(3):
        ratios = [half[:, c].mean() / (half[:, c].var() + 1e-5).sqrt() for half in x.chunk(2)]
        closeness.append(1 / (1 + (ratios[0] - ratios[1]).abs().item()))
    for c in range(3):
        alpha = 3 * closeness[c] / sum(closeness) if adaptive else 0.0
        for half, result in zip(x.chunk(2), out.chunk(2), strict=True):
            channel = half[:, c]
            scaled = (channel - channel.mean()) / (channel.var() + 1e-5).sqrt() * layer.weight[c] + layer.bias[c]
            torch.testing.assert_close(result[:, c], (1 + alpha) * scaled)


def test_transnorm_evaluates_by_the_target_domains_running_statistics() -> None:
    x, layer = maps(), ops.TransNorm2d(3, adaptive_alpha=False).double()
    layer(x)
    target = x[3:].transpose(0, 1).flatten(1)
    torch.testing.assert_close(layer.running_mean_t, 0.9 * target.mean(1))
    torch.testing.assert_close(layer.running_var_t, 0.1 + 0.9 * target.var(1))
    mean, var = (stat.view(1, 3, 1, 1) for stat in (layer.running_mean_t, layer.running_var_t))
    torch.testing.assert_close(layer.eval()(x), (x - mean) / (var + 1e-5).sqrt())


def test_transnorm_names_what_is_wrong_with_its_input() -> None:
    with pytest.raises(ValueError, match="expected 2 axes"):
        ops.TransNorm1d(3)(torch.zeros(4, 3, 2, 2))
    with pytest.raises(ValueError, match="its size 5 is odd"):
        ops.TransNorm1d(3)(torch.zeros(5, 3))


@pytest.mark.parametrize(("kind", "shape"), [(ops.DSBN1d, (8, 3)), (ops.DSBN2d, (8, 3, 2, 2))])
def test_only_the_chosen_domains_statistics_move(kind: Any, shape: tuple[int, ...]) -> None:
    layer = kind(3, n_domain=2)
    layer.select_bn(1)
    layer(torch.randn(shape) + 5)
    assert torch.equal(layer.bn[0].running_mean, torch.zeros(3))
    assert layer.bn[1].running_mean.min() > 0.3
    with pytest.raises(ValueError, match="domain_idx is 2; it must be from 0 to 1"):
        layer.select_bn(2)


@pytest.mark.parametrize("kernel", ["linear", "poly", "rbf"])
@pytest.mark.parametrize("normalize", [False, True])
def test_mmd_is_the_unbiased_estimate(kernel: str, normalize: bool) -> None:
    x, y = maps()[..., 0, 0], maps(4, seed=1)[..., 1, 0]

    def value(a: torch.Tensor, b: torch.Tensor) -> float:
        if normalize:
            a, b = a / a.norm(), b / b.norm()
        if kernel == "rbf":
            return sum(math.exp(-(a - b).square().sum().item() / (2 * s * s)) for s in (1, 5, 10))
        return (a @ b).item() if kernel == "linear" else ((a @ b).item() + 2) ** 2

    def mean(first: torch.Tensor, second: torch.Tensor, skip_same: bool) -> float:
        pairs = [(i, j) for i in range(len(first)) for j in range(len(second)) if not (skip_same and i == j)]
        return sum(value(first[i], second[j]) for i, j in pairs) / len(pairs)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert ops.MaximumMeanDiscrepancy(kernel, normalize)(x, y).item() == pytest.approx(expected, rel=1e-9)


def test_an_unknown_kernel_is_named() -> None:
    with pytest.raises(UserError, match="linear, poly, rbf"):
        ops.MaximumMeanDiscrepancy("gauss")


@pytest.mark.parametrize("smooth", [0, 0.1])
def test_cross_entropy_smooths_over_all_classes(smooth: float) -> None:
    logits, labels = maps()[..., 0, 0], torch.tensor([0, 1, 2, 0, 1, 2])
    target = (1 - smooth) * torch.eye(3).double()[labels] + smooth / 3
    expected = -(target * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(ops.cross_entropy(logits, labels, smooth, reduction="none"), expected)
    torch.testing.assert_close(ops.cross_entropy(logits, labels, smooth), expected.mean())


def test_a_sequence_passes_several_values_on() -> None:
    class Both(nn.Module):
        def forward(self, a: Any, b: Any) -> Any:
            return a + b, a - b

    class One(nn.Module):
        def forward(self, a: Any, b: Any) -> Any:
            return a * b

    assert ops.Sequential2(Both(), Both(), One())(5, 3) == 60
    assert ops.Sequential2(nn.Identity())(4) == 4


def test_small_operations_by_hand() -> None:
    p = torch.tensor([[0.8, 0.2]])
    torch.testing.assert_close(utils.sharpen_prob(p), torch.tensor([[0.64, 0.04]]) / 0.68)
    data, label = torch.arange(4), torch.arange(4) * 10
    assert utils.reverse_index(data, label)[0].tolist() == [3, 2, 1, 0]
    shuffled = utils.shuffle_index(data, label)
    assert torch.equal(shuffled[0] * 10, shuffled[1])
    assert torch.equal(utils.create_onehot(torch.tensor([2, 0]), 3), torch.eye(3)[[2, 0]])
    assert [utils.linear_rampup(t, 10) for t in (-1, 5, 20)] == [0.0, 0.5, 1.0]
    assert utils.sigmoid_rampup(5, 10) == pytest.approx(math.exp(-1.25))
    with pytest.raises(ValueError, match="above 0"):
        utils.linear_rampup(1, 0)


def test_the_averaged_model_moves_by_its_share() -> None:
    model, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    nn.init.constant_(average.weight, 1.0)
    utils.ema_model_update(model, average, alpha=0.75)
    assert average.weight.item() == 1.25
