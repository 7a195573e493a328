"""``results.json``: what a run was, what it found and what it cost, in full precision."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import read_json, write_json

FILE_NAME = "results.json"


def peak_memory() -> dict[str, float]:
    """Peak resident memory of the process and, with a GPU, of the device, in MiB."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    memory = {"host_mib": kib / 1024}
    if torch.cuda.is_available():
        memory["device_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return memory


def write_results(results: Mapping[str, Any], folder: str | Path) -> Path:
    """Write ``results.json`` into ``folder``, whole or not at all; returns its path."""
    path = Path(folder) / FILE_NAME
    write_json(results, path)
    return path


def read_results(folder: str | Path) -> dict[str, Any] | None:
    """A run's results, or None if it has not finished."""
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except ValueError:
        raise UserError(f"{path} is not valid JSON; delete it and run again") from None
