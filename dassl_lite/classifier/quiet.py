"""Running the engine inside a program that is not ours: nothing else in the process changes.

The engine draws from the global random streams, sets the number of threads and how float32 is multiplied, and logs.
Within `alone` it may; afterwards all is as it was. One thread at a time is inside, so classifiers in several threads do
not disturb each other: what they do takes all cores as it is.
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
_backbone: Any = {}  # the last one loaded: classifiers that follow each other share it


class _Collected(logging.Handler):
    """Appends what this thread's work warns of to a list; as it handles them, logging prints them nowhere else."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.messages, self.thread = messages, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if threading.get_ident() == self.thread and record.getMessage() not in self.messages:
            self.messages.append(record.getMessage())


@contextmanager
def alone(messages: list[str] | None = None, *, verbose: bool = False) -> Iterator[None]:
    """A context for the engine's work, which one thread at a time enters.

    Args:
        messages: gets what the engine warns of, each line once.
        verbose: show on the console what the engine logs.
    """
    messages = [] if messages is None else messages
    with _lock, _streams_kept(), _arithmetic_kept(), _logging(messages, verbose), shared_backbone(_backbone):
        yield


@contextmanager
def _streams_kept() -> Iterator[None]:
    """Every random stream as it was, those of accelerators too."""
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
    """What `devices.set_arithmetic` sets, and the number of threads, as they were."""
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
