"""Versions and hardware of a run, for the log and for ``results.json``."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

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


_CPU_QUOTAS = (  # files with a container's CPU quota: cgroups version 2, then version 1
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)


def usable_cores() -> int:
    """Number of CPUs that this process may use, within its affinity and its container's quota.

    Processes that torchrun starts on one machine share them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in _CPU_QUOTAS:
        try:
            quota, period = (int(word) for file in files for word in Path(file).read_text().split())
        except (OSError, ValueError):  # there is no such file, or no quota ("max")
            continue
        if quota > 0 < period:
            cores = min(cores, -(-quota // period))
        break
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, cores // int(local)) if local.isdecimal() and int(local) else max(1, cores)


def world_size() -> int:
    """Number of processes of this run; torchrun starts several."""
    return int(os.environ.get("WORLD_SIZE", "1"))


SHARED_MEMORY = "/dev/shm"  # where Linux keeps memory that processes share


def free_shared_memory() -> int | None:
    """Free shared memory in bytes; None if it is not a file system of limited size (outside Linux)."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return None


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
