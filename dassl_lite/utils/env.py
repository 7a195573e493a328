"""Versions and hardware of a run, for the log and for ``results.json``."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "pillow", "scikit-learn", "yacs")


def environment() -> dict[str, str | int | list[str] | None]:
    """Versions and hardware as plain values, without user names, host names or paths; takes milliseconds."""
    return {
        "dassl_lite": _version("dassl-lite"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        **{package: _version(package) for package in _PACKAGES},
    }


def collect_env_info() -> str:
    """The environment as text, one line per entry (Dassl's name)."""
    lines = []
    for key, value in environment().items():
        shown = ", ".join(value) if isinstance(value, list) else value
        lines.append(f"{key}: {shown or 'none'}")
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
