"""Schedules that step by batch, and OPTIM nodes without our own keys."""

from __future__ import annotations

import torch

from dassl_lite.config import get_cfg_default
from dassl_lite.optim import build_lr_scheduler, build_optimizer


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
