"""TRAIN.COMPILE: a step's forward pass and loss as one compiled function, replayed as CUDA graphs on CUDA.

Results are the same up to rounding. If torch cannot compile the step, a warning says so and training continues
uncompiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dassl_lite.utils.devices import is_lost, is_out_of_memory
from dassl_lite.utils.errors import UserError, printable
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

Step = Callable[..., Any]
_MAX_LENGTH = 200  # characters of torch's error message


class CompiledStep:
    """A step that is compiled at its first call for each shape; if compilation ever fails, it falls back to eager mode.

    Args:
        step: the eager step.
        fast: the compiled step.
        graphs: whether ``fast`` replays recorded kernels, so that a call's result is valid only until the next one.
    """

    def __init__(self, step: Step, fast: Step, *, graphs: bool) -> None:
        self._step, self._graphs, self._called = step, graphs, False
        self._fast: Step | None = fast

    def __call__(self, *args: Any) -> Any:
        if self._fast is None:
            return self._step(*args)
        if self._graphs and self._called:
            torch.compiler.cudagraph_mark_step_begin()
        self._called = True
        try:
            return self._fast(*args)
        except Exception as error:
            if not _is_compiler_error(error):
                raise
            self._fall_back(error)
        return self._step(*args)

    def may_have_failed(self, error: Exception) -> bool:
        """Whether an error in the backward pass, which is compiled when it first runs, may come from the compiler.

        If so, later calls run the eager step, in which an error of the step itself would recur. Compiler errors can
        have any type here.
        """
        if self._fast is None or isinstance(error, UserError) or is_out_of_memory(error) or is_lost(error):
            return False
        self._fall_back(error)
        return True

    def _fall_back(self, error: Exception) -> None:
        self._fast = None
        _warn(f"{type(error).__name__}: {error}")


def compiled(step: Step, device: torch.device) -> Step:
    """Compile ``step`` into a `CompiledStep`; without a compiler, returns it unchanged, with a warning.

    Args:
        step: has inputs and outputs of the same shapes at each call, except for a last batch; compiled for each shape.
        device: device of the tensors. On CUDA, kernels are recorded and replayed (CUDA graphs), so a result is valid
            only until the next call.
    """
    if why := _why_unavailable(device):
        _warn(why)
        return step
    _keep_inputs_of_backward()
    graphs = device.type == "cuda"
    return CompiledStep(
        step, torch.compile(step, dynamic=False, mode="reduce-overhead" if graphs else None), graphs=graphs
    )


def _warn(why: str) -> None:
    line = why.strip().partition("\n")[0]
    logger.warning(
        f"TRAIN.COMPILE: torch cannot compile the step ({printable(line)[:_MAX_LENGTH]}); running it uncompiled"
    )


def _why_unavailable(device: torch.device) -> str:
    """Why compilation is not possible for a device, or ""."""
    if not hasattr(torch, "compile"):
        return "this torch has no torch.compile"
    if device.type not in ("cpu", "cuda"):
        return f"untested on {device.type}"
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return "" if has_triton() else "CUDA needs Triton, which is not installed"
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        get_cpp_compiler()
    except Exception as error:  # noqa: BLE001  # names in torch change between versions
        return f"a CPU needs a C++ compiler: {error}" if str(error) else "a CPU needs a C++ compiler"
    return ""


def _is_compiler_error(error: Exception) -> bool:
    """Whether an error comes from the compiler, not from the computation."""
    return any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__)


def _keep_inputs_of_backward() -> None:
    """Disable buffer donation, because a method or a scaled step may back-propagate through a step twice."""
    from torch._functorch import config

    if hasattr(config, "donated_buffer"):
        config.donated_buffer = False
