"""What a training run prints: the reference's line per batch in ``log.txt``, a progress bar on the console."""

from __future__ import annotations

import datetime
import sys
import time
from typing import Any

from tqdm import tqdm

from dassl_lite.utils.logger import FILE_ONLY, get_logger
from dassl_lite.utils.meters import AverageMeter, MetricMeter

logger = get_logger(__name__)


class RunLog:
    """Meters, log lines and the progress bar of one training run.

    Args:
        start_epoch, max_epoch: range of the run.
        print_freq: batches between log lines; a shorter epoch logs every batch.
        show: whether to show a progress bar.
    """

    def __init__(self, start_epoch: int, max_epoch: int, print_freq: int, show: bool = True) -> None:
        self.max_epoch, self.print_freq = max_epoch, print_freq
        self.losses = MetricMeter()  # a trainer with a run_epoch of its own may not fill it
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
        self.epoch, self.num_batches = epoch, num_batches
        self.losses = MetricMeter()
        self.batch_time, self.data_time = AverageMeter(), AverageMeter()
        self._mark = time.perf_counter()

    def data_ready(self) -> None:
        """A batch has arrived."""
        self.data_time.update(time.perf_counter() - self._mark)

    def batch_done(self, batch_idx: int, summary: dict[str, float], lr: float) -> None:
        """Update the meters after a step and, when due, log a line."""
        self.batch_time.update(time.perf_counter() - self._mark)
        self.losses.update(summary)
        if (batch_idx + 1) % self.print_freq == 0 or self.num_batches < self.print_freq:
            logger.info(self._line(batch_idx, lr), extra=FILE_ONLY)
        self._mark = time.perf_counter()

    def end_epoch(self, lr: float) -> None:
        """Advance the progress bar."""
        values: dict[str, Any] = {name: f"{meter.avg:.4g}" for name, meter in self.losses.meters.items()}
        self._bar.set_postfix(**values, lr=f"{lr:.1e}", refresh=False)
        self._bar.update(1)

    def close(self) -> None:
        """Close the progress bar."""
        self._bar.close()

    def _line(self, batch_idx: int, lr: float) -> str:
        batches_left = self.num_batches - batch_idx - 1 + (self.max_epoch - self.epoch - 1) * self.num_batches
        eta = datetime.timedelta(seconds=int(self.batch_time.avg * batches_left))
        return (
            f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{batch_idx + 1}/{self.num_batches}] "
            f"time {self.batch_time.val:.3f} ({self.batch_time.avg:.3f}) "
            f"data {self.data_time.val:.3f} ({self.data_time.avg:.3f}) "
            f"{self.losses} lr {lr:.4e} eta {eta}"
        )
