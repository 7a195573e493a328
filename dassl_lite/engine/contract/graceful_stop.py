"""Ctrl-C, SIGTERM and SIGHUP stop a run after the current epoch, with a checkpoint, not in the middle of a step."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, ClassVar

from dassl_lite.startup import STOP_SIGNALS, stopped_by
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)


class GracefulStop:
    """A context in which the first signal sets ``requested`` and the second raises KeyboardInterrupt.

    Python delivers signals to the main thread only; in other threads this has no effect. Neither has it in a process
    that is forked within the context: its parent stops it.
    """

    current: ClassVar[GracefulStop | None] = None  # the one that is entered
    at_once = False  # whether the first signal raises, too

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        self._process, self._outer, GracefulStop.current = os.getpid(), GracefulStop.current, self
        if threading.current_thread() is threading.main_thread():
            ignored = {number for number in STOP_SIGNALS if signal.getsignal(number) == signal.SIG_IGN}  # by nohup
            signals = [number for number in STOP_SIGNALS if number == signal.SIGINT or number not in ignored]
            self._before = {number: signal.signal(number, self._handle) for number in signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        GracefulStop.current = self._outer
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return
        if self.requested or self.at_once:
            raise KeyboardInterrupt(f"{stopped_by(number)}; resume with --resume" if self.at_once else "stopped")
        self.requested = True
        logger.warning("stopping after this epoch, with a checkpoint; interrupt again to stop at once")


@contextlib.contextmanager
def stops_at_once() -> Iterator[None]:
    """Within an epoch or after the last: work that may take minutes and loses nothing if it is broken off.

    Raises:
        KeyboardInterrupt: on the first signal, also one that came before.
    """
    stop = GracefulStop.current
    if stop is None or stop.at_once:
        yield
        return
    stop.at_once = True
    try:
        if stop.requested:
            raise KeyboardInterrupt("stopped; resume with --resume")
        yield
    finally:
        stop.at_once = False
