"""Optimisers: the reference's groups and steps, staged rates, and what is refused."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dassl_lite.config import CN, get_cfg_default
from dassl_lite.optim import OPTIMIZER_REGISTRY, build_optimizer
from dassl_lite.utils.errors import UserError

NAMES = ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"]


def optim_cfg(**values: Any) -> CN:
    cfg = get_cfg_default().OPTIM
    cfg.LR = 0.01
    for key, value in values.items():
        cfg[key] = value
    return cfg


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_the_defaults_are_dassls(golden: Any) -> None:
    expected = golden.json("dassl_protocol")["optim"]["default_cfg"]
    ours = get_cfg_default().OPTIM
    assert {key: plain(ours[key]) for key in expected} == expected


@pytest.mark.parametrize("name", NAMES)
def test_parameter_groups_are_the_references(golden: Any, name: str) -> None:
    case = golden.json("dassl_protocol")["optim"]["optimisers"][name]
    optimizer = build_optimizer([nn.Parameter(torch.zeros(4, 3))], optim_cfg(NAME=name))
    assert type(optimizer).__name__ == case["cls"]
    (group,) = optimizer.param_groups
    (expected,) = case["groups"]
    # Switches that torch added after 2.4, such as decoupled_weight_decay of Adam, may lack in an older one.
    assert {key: plain(group[key]) for key in expected if key in group} == {
        k: v for k, v in expected.items() if k in group
    }
    assert {"lr", "weight_decay"} <= set(group)


@pytest.mark.parametrize("name", NAMES)
def test_three_steps_end_where_the_reference_ends(golden: Any, name: str) -> None:
    seed = golden.json("dassl_protocol")["optim"]["seed"]
    array = golden.tiny_clip.array
    parameter = nn.Parameter(torch.from_numpy(array(seed + 20, 4, 3)))
    optimizer = build_optimizer([parameter], optim_cfg(NAME=name))
    for step in range(3):
        parameter.grad = torch.from_numpy(array(seed + 21 + step, 4, 3))
        optimizer.step()
    np.testing.assert_allclose(
        parameter.detach().numpy(), golden.npz("dassl_protocol")[f"optim.{name}"], rtol=1e-6, atol=1e-7
    )


def test_radam_is_the_authors_formula_in_its_rectified_phase_too() -> None:
    """The golden file holds three steps, in which the rectification is still off: it starts at the sixth."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, generator=generator, dtype=torch.float64)
    gradients = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    parameter = nn.Parameter(start.clone())
    cfg = optim_cfg(NAME="radam")
    optimizer = build_optimizer([parameter], cfg)
    weight, mean, square = start.clone(), torch.zeros(5).double(), torch.zeros(5).double()
    beta1, beta2 = cfg.ADAM_BETA1, cfg.ADAM_BETA2
    longest = 2 / (1 - beta2) - 1
    for t, gradient in enumerate(gradients, start=1):
        parameter.grad = gradient.clone()
        optimizer.step()
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        weight = weight * (1 - cfg.LR * cfg.WEIGHT_DECAY)
        length = longest - 2 * t * beta2**t / (1 - beta2**t)
        step = mean / (1 - beta1**t)
        if length >= 5:
            ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            step = step * (ratio * (1 - beta2**t)) ** 0.5 / (square.sqrt() + 1e-8)
        weight = weight - cfg.LR * step
        torch.testing.assert_close(parameter.detach(), weight, rtol=1e-10, atol=1e-12)


class Staged(nn.Module):
    """Layers of the size that the golden file counts: 8 numbers in the base, 6 in the new layer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 2)
        self.classifier = nn.Linear(2, 2)


@pytest.mark.parametrize(("key", "layers"), [("staged_tuple", ("classifier",)), ("staged_str", "classifier")])
@pytest.mark.parametrize("wrapped", [False, True])
def test_staged_groups_are_the_references(golden: Any, key: str, layers: Any, wrapped: bool) -> None:
    model = nn.DataParallel(Staged()) if wrapped else Staged()
    optimizer = build_optimizer(model, optim_cfg(STAGED_LR=True, NEW_LAYERS=layers, BASE_LR_MULT=0.1))
    found = [
        {"lr": group["lr"], "n": sum(p.numel() for p in group["params"]), "wd": group["weight_decay"]}
        for group in optimizer.param_groups
    ]
    assert found == golden.json("dassl_protocol")["optim"]["optimisers"][key]


def test_a_parameter_held_by_the_module_itself_is_trained_under_staged_rates() -> None:
    model = Staged()
    model.scale = nn.Parameter(torch.ones(1))
    optimizer = build_optimizer(model, optim_cfg(STAGED_LR=True, NEW_LAYERS=("classifier",)))
    assert any(p is model.scale for p in optimizer.param_groups[0]["params"])


def test_a_missing_new_layer_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build_optimizer(Staged(), optim_cfg(STAGED_LR=True, NEW_LAYERS=("head",)))
    assert "Staged has no layer head; it has backbone, classifier" in caplog.text


def test_own_groups_override_staged_rates_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = Staged()
    with caplog.at_level(logging.WARNING):
        optimizer = build_optimizer(
            model, optim_cfg(STAGED_LR=True), param_groups=[{"params": model.classifier.parameters(), "lr": 7.0}]
        )
    assert [group["lr"] for group in optimizer.param_groups] == [7.0]
    assert "STAGED_LR is ignored" in caplog.text


@pytest.mark.parametrize("as_list", [False, True])
def test_a_module_and_its_list_of_parameters_give_the_same_optimiser(as_list: bool) -> None:
    model = Staged()
    optimizer = build_optimizer(list(model.parameters()) if as_list else model, optim_cfg())
    assert sum(p.numel() for p in optimizer.param_groups[0]["params"]) == 14


def test_a_frozen_layer_stays_in_the_optimiser() -> None:
    model = Staged()
    model.backbone.requires_grad_(False)
    optimizer = build_optimizer(model, optim_cfg())
    assert len(optimizer.param_groups[0]["params"]) == 4


@pytest.mark.parametrize("params", [[], Staged().requires_grad_(False), (p for p in ()), [{"params": []}]])
def test_an_optimiser_without_trainable_parameters_is_refused(params: Any) -> None:
    with pytest.raises(UserError, match=r"nothing to train: none of the optimizer's [04] parameter") as caught:
        build_optimizer(params, optim_cfg())
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_choices_and_the_nearest() -> None:
    with pytest.raises(UserError, match=r"Did you mean 'adamw'.*adam, adamw, amsgrad, radam, rmsprop, sgd"):
        build_optimizer(Staged(), optim_cfg(NAME="adamww"))


@pytest.mark.parametrize(("momentum", "dampening"), [(0.9, 0.0), (0.9, 0.5), (0.5, 1.0)])
def test_sgd_dampens_its_momentum(momentum: float, dampening: float) -> None:
    """v_1 = g_1, v_t = momentum v_{t-1} + (1 - dampening) g_t."""
    parameter = nn.Parameter(torch.zeros(1))
    cfg = optim_cfg(NAME="sgd", LR=0.1, WEIGHT_DECAY=0.0, MOMENTUM=momentum, SGD_DAMPNING=dampening)
    optimizer = build_optimizer([parameter], cfg)
    for gradient in (1.0, 3.0):
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
    first = 1.0
    second = momentum * first + (1 - dampening) * 3.0
    assert parameter.item() == pytest.approx(-0.1 * (first + second))


@pytest.mark.parametrize("name", ["adam", "amsgrad", "radam", "adamw"])
def test_a_rate_whose_first_step_overflows_is_refused(name: str) -> None:
    parameter = [nn.Parameter(torch.zeros(2))]
    with pytest.raises(UserError, match=rf"OPTIM.LR is 1e\+38; lower it: the first step of {name} would overflow"):
        build_optimizer(parameter, optim_cfg(NAME=name, LR=1e38))
    largest = build_optimizer(parameter, optim_cfg(NAME=name, LR=3e37))
    parameter[0].grad = torch.ones(2)
    largest.step()
    assert parameter[0].isfinite().all()


def test_staged_rates_without_a_module_are_refused() -> None:
    with pytest.raises(UserError, match="STAGED_LR needs a module"):
        build_optimizer([nn.Parameter(torch.zeros(1))], optim_cfg(STAGED_LR=True))


def test_a_plugin_registers_its_own_optimiser(monkeypatch: pytest.MonkeyPatch) -> None:
    def adagrad(params: Any, cfg: CN) -> Any:
        return torch.optim.Adagrad(params, lr=cfg.LR)

    monkeypatch.setattr(OPTIMIZER_REGISTRY, "_table", dict(OPTIMIZER_REGISTRY._table))
    OPTIMIZER_REGISTRY.register(adagrad)
    assert isinstance(build_optimizer(Staged(), optim_cfg(NAME="adagrad")), torch.optim.Adagrad)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"radam"}))  # whose bits would differ
def test_many_parameters_are_updated_together_to_the_same_bits(name: str) -> None:
    def trained(together: bool) -> list[torch.Tensor]:
        draw = torch.Generator().manual_seed(7)
        shapes = [(3, 5)] * 8 + [(40, 9)]
        parameters = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
        cfg = optim_cfg(NAME=name, SGD_NESTEROV=name == "sgd", WEIGHT_DECAY=0.01)
        optimizer = build_optimizer(parameters, cfg)
        assert [group["foreach"] for group in optimizer.param_groups] == [True]
        for group in optimizer.param_groups:
            group["foreach"] = together
        for step in range(20):
            for i, parameter in enumerate(parameters):
                gradient = torch.randn(parameter.shape[::-1], generator=draw).t()  # other strides than the parameter's
                parameter.grad = None if i == 3 and step % 2 else gradient
            optimizer.step()
        return [parameter.detach() for parameter in parameters]

    assert all(map(torch.equal, trained(together=True), trained(together=False)))


def test_few_parameters_and_those_in_half_precision_are_left_to_torch() -> None:
    for count, dtype in ((7, torch.float32), (8, torch.float16), (8, torch.bfloat16)):
        optimizer = build_optimizer([nn.Parameter(torch.zeros(2, dtype=dtype)) for _ in range(count)], optim_cfg())
        assert [group["foreach"] for group in optimizer.param_groups] == [None]
    many = [nn.Parameter(torch.zeros(2)) for _ in range(8)]
    assert build_optimizer(many, optim_cfg(NAME="radam")).param_groups[0]["foreach"] is None
