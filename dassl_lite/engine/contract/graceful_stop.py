"""Lets Ctrl-C, SIGTERM and SIGHUP stop a run after the current epoch, with a checkpoint, rather than mid-step."""

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

    Python delivers signals only to the main thread, so this has no effect in other threads. Processes forked within the
    context ignore the signals: their parent stops them.
    """

    current: ClassVar[GracefulStop | None] = None  # the innermost active context
    at_once = False  # whether even the first signal raises

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        self._process, self._outer, GracefulStop.current = os.getpid(), GracefulStop.current, self
        if threading.current_thread() is threading.main_thread():
            ignored = {number for number in STOP_SIGNALS if signal.getsignal(number) == signal.SIG_IGN}  # under nohup
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
    """A context for long work within or after the epochs that can be interrupted without losing anything.

    Raises:
        KeyboardInterrupt: on the first signal, including one that arrived earlier.
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
