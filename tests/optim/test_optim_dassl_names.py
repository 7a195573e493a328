"""Dassl's further names in ``optim``: its RAdam file, its lists, its base of warm-ups, an argument torch has lost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dassl_lite.config import get_cfg_default
from dassl_lite.optim import build_optimizer, lr_scheduler, optimizer, radam
from dassl_lite.optim.lr_scheduler import ConstantWarmupScheduler, LinearWarmupScheduler
from dassl_lite.utils import UserError

RATE, DECAY, BETAS, EPS = 0.01, 0.1, (0.9, 0.99), 1e-8


def stepped(kind: Any, steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Start (4,), gradients (steps, 4) and where the optimiser ends."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, generator=generator, dtype=torch.float64)
    gradients = torch.randn(steps, 4, generator=generator, dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    optim = kind([parameter], lr=RATE, betas=BETAS, weight_decay=DECAY)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optim.step()
    return start, gradients, parameter.detach()


@pytest.mark.parametrize("kind", [radam.RAdam, radam.PlainRAdam])
@pytest.mark.parametrize("steps", [3, 40])
def test_radam_is_the_papers_algorithm_2(kind: Any, steps: int) -> None:
    """With decay of the weights themselves; 3 steps are before the rectification, 40 well in it."""
    weight, gradients, end = stepped(kind, steps)
    mean = square = torch.zeros(4, dtype=torch.float64)
    longest = 2 / (1 - BETAS[1]) - 1
    for t, gradient in enumerate(gradients, start=1):
        mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
        square = BETAS[1] * square + (1 - BETAS[1]) * gradient**2
        weight = weight - RATE * DECAY * weight
        step = mean / (1 - BETAS[0] ** t)
        length = longest - 2 * t * BETAS[1] ** t / (1 - BETAS[1] ** t)
        if length >= 5:
            ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            step = step * math.sqrt(ratio * (1 - BETAS[1] ** t)) / (square.sqrt() + EPS)
        weight = weight - RATE * step
    torch.testing.assert_close(end, weight, rtol=1e-9, atol=1e-12)


def test_adamw_is_the_papers_algorithm_2() -> None:
    weight, gradients, end = stepped(radam.AdamW, 20)
    mean = square = torch.zeros(4, dtype=torch.float64)
    for t, gradient in enumerate(gradients, start=1):
        mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
        square = BETAS[1] * square + (1 - BETAS[1]) * gradient**2
        corrected = mean / (1 - BETAS[0] ** t) / ((square / (1 - BETAS[1] ** t)).sqrt() + EPS)
        weight = weight - RATE * corrected - RATE * DECAY * weight
    torch.testing.assert_close(end, weight, rtol=1e-9, atol=1e-12)


def test_what_torch_does_not_support_is_refused() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    with pytest.raises(UserError, match="degenerated_to_sgd=False is not supported"):
        radam.PlainRAdam(parameters, degenerated_to_sgd=False)
    with pytest.raises(UserError, match=r"set OPTIM\.WARMUP_EPOCH instead"):
        radam.AdamW(parameters, warmup=100)
    assert radam.AdamW(parameters).defaults["weight_decay"] == 0  # theirs; torch's is 0.01


def test_lists_of_names_are_dassls() -> None:
    assert set(optimizer.AVAI_OPTIMS) >= {"adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"}
    assert set(lr_scheduler.AVAI_SCHEDS) >= {"single_step", "multi_step", "cosine"}


def test_a_derived_warm_up_runs() -> None:
    """As forks write it: over Dassl's base, with get_lr and ``verbose``, which torch 2.7 has taken away."""

    class SquareWarmup(lr_scheduler._BaseWarmupScheduler):
        def __init__(self, optimizer, successor, warmup_epoch, last_epoch=-1, verbose=False):
            super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)

        def get_lr(self):
            if self.last_epoch >= self.warmup_epoch:
                return self.successor.get_last_lr()
            return [base_lr * ((self.last_epoch + 1) / 4) ** 2 for base_lr in self.base_lrs]

    optim = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = SquareWarmup(optim, torch.optim.lr_scheduler.StepLR(optim, 1, gamma=0.5), 2, verbose=True)
    rates = []
    for _ in range(5):
        rates.append(optim.param_groups[0]["lr"])
        optim.step()
        schedule.step()
    assert rates == [1 / 16, 1 / 4, 1, 1 / 2, 1 / 4]


@pytest.mark.parametrize("kind", [ConstantWarmupScheduler, LinearWarmupScheduler])
def test_a_warm_up_takes_dassls_arguments(kind: Any) -> None:
    optim = build_optimizer([torch.nn.Parameter(torch.zeros(1))], get_cfg_default().OPTIM)
    successor = torch.optim.lr_scheduler.ConstantLR(optim, 1.0)
    by_place, by_name = kind(optim, successor, 1, 1e-5, -1, False), kind(optim, successor, 1, 1e-5, verbose=True)
    assert by_place.get_last_lr() == by_name.get_last_lr() == [1e-5]
