"""How many threads a step takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL_STEP = 2**24  # multiplications in a head's forward pass below which one thread is faster than several


@contextmanager
def threads_for(multiplications: int) -> Iterator[None]:
    """One thread for a step so small that waking the others costs more than it saves."""
    threads = torch.get_num_threads()
    if multiplications < SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
