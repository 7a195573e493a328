"""TRAIN.COMPILE: a step's forward pass and loss as one compiled function; on CUDA its kernels are replayed as graphs.

What is computed stays the same up to rounding. Where torch cannot compile, a warning says so and training goes on
without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dassl_lite.utils.errors import printable
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

Step = Callable[..., Any]
_LONGEST = 200  # characters of torch's reason


def compiled(step: Step, device: torch.device) -> Step:
    """``step``, compiled by torch at its first call.

    Args:
        step: takes and gives tensors of the same shapes at each call, but for a last batch; compiled once for each.
        device: where they are. On CUDA its kernels are recorded and replayed (CUDA graphs): what it gives is valid
            until its next call.
    """
    if why := _unable(device):
        return _told(step, why)
    _keep_inputs_of_backward()
    graphs = device.type == "cuda"
    fast = torch.compile(step, dynamic=False, mode="reduce-overhead" if graphs else None)
    works: Step | None = None

    def call(*args: Any) -> Any:
        nonlocal works
        if works is None:
            try:
                found = fast(*args)
            except Exception as error:
                if not _is_compilers(error):
                    raise
                works = _told(step, f"{type(error).__name__}: {error}")
            else:
                works = fast
                return found
        if graphs and works is fast:
            torch.compiler.cudagraph_mark_step_begin()
        return works(*args)

    return call


def _told(step: Step, why: str) -> Step:
    line = why.strip().partition("\n")[0]
    logger.warning(f"TRAIN.COMPILE: torch cannot compile the step ({printable(line)[:_LONGEST]}); it runs as it is")
    return step


def _unable(device: torch.device) -> str:
    """Why nothing can be compiled for a device, or ""."""
    if not hasattr(torch, "compile"):
        return "this torch has no torch.compile"
    if device.type not in ("cpu", "cuda"):
        return f"not tried on {device.type}"
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return "" if has_triton() else "CUDA needs Triton, which is not installed"
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        get_cpp_compiler()
    except Exception as error:  # noqa: BLE001  # the names in torch change from version to version
        return f"a CPU needs a C++ compiler: {error}" if str(error) else "a CPU needs a C++ compiler"
    return ""


def _is_compilers(error: Exception) -> bool:
    """Whether an error is of the compiler, not of what is computed."""
    return any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__)


def _keep_inputs_of_backward() -> None:
    """A method, or a scaled step, may go backward through a step twice."""
    from torch._functorch import config

    if hasattr(config, "donated_buffer"):
        config.donated_buffer = False
