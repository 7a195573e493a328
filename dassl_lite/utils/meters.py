"""Running averages of what a training loop reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Scalars on an accelerator are read in groups of this many, or when somebody looks: each read waits for the device.
_HELD = 128


class AverageMeter:
    """The last value and the average of all.

    Args:
        ema: average exponentially, the past weighing 0.9, instead of evenly.
    """

    def __init__(self, ema: bool = False) -> None:
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        self._val = self._avg = self._sum = 0.0
        self._count = 0
        self._pending: list[tuple[Tensor, int]] = []

    def update(self, val: float | Tensor, n: int = 1) -> None:
        """Take in a value that stands for ``n`` items; a tensor must hold one number."""
        if isinstance(val, Tensor) and _is_costly_to_read(val):
            self._pending.append((val.detach().clone(), n))
            if len(self._pending) >= _HELD:
                self._settle()
        else:
            self._settle()
            self._add(val.item() if isinstance(val, Tensor) else val, n)

    @property
    def val(self) -> float:
        """The last value."""
        self._settle()
        return self._val

    @property
    def avg(self) -> float:
        self._settle()
        return self._avg

    @property
    def sum(self) -> float:
        self._settle()
        return self._sum

    @property
    def count(self) -> int:
        """Number of items."""
        self._settle()
        return self._count

    def _settle(self) -> None:
        if self._pending:
            values, weights = zip(*self._pending, strict=True)
            self._pending = []
            numbers = torch.stack([value.reshape(()).double() for value in values]).tolist()
            for number, n in zip(numbers, weights, strict=True):
                self._add(number, n)

    def _add(self, val: float, n: int) -> None:
        self._val = val
        self._sum += val * n
        self._count += n
        self._avg = self._avg * 0.9 + val * 0.1 if self.ema else self._sum / self._count


class MetricMeter:
    """One AverageMeter per named metric; as text ``loss 0.5000 (0.8673) acc ...``: each last value and average.

    Example:
        >>> metrics = MetricMeter()
        >>> metrics.update({"loss": 0.5, "acc": 80.0})
        >>> str(metrics)
        'loss 0.5000 (0.5000) acc 80.0000 (80.0000)'
    """

    def __init__(self, delimiter: str = " ") -> None:
        self.meters: defaultdict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: Mapping[str, Any] | None) -> None:
        """Take in one value per metric (numbers or one-number tensors); None is nothing to take in."""
        if input_dict is None:
            return
        if not isinstance(input_dict, Mapping):
            raise TypeError(f"a loss summary is a dict of metric names to numbers, not a {type(input_dict).__name__}")
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def __str__(self) -> str:
        return self.delimiter.join(f"{name} {meter.val:.4f} ({meter.avg:.4f})" for name, meter in self.meters.items())


def _is_costly_to_read(value: Tensor) -> bool:
    return value.device.type != "cpu"
