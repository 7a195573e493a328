"""Seed, save and restore all random generators together."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from dassl_lite.utils.devices import accelerator


def set_random_seed(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


@contextlib.contextmanager
def random_streams_kept() -> Iterator[None]:
    """Restore Python's, NumPy's and torch's random streams (on the CPU) at the end."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def random_states() -> dict[str, Any]:
    """The state of every global generator, as tensors and plain values that a checkpoint can store safely."""
    version, internal, gauss_next = random.getstate()
    kind = accelerator()
    mersenne: dict[str, Any] = np.random.get_state(legacy=False)
    key = torch.from_numpy(mersenne["state"]["key"].astype(np.int64))
    return {
        "python": (version, torch.tensor(internal, dtype=torch.int64), gauss_next),
        "numpy": (key, int(mersenne["state"]["pos"]), int(mersenne["has_gauss"]), float(mersenne["gauss"])),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        **({"accelerator": {kind: getattr(torch, kind).get_rng_state()}} if kind in ("mps", "xpu") else {}),
    }


def restore_random_states(states: dict[str, Any], own_gpu: int | None = None) -> None:
    """Restore every generator to a state saved by ``random_states``.

    If this machine has fewer GPUs, the states of the missing ones are dropped.

    Args:
        own_gpu: index of this process's GPU, if the states come from several processes with one GPU each.
    """
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal.tolist()), gauss_next))
    key, position, has_gauss, gauss = states["numpy"]
    np.random.set_state(("MT19937", key.cpu().numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(states["torch"].cpu())
    if own_gpu is not None:
        for state in states["cuda"][own_gpu : own_gpu + 1]:
            torch.cuda.set_rng_state(state.cpu())
        return
    for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state.cpu(), device)
    for kind, state in states.get("accelerator", {}).items():
        if kind == accelerator():
            getattr(torch, kind).set_rng_state(state.cpu())
