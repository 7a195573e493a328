"""Meters: their text, their averages, and scalars that live on a device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dassl_lite.utils import meters
from dassl_lite.utils.meters import AverageMeter, MetricMeter


def test_the_text_is_the_references(golden: Any) -> None:
    metrics = MetricMeter()
    values = [
        {"loss": 1.23456, "acc": 50.0},
        {"loss": torch.tensor(0.5), "acc": torch.tensor([25.0])},
        {"loss": 12345.6789, "acc": 100.0},
    ]
    lines = []
    for value in values[:2]:
        metrics.update(value)
        lines.append(str(metrics))
    metrics.update({"loss": values[2]["loss"], "acc": 100.0})
    lines.append(str(metrics))
    assert lines == golden.json("dassl_protocol")["metric_meter"]


def test_the_average_weighs_values_by_their_number_of_items() -> None:
    meter = AverageMeter()
    meter.update(1.0, n=3)
    meter.update(torch.tensor(5.0), n=1)
    assert (meter.val, meter.avg, meter.sum, meter.count) == (5.0, 2.0, 8.0, 4)


def test_the_exponential_average_forgets() -> None:
    meter = AverageMeter(ema=True)
    for value in (1.0, 0.0):
        meter.update(value)
    assert meter.avg == pytest.approx(0.09)


def test_reset_forgets_everything() -> None:
    meter = AverageMeter()
    meter.update(3.0)
    meter.reset()
    assert (meter.val, meter.avg, meter.sum, meter.count) == (0.0, 0.0, 0.0, 0)


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_scalars_read_in_groups_are_averaged_in_their_order(
    monkeypatch: pytest.MonkeyPatch, device: str, ema: bool
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    monkeypatch.setattr(meters, "is_costly_to_read", lambda value: True)
    grouped, single = AverageMeter(ema), AverageMeter(ema)
    loss = torch.zeros((), device=device)
    for step in range(300):
        loss += 0.1 * step  # changed in place afterwards: the meter must have kept the value
        grouped.update(loss if step % 7 else float(loss), n=step % 3 + 1)
        single.update(float(loss), n=step % 3 + 1)
    assert (grouped.val, grouped.avg, grouped.count) == (single.val, single.avg, single.count)
    assert grouped.sum == single.sum


def test_none_adds_no_metric_and_a_wrong_type_is_named() -> None:
    metrics = MetricMeter()
    metrics.update(None)
    assert str(metrics) == ""
    with pytest.raises(TypeError, match="not a list"):
        metrics.update([1.0])  # type: ignore[arg-type]


def test_the_delimiter_stands_between_metrics() -> None:
    metrics = MetricMeter(delimiter=" | ")
    metrics.update({"a": 1, "b": 2})
    assert str(metrics) == "a 1.0000 (1.0000) | b 2.0000 (2.0000)"
