"""Schedules: the reference's sequences, and exact continuation after a restart."""

from __future__ import annotations

import io
import itertools
import warnings
from typing import Any

import pytest
import torch

from dassl_lite.config import CN, get_cfg_default
from dassl_lite.optim import LR_SCHEDULER_REGISTRY, build_lr_scheduler, build_optimizer
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.safe_load import load_file


def optim_cfg(**values: Any) -> CN:
    cfg = get_cfg_default().OPTIM
    for key, value in values.items():
        cfg[key] = value
    return cfg


def make(cfg: CN) -> tuple[Any, Any]:
    optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], cfg)
    return optimizer, build_lr_scheduler(optimizer, cfg)


def run(optimizer: Any, scheduler: Any, epochs: int) -> list[float]:
    """Rates of the next epochs; each is followed by one step of the optimiser and of the schedule."""
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def saved_and_loaded(state: Any) -> Any:
    """The state through a file that holds nothing but plain values and tensors."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def only_plain_values(value: Any) -> bool:
    if type(value) in (dict, list, tuple):
        items = itertools.chain(value.keys(), value.values()) if type(value) is dict else value
        return all(map(only_plain_values, items))
    return value is None or type(value) in (int, float, bool, str)


@pytest.mark.slow
def test_every_sequence_of_the_reference_is_reproduced(golden: Any) -> None:
    sequences = golden.json("dassl_protocol")["lr"]["sequences"]
    assert len(sequences) == 41
    for name, case in sequences.items():
        optimizer, scheduler = make(optim_cfg(**case["cfg"]))
        rates = run(optimizer, scheduler, len(case["lrs"]))
        assert rates == pytest.approx(case["lrs"], rel=1e-12, abs=1e-18), name
        assert optimizer.param_groups[0]["lr"] == pytest.approx(case["after"], rel=1e-12, abs=1e-18), name
        assert scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]], name


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("stop", [0, 1, 2, 3, 4, 7, 11])
def test_a_schedule_resumed_from_a_file_continues_exactly(golden: Any, stop: int) -> None:
    for name, case in golden.json("dassl_protocol")["lr"]["sequences"].items():
        cfg = optim_cfg(**case["cfg"])
        epochs = max(stop, min(len(case["lrs"]), 14))
        whole = run(*make(cfg), epochs)
        optimizer, scheduler = make(cfg)
        before = run(optimizer, scheduler, stop)
        state = saved_and_loaded({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
        optimizer, scheduler = make(cfg)
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        assert before + run(optimizer, scheduler, epochs - stop) == whole, name


def test_the_resumed_schedule_steps_the_live_optimiser_not_a_copy() -> None:
    cfg = optim_cfg(NAME="sgd", LR_SCHEDULER="cosine", WARMUP_EPOCH=1, WARMUP_TYPE="constant")
    old_optimizer, old_scheduler = make(cfg)
    run(old_optimizer, old_scheduler, 3)
    optimizer, scheduler = make(cfg)
    optimizer.load_state_dict(old_optimizer.state_dict())
    scheduler.load_state_dict(old_scheduler.state_dict())
    frozen = optimizer.param_groups[0]["lr"]
    run(optimizer, scheduler, 1)
    assert optimizer.param_groups[0]["lr"] < frozen
    assert old_optimizer.param_groups[0]["lr"] == frozen


@pytest.mark.parametrize("schedule", ["single_step", "multi_step", "cosine"])
@pytest.mark.parametrize("warmup", [-1, 2])
def test_the_state_holds_only_plain_values(schedule: str, warmup: int) -> None:
    cfg = optim_cfg(LR_SCHEDULER=schedule, STEPSIZE=(3, 7), WARMUP_EPOCH=warmup)
    optimizer, scheduler = make(cfg)
    run(optimizer, scheduler, 4)
    assert only_plain_values(scheduler.state_dict())


def test_each_group_follows_the_schedule_from_its_own_rate() -> None:
    cfg = optim_cfg(LR=1.0, LR_SCHEDULER="cosine", MAX_EPOCH=4, WARMUP_EPOCH=2, WARMUP_TYPE="linear")
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.5},
        {"params": torch.nn.Parameter(torch.ones(1))},
    ]
    optimizer = build_optimizer([], cfg, param_groups=groups)
    scheduler = build_lr_scheduler(optimizer, cfg)
    seen = []
    for _ in range(4):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert seen[1:] == [[0.25, 0.5], [0.5, 1.0], pytest.approx([0.426776695, 0.85355339])]


def test_no_warning_of_torch_reaches_the_user() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates = run(*make(optim_cfg(LR_SCHEDULER="cosine", WARMUP_EPOCH=1, WARMUP_RECOUNT=False)), 5)
    assert len(set(rates)) == 5


def test_single_step_accepts_a_stepsize_that_is_a_number() -> None:
    optimizer, scheduler = make(optim_cfg(LR=1.0, STEPSIZE=2))
    assert run(optimizer, scheduler, 5) == pytest.approx([1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"LR_SCHEDULER": "cosin"}, "Did you mean 'cosine'"),
        ({"WARMUP_EPOCH": 1, "WARMUP_TYPE": "lineer"}, "Did you mean 'linear'"),
        ({"LR_SCHEDULER": "single_step", "STEPSIZE": (2.5,)}, "single_step needs a whole number"),
        ({"LR_SCHEDULER": "single_step", "STEPSIZE": ()}, "single_step needs a whole number"),
        ({"LR_SCHEDULER": "multi_step", "STEPSIZE": 3}, "multi_step needs a list"),
        ({"MAX_EPOCH": 0}, "MAX_EPOCH is 0"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make(optim_cfg(**values))
    assert "\n" not in str(caught.value)


def test_a_schedule_pickled_by_dassl_continues_with_its_numbers(golden: Any) -> None:
    """The reference itself trains on at a frozen rate from this file."""
    case = golden.json("dassl_protocol")["lr"]["sequences"]["cosine.constant.1.recountTrue"]
    cfg = optim_cfg(**{**case["cfg"], "NAME": "adam", "LR": 2e-4, "MAX_EPOCH": 100})
    whole = run(*make(cfg), 6)
    checkpoint = load_file(golden.path("checkpoint_taskres/prompt_learner/model.pth.tar-3"))
    checkpoint["optimizer"]["state"] = {}
    optimizer, scheduler = make(cfg)
    optimizer.load_state_dict(checkpoint["optimizer"])
    scheduler.load_state_dict(checkpoint["scheduler"])
    assert run(optimizer, scheduler, 3) == pytest.approx(whole[3:], rel=1e-12)


def test_an_unreadable_schedule_is_named() -> None:
    _, scheduler = make(optim_cfg(WARMUP_EPOCH=1))
    with pytest.raises(UserError, match="cannot be read: its type is object"):
        scheduler.load_state_dict({**scheduler.state_dict(), "successor": object()})


def test_a_plugin_registers_its_own_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(optimizer: Any, cfg: CN) -> Any:
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=cfg.MAX_EPOCH)

    monkeypatch.setattr(LR_SCHEDULER_REGISTRY, "_table", dict(LR_SCHEDULER_REGISTRY._table))
    LR_SCHEDULER_REGISTRY.register(halved)
    optimizer, _ = make(optim_cfg(LR=1.0, LR_SCHEDULER="halved"))
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_dassl_optim_node_without_our_keys_still_builds():
    optim = get_cfg_default().OPTIM
    for key in ("ADAM_EPS", "SCHEDULE_UNIT", "MIN_LR"):
        del optim[key]
    schedule = build_lr_scheduler(build_optimizer(torch.nn.Linear(2, 2), optim), optim)
    assert schedule.get_last_lr() == [optim.LR]


def test_an_ignored_schedule_unit_is_warned_about(caplog):
    optim = get_cfg_default().OPTIM
    optim.SCHEDULE_UNIT = "batch"
    for epoch_steps, told in ((None, 1), (1, 0), (3, 0)):
        caplog.clear()
        build_lr_scheduler(build_optimizer(torch.nn.Linear(2, 2), optim), optim, epoch_steps)
        assert len(caplog.messages) == told
    optim.SCHEDULE_UNIT = "epoch"
    build_lr_scheduler(build_optimizer(torch.nn.Linear(2, 2), optim), optim)
    assert caplog.messages == []


def test_a_schedule_by_batch_is_the_schedule_by_epoch_stretched():
    optim = get_cfg_default().OPTIM
    optim.merge_from_list(["LR_SCHEDULER", "cosine", "MAX_EPOCH", 4, "WARMUP_EPOCH", 1])

    def rates(cfg, steps, epoch_steps):
        schedule = build_lr_scheduler(build_optimizer(torch.nn.Linear(2, 2), cfg), cfg, epoch_steps)
        found = []
        for _ in range(steps):
            found.append(schedule.get_last_lr()[0])
            schedule.optimizer.step()
            schedule.step()
        return found

    by_batch = rates(optim, 12, 3)
    optim.merge_from_list(["MAX_EPOCH", 12, "WARMUP_EPOCH", 3])
    assert by_batch == rates(optim, 12, 1)


@pytest.mark.parametrize("schedule", ["single_step", "multi_step"])
def test_a_stepwise_schedule_multiplies_the_rate_by_gamma(schedule: str) -> None:
    cfg = optim_cfg(NAME="sgd", LR=1.0, LR_SCHEDULER=schedule, STEPSIZE=(2,), GAMMA=0.25, WARMUP_EPOCH=-1, MAX_EPOCH=5)
    assert run(*make(cfg), 5) == pytest.approx([1.0, 1.0, 0.25, 0.25, 0.0625 if schedule == "single_step" else 0.25])
