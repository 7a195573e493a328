"""Running averages of the numbers that a training loop reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# Scalars on an accelerator are read in groups of this size, or on access: every read waits for the device.
_GROUP_SIZE = 128


class AverageMeter:
    """The last value and the average of all values.

    Args:
        ema: use an exponential moving average that weighs the past by 0.9, instead of the mean.
    """

    def __init__(self, ema: bool = False) -> None:
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        self._val = self._avg = self._sum = 0.0
        self._count = 0
        self._pending: list[tuple[Tensor, int]] = []

    def update(self, val: float | Tensor, n: int = 1) -> None:
        """Add a value that was averaged over ``n`` items; a tensor must hold one number."""
        if isinstance(val, Tensor) and is_costly_to_read(val):
            self._pending.append((val.detach().clone(), n))
            if len(self._pending) >= _GROUP_SIZE:
                self._flush()
        else:
            self._flush()
            self._add(val.item() if isinstance(val, Tensor) else val, n)

    @property
    def val(self) -> float:
        """The last value."""
        self._flush()
        return self._val

    @property
    def avg(self) -> float:
        self._flush()
        return self._avg

    @property
    def sum(self) -> float:
        self._flush()
        return self._sum

    @property
    def count(self) -> int:
        """Number of items."""
        self._flush()
        return self._count

    def _flush(self) -> None:
        if self._pending:
            values, weights = zip(*self._pending, strict=True)
            self._pending = []
            for number, n in zip(read_together(values), weights, strict=True):
                self._add(number, n)

    def _add(self, val: float, n: int) -> None:
        self._val = val
        self._sum += val * n
        self._count += n
        self._avg = self._avg * 0.9 + val * 0.1 if self.ema else self._sum / self._count


class MetricMeter:
    """One AverageMeter per named metric; ``str`` gives each last value and average.

    Example:
        >>> metrics = MetricMeter()
        >>> metrics.update({"loss": 0.5, "acc": 80.0})
        >>> str(metrics)
        'loss 0.5000 (0.5000) acc 80.0000 (80.0000)'
    """

    def __init__(self, delimiter: str = " ") -> None:
        self.meters: defaultdict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: Mapping[str, float | Tensor] | None) -> None:
        """Add one value per metric, a number or a one-number tensor; None adds nothing."""
        for name, value in self.checked(input_dict).items():
            self.meters[name].update(value)

    @staticmethod
    def checked(input_dict: Mapping[str, float | Tensor] | None) -> Mapping[str, float | Tensor]:
        """The argument of ``update`` as a dict; None becomes an empty one.

        Raises:
            TypeError: it is not a dict.
        """
        if input_dict is not None and not isinstance(input_dict, Mapping):
            raise TypeError(
                f"a loss summary must be a dict of numbers by metric name, not a {type(input_dict).__name__}"
            )
        return input_dict or {}

    def __str__(self) -> str:
        return self.delimiter.join(f"{name} {meter.val:.4f} ({meter.avg:.4f})" for name, meter in self.meters.items())


def is_costly_to_read(value: Tensor) -> bool:
    """Whether reading a value waits for the device that computes it."""
    return value.device.type != "cpu"


def unread(value: Tensor) -> float | Tensor:
    """The number in a one-number tensor, or the tensor, without its graph, where reading it waits for a device."""
    return value.detach() if is_costly_to_read(value) else value.item()


def read_together(values: Sequence[Tensor]) -> list[float]:
    """The numbers in one-number tensors of any dtype and shape; waits once if they are on one device."""
    if len({value.device for value in values}) > 1 or not any(map(is_costly_to_read, values)):
        return [float(value) for value in values]
    widest = torch.float32 if values[0].device.type == "mps" else torch.float64  # Apple's GPU has no float64
    return torch.stack([value.reshape(()).to(widest) for value in values]).tolist()
