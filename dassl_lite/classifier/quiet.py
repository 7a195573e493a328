"""Run the engine inside someone else's program without changing anything else in the process.

The engine draws from the global random streams, sets the number of threads and the float32 precision, and logs. `alone`
restores all of this afterwards. It admits one thread at a time, so classifiers in several threads do not disturb each
other; the engine's work uses all cores anyway.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dassl_lite.engine.methods.backbone import shared_backbone
from dassl_lite.utils.devices import accelerator
from dassl_lite.utils.logger import ROOT_NAME
from dassl_lite.utils.seeding import random_states, random_streams_kept, restore_random_states

_lock = threading.RLock()
_backbone: Any = {}  # the last one loaded, shared by successive classifiers


class _Collected(logging.Handler):
    """Collects this thread's warnings in a list; since they have a handler, logging does not print them to stderr."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.messages, self.thread = messages, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if threading.get_ident() == self.thread and record.getMessage() not in self.messages:
            self.messages.append(record.getMessage())


@contextmanager
def alone(messages: list[str] | None = None, *, verbose: bool = False) -> Iterator[None]:
    """A context for the engine's work, which only one thread at a time can enter.

    Args:
        messages: list to which the engine's warnings are appended, each once.
        verbose: show the engine's log messages on the console.
    """
    messages = [] if messages is None else messages
    with _lock, _streams_kept(), _arithmetic_kept(), _logging(messages, verbose), shared_backbone(_backbone):
        yield


@contextmanager
def _streams_kept() -> Iterator[None]:
    """Restore every random stream at the end, including those of accelerators."""
    if not accelerator():
        with random_streams_kept():
            yield
        return
    before = random_states()
    try:
        yield
    finally:
        restore_random_states(before)


@contextmanager
def _arithmetic_kept() -> Iterator[None]:
    """Restore the settings of `devices.set_arithmetic` and the number of threads at the end."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    tf32, benchmark = cudnn.allow_tf32, cudnn.benchmark
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        cudnn.allow_tf32, cudnn.benchmark = tf32, benchmark


@contextmanager
def _logging(messages: list[str], verbose: bool) -> Iterator[None]:
    logger = logging.getLogger(ROOT_NAME)
    level, added = logger.level, [_Collected(messages)]
    if verbose and not logger.handlers:  # a tool has its own
        added.append(logging.StreamHandler(sys.stderr))  # type: ignore[arg-type]
        logger.setLevel(logging.INFO)
    for handler in added:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in added:
            logger.removeHandler(handler)
        logger.setLevel(level)
