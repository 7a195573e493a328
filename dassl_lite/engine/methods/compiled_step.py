"""TRAIN.COMPILE: a step's forward pass and loss as one compiled function; on CUDA its kernels are replayed as graphs.

What is computed stays the same up to rounding. Where torch cannot compile, a warning says so and training goes on
without.
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
_LONGEST = 200  # characters of torch's reason


class CompiledStep:
    """A step that is compiled at its first call for each shape; once torch fails to, it runs as it is.

    Args:
        step: as it is.
        fast: compiled.
        graphs: whether ``fast`` replays recorded kernels, so that what a call gives is valid until the next one.
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
            if not _is_compilers(error):
                raise
            self._give_up(error)
        return self._step(*args)

    def may_have_failed(self, error: Exception) -> bool:
        """Whether an error in the backward pass may be the compiler's, which compiles that pass when it first runs.

        If so, calls give what the step gives as it is from now on: an error of the step's own comes again. The error of
        a compiler has any type there.
        """
        if self._fast is None or isinstance(error, UserError) or is_out_of_memory(error) or is_lost(error):
            return False
        self._give_up(error)
        return True

    def _give_up(self, error: Exception) -> None:
        self._fast = None
        _tell(f"{type(error).__name__}: {error}")


def compiled(step: Step, device: torch.device) -> Step:
    """``step``, compiled by torch, as a `CompiledStep`; as it is, with a warning, where there is no compiler.

    Args:
        step: takes and gives tensors of the same shapes at each call, but for a last batch; compiled once for each.
        device: where they are. On CUDA its kernels are recorded and replayed (CUDA graphs): what it gives is valid
            until its next call.
    """
    if why := _unable(device):
        _tell(why)
        return step
    _keep_inputs_of_backward()
    graphs = device.type == "cuda"
    return CompiledStep(
        step, torch.compile(step, dynamic=False, mode="reduce-overhead" if graphs else None), graphs=graphs
    )


def _tell(why: str) -> None:
    line = why.strip().partition("\n")[0]
    logger.warning(f"TRAIN.COMPILE: torch cannot compile the step ({printable(line)[:_LONGEST]}); it runs as it is")


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
