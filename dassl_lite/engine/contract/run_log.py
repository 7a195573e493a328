"""The output of a training run: the reference's line per batch in ``log.txt`` and a progress bar on the console."""

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

MAX_PENDING = 128  # steps whose values may stay on the device unread


def _discard(tag: str, value: float, step: int) -> None:
    """Used without TensorBoard."""


class RunLog:
    """Meters, log lines, scalars and the progress bar of one training run.

    Values on an accelerator are read only at a log line or at the end of the epoch: reading one waits for the device.

    Args:
        start_epoch, max_epoch: epoch range of the run.
        print_freq: number of batches between log lines; a shorter epoch logs every batch.
        show: whether to show a progress bar.
        write: called with each scalar of a step: tag, value, step number within the run.
    """

    def __init__(
        self,
        start_epoch: int,
        max_epoch: int,
        print_freq: int,
        show: bool = True,
        write: Callable[[str, float, int], None] = _discard,
    ) -> None:
        self.max_epoch, self.print_freq, self._write = max_epoch, print_freq, write
        self.losses = MetricMeter()  # stays empty if a trainer overrides run_epoch without filling it
        self._pending: list[tuple[int, dict[str, float | Tensor], float]] = []  # step, values, learning rate
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
        """Record that a batch has arrived."""
        self.data_time.update(time.perf_counter() - self._mark)

    def is_due(self, batch_idx: int) -> bool:
        """Whether this batch gets a log line."""
        return (batch_idx + 1) % self.print_freq == 0 or self.num_batches < self.print_freq

    def batch_done(self, batch_idx: int, summary: Mapping[str, float | Tensor] | None, lr: float) -> None:
        """Record the values of a step, numbers or one-element tensors, and log a line when due."""
        values = {name: _snapshot(value) for name, value in MetricMeter.checked(summary).items()}
        self._pending.append((self.epoch * self.num_batches + batch_idx, values, lr))
        due = self.is_due(batch_idx)
        on_device = any(isinstance(value, Tensor) for value in values.values())
        if due or not on_device or len(self._pending) >= MAX_PENDING:
            self.read()
        self.batch_time.update(time.perf_counter() - self._mark)  # includes the work still queued on the device
        if due:
            log_step(self._line(batch_idx, lr))
        self._mark = time.perf_counter()

    def read(self) -> None:
        """Read pending values and update the meters and scalars."""
        pending, self._pending = self._pending, []
        numbers = iter(read_together([v for _, values, _ in pending for v in values.values() if isinstance(v, Tensor)]))
        for step, values, lr in pending:
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
        """Close the progress bar and flush the log."""
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


def _snapshot(value: float | Tensor) -> float | Tensor:
    """A number, or an on-device copy of a value that is costly to read: the original's memory may be reused."""
    value = unread(value) if isinstance(value, Tensor) else value
    return value.clone() if isinstance(value, Tensor) else value
