"""Ctrl-C and SIGTERM stop a run after the current epoch, with a checkpoint, not in the middle of a step."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any

from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)


class GracefulStop:
    """A context in which the first signal sets ``requested`` and the second raises KeyboardInterrupt.

    Python delivers signals to the main thread only; in other threads this has no effect.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            signals = (signal.SIGINT, signal.SIGTERM)
            self._before = {number: signal.signal(number, self._handle) for number in signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt("stopped")
        self.requested = True
        logger.warning("stopping after this epoch, with a checkpoint; interrupt again to stop at once")
