"""What a training run prints: the reference's line per batch in ``log.txt``, a progress bar on the console."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from tqdm import tqdm

from dassl_lite.utils.logger import flush_log, log_step
from dassl_lite.utils.meters import AverageMeter, MetricMeter, read_together, unread

MOST_WAITING = 128  # steps whose values may stay on the device unread


def _nowhere(tag: str, value: float, step: int) -> None:
    """No TensorBoard."""


class RunLog:
    """Meters, log lines, scalars and the progress bar of one training run.

    Values on an accelerator stay there until a log line or the epoch's end: reading one waits for the device.

    Args:
        start_epoch, max_epoch: range of the run.
        print_freq: batches between log lines; a shorter epoch logs every batch.
        show: whether to show a progress bar.
        write: takes the scalars of a step: tag, value, number of the step in the run.
    """

    def __init__(
        self,
        start_epoch: int,
        max_epoch: int,
        print_freq: int,
        show: bool = True,
        write: Callable[[str, float, int], None] = _nowhere,
    ) -> None:
        self.max_epoch, self.print_freq, self._write = max_epoch, print_freq, write
        self.losses = MetricMeter()  # a trainer with a run_epoch of its own may not fill it
        self._waiting: list[tuple[int, dict[str, float | Tensor], float]] = []  # step, values, learning rate
        self._bar = tqdm(
            total=max_epoch,
            initial=start_epoch,
            desc="Training",
            unit="epoch",
            file=sys.stderr,
            mininterval=1.0,
            disable=not show,
        )

    def start_epoch(self, epoch: int, num_batches: int) -> None:
        """Reset the meters."""
        self.read()
        self.epoch, self.num_batches = epoch, num_batches
        self.losses = MetricMeter()
        self.batch_time, self.data_time = AverageMeter(), AverageMeter()
        self._mark = time.perf_counter()

    def data_ready(self) -> None:
        """A batch has arrived."""
        self.data_time.update(time.perf_counter() - self._mark)

    def is_due(self, batch_idx: int) -> bool:
        """Whether this batch has a log line."""
        return (batch_idx + 1) % self.print_freq == 0 or self.num_batches < self.print_freq

    def batch_done(self, batch_idx: int, summary: Mapping[str, float | Tensor] | None, lr: float) -> None:
        """Take the values of a step, numbers or one-number tensors, and, when due, log a line."""
        values = {name: _kept(value) for name, value in MetricMeter.checked(summary).items()}
        self._waiting.append((self.epoch * self.num_batches + batch_idx, values, lr))
        due = self.is_due(batch_idx)
        on_device = any(isinstance(value, Tensor) for value in values.values())
        if due or not on_device or len(self._waiting) >= MOST_WAITING:
            self.read()
        self.batch_time.update(time.perf_counter() - self._mark)  # with what the device still had to do
        if due:
            log_step(self._line(batch_idx, lr))
        self._mark = time.perf_counter()

    def read(self) -> None:
        """Bring the meters and the scalars up to date."""
        waiting, self._waiting = self._waiting, []
        numbers = iter(read_together([v for _, values, _ in waiting for v in values.values() if isinstance(v, Tensor)]))
        for step, values, lr in waiting:
            self.losses.update({n: next(numbers) if isinstance(v, Tensor) else v for n, v in values.items()})
            for name, meter in self.losses.meters.items():
                self._write(f"train/{name}", meter.avg, step)
            self._write("train/lr", lr, step)

    def end_epoch(self, lr: float) -> None:
        """Advance the progress bar."""
        self.read()
        if self._bar.disable:
            return
        values: dict[str, Any] = {name: f"{meter.avg:.4g}" for name, meter in self.losses.meters.items()}
        self._bar.set_postfix(**values, lr=f"{lr:.1e}", refresh=False)
        self._bar.update(1)

    def close(self) -> None:
        """Close the progress bar; all lines are in the log."""
        self._bar.close()
        flush_log()

    def _line(self, batch_idx: int, lr: float) -> str:
        batches_left = self.num_batches - batch_idx - 1 + (self.max_epoch - self.epoch - 1) * self.num_batches
        eta = datetime.timedelta(seconds=int(self.batch_time.avg * batches_left))
        return (
            f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{batch_idx + 1}/{self.num_batches}] "
            f"time {self.batch_time.val:.3f} ({self.batch_time.avg:.3f}) "
            f"data {self.data_time.val:.3f} ({self.data_time.avg:.3f}) "
            f"{self.losses} lr {lr:.4e} eta {eta}"
        )


def _kept(value: float | Tensor) -> float | Tensor:
    """A number, or a copy on the device of a value that is costly to read: its memory may be used again."""
    value = unread(value) if isinstance(value, Tensor) else value
    return value.clone() if isinstance(value, Tensor) else value
