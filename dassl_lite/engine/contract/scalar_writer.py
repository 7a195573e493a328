"""A TensorBoard writer for loops whose steps take a millisecond.

SummaryWriter passes every value to its thread immediately, which doubles the cost of a step on cached features. Here
values are buffered as one event per step and passed on in bulk.
"""

from __future__ import annotations

import time
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

_SECONDS = 10.0  # longest time that a value is buffered while others arrive
_STEPS = 4096  # maximum number of buffered steps


class ScalarWriter(SummaryWriter):
    """A SummaryWriter with cheap scalars; everything else is unchanged."""

    def __init__(self, log_dir: str) -> None:
        self._buffered: dict[int | None, tuple[float, dict[str, float]]] = {}  # step -> (time, values by tag)
        self._flushed_at = time.monotonic()
        super().__init__(log_dir=log_dir, max_queue=2 * _STEPS)

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int | None = None, *args: Any, **more: Any) -> None:
        """Buffer one value: a number or a one-element tensor."""
        if args or more:
            super().add_scalar(tag, scalar_value, global_step, *args, **more)
            return
        _, values = self._buffered.setdefault(global_step, (time.time(), {}))
        if tag in values:  # a second value for the same step: keep both
            self._flush_scalars()
            self._buffered[global_step] = (time.time(), values := {})
        values[tag] = float(scalar_value)
        if len(self._buffered) >= _STEPS or time.monotonic() - self._flushed_at > _SECONDS:
            self._flush_scalars()

    def _flush_scalars(self) -> None:
        """Pass the buffered values to the writing thread."""
        writer = self._get_file_writer()
        for step, (when, values) in self._buffered.items():
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
            writer.add_summary(summary, step, when)
        self._buffered.clear()
        self._flushed_at = time.monotonic()

    def flush(self) -> None:
        """Write everything to the file."""
        self._flush_scalars()
        super().flush()

    def close(self) -> None:
        """Write everything and close the file."""
        if self.file_writer is not None:
            self._flush_scalars()
        super().close()
