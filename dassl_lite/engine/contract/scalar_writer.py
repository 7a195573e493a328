"""TensorBoard's writer for a loop whose steps take a millisecond.

SummaryWriter hands every value to a thread as it comes, which costs a step on cached features as much again as its
arithmetic. Here values wait, one event per step with all of its values, and are handed over in bulk.
"""

from __future__ import annotations

import time
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

_SECONDS = 10.0  # that a value waits at most, while others come
_STEPS = 4096  # that wait at most


class ScalarWriter(SummaryWriter):
    """A SummaryWriter whose scalars are cheap; all else is as there."""

    def __init__(self, log_dir: str) -> None:
        self._waiting: dict[int | None, tuple[float, dict[str, float]]] = {}  # step -> time, value by tag
        self._handed_over = time.monotonic()
        super().__init__(log_dir=log_dir, max_queue=2 * _STEPS)

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int | None = None, *args: Any, **more: Any) -> None:
        """Take in one value, a number or a tensor of one."""
        if args or more:
            super().add_scalar(tag, scalar_value, global_step, *args, **more)
            return
        _, values = self._waiting.setdefault(global_step, (time.time(), {}))
        if tag in values:  # twice in a step: both are kept
            self.hand_over()
            self._waiting[global_step] = (time.time(), values := {})
        values[tag] = float(scalar_value)
        if len(self._waiting) >= _STEPS or time.monotonic() - self._handed_over > _SECONDS:
            self.hand_over()

    def hand_over(self) -> None:
        """Give what waits to the thread that writes."""
        writer = self._get_file_writer()
        for step, (when, values) in self._waiting.items():
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
            writer.add_summary(summary, step, when)
        self._waiting.clear()
        self._handed_over = time.monotonic()

    def flush(self) -> None:
        """Write everything to the file."""
        self.hand_over()
        super().flush()

    def close(self) -> None:
        """Write everything and close the file."""
        if self.file_writer is not None:
            self.hand_over()
        super().close()
