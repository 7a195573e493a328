"""Chooses how many threads a training step uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL_STEP = 2**24  # below this many multiplications per forward pass, one thread is faster than several


@contextmanager
def threads_for(multiplications: int | None) -> Iterator[None]:
    """Use one thread if a step is so small that waking others costs more than they save; None (unknown): no change."""
    threads = torch.get_num_threads()
    if multiplications is not None and multiplications < SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
