"""``results.json``: a run's settings, metrics and costs, in full precision."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import read_json, write_json

FILE_NAME = "results.json"
MAIN_METRICS = ("accuracy", "mAP")  # reported first: for one class per image, for several
_NODES = ("INPUT", "DATASET", "MODEL", "OPTIM", "TEST", "TRAINER")  # nodes in every run's config


def reset_peak_memory() -> None:
    """Restart the measurement, for a run in a process that has already done others."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # Linux only
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> dict[str, float]:
    """Peak memory in MiB since `reset_peak_memory`: resident memory of the process and, with a GPU, device memory."""
    memory = {"host_mib": _peak_kib() / 1024}
    if torch.cuda.is_available():
        memory["device_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return memory


def _peak_kib() -> float:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return float(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)


def write_results(results: Mapping[str, Any], folder: str | Path) -> Path:
    """Write ``results.json`` into ``folder`` atomically; returns its path."""
    path = Path(folder) / FILE_NAME
    write_json(results, path)
    return path


def read_results(folder: str | Path) -> dict[str, Any] | None:
    """Read a run's results; None if it has not finished."""
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        return None
    try:
        results = read_json(path)
    except ValueError:
        raise UserError(f"{path} is not valid JSON; delete it and run again") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if not isinstance(results, dict):
        raise UserError(f"{path} does not hold the results of a run; delete it and run again")
    return results


def main_metric(metrics: Mapping[str, Any]) -> str:
    """The name of the metric that is reported first; "" if the evaluator has none of ``MAIN_METRICS``."""
    return next((name for name in MAIN_METRICS if name in metrics), "")


def config_in(results: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """The config in the results of the run in ``folder``.

    Raises:
        UserError: the results contain no config.
    """
    config = results.get("config")
    if not isinstance(config, dict) or not is_config(config):
        raise UserError(f"{Path(folder) / FILE_NAME} does not hold the config of a run; delete it and run again")
    return config


def is_config(config: Any) -> bool:
    """Whether ``config`` is the config of a run, as nested plain values."""
    if not isinstance(config, dict) or not all(isinstance(config.get(node), dict) for node in _NODES):
        return False
    return all(isinstance(config[node].get("NAME"), str) for node in ("DATASET", "TRAINER"))
