"""Devices: which one a run uses, how it computes there, and what to do when its memory is full or it has failed.

All questions about the kind of device are answered here. torch has separate functions for CUDA (`torch.cuda`), Apple
(`torch.mps`) and Intel (`torch.xpu`); `torch.accelerator`, which unites them, needs torch 2.6.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from dassl_lite.utils.env import world_size
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

T = TypeVar("T")

KINDS = ("cuda", "mps", "xpu")  # supported kinds of accelerators
_told: set[str] = set()


# ---- which one ------------------------------------------------------------------------------------------------------


def accelerator() -> str:
    """Kind of this machine's accelerator, one of `KINDS`; "" if there is no usable one."""
    if torch.cuda.is_available():
        return "cuda"
    union = getattr(torch, "accelerator", None)  # torch 2.6
    if union is not None:
        device = union.current_accelerator() if union.is_available() else None
        kind = "" if device is None else device.type
    elif torch.backends.mps.is_available():
        kind = "mps"
    else:
        kind = "xpu" if hasattr(torch, "xpu") and torch.xpu.is_available() else ""
    if kind and kind not in KINDS:
        _tell_once(f"This machine's accelerator ({kind}) is of a kind that is not used: running on the CPU")
        return ""
    return kind


def pick(wanted: bool) -> torch.device:
    """The device of a run; this is the only place where it is chosen.

    Apple's GPU lacks some operations: torch runs these on the CPU, with a warning, if PYTORCH_ENABLE_MPS_FALLBACK is 1.

    Args:
        wanted: USE_CUDA, which stands for any accelerator.
    """
    kind = accelerator() if wanted else ""
    if kind == "mps" and os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") != "1":
        _tell_once(
            "Running on Apple's GPU (mps). If it lacks an operation, set PYTORCH_ENABLE_MPS_FALLBACK=1: then the CPU "
            "does it, and torch warns; or set USE_CUDA False"
        )
    if kind in ("mps", "xpu") and world_size() > 1:
        _tell_once(f"Several processes share a run on CUDA or on the CPU only, not on {kind}: running on the CPU")
        kind = ""
    return torch.device(kind or "cpu")


def join_gpu(local_rank: int, local_size: int) -> None:
    """Assign a separate GPU to this process, one of several on this machine.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    count = torch.cuda.device_count()
    if max(local_size, local_rank + 1) > count:
        raise UserError(
            f"{max(local_size, local_rank + 1)} processes on this machine, but {count} "
            f"GPU{'' if count == 1 else 's'}: start torchrun with --nproc-per-node {count}, or set USE_CUDA False"
        )
    torch.cuda.set_device(local_rank)


def _tell_once(message: str) -> None:
    if message not in _told:
        _told.add(message)
        logger.warning(message)


# ---- how it computes ------------------------------------------------------------------------------------------------


def set_arithmetic() -> None:
    """Make torch's arithmetic the same in every run, independent of its defaults.

    float32 stays float32: TF32 is off, which torch uses for convolutions by default (faster, but with 10 bits of
    mantissa, like float16). Convolution kernels are not chosen by timing (``cudnn.benchmark``), because different
    processes may choose different ones, which changes the numbers. Images are stored channel by channel.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


def describe_arithmetic(device: torch.device, precision: str) -> dict[str, Any]:
    """What a run's numbers depend on besides its config, as plain values, for ``results.json``."""
    settings: dict[str, Any] = {"device": device.type, "precision": precision, "memory_format": "contiguous"}
    settings["autocast"] = str(autocast_type(device)).removeprefix("torch.") if precision == "amp" else None
    settings["matmul_precision"] = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        settings["tf32"] = {
            "matmul": torch.backends.cuda.matmul.allow_tf32,
            "convolution": torch.backends.cudnn.allow_tf32,
        }
        settings["cudnn_benchmark"] = torch.backends.cudnn.benchmark
    return settings


def autocast_type(device: torch.device) -> torch.dtype:
    """The type that PREC amp computes in: float16 on CUDA, as is usual in the field, else bfloat16."""
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def has_fast_float16(device: torch.device) -> bool:
    """Whether a device multiplies matrices several times as fast in float16 as in float32.

    CUDA devices since Volta have units for that. Others are assumed to be no faster: none has been measured.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)


def cache_text(device: torch.device, precision: str) -> str:
    """What a feature's value depends on besides weights and image, for the key of a cache.

    For a CPU this is the name of the precision. For a GPU it differs wherever the numbers do: amp computes in another
    type, and with TF32 allowed, fp32 is not float32.
    """
    text = precision
    if precision == "amp" and autocast_type(device) != torch.bfloat16:
        text += f"-{str(autocast_type(device)).removeprefix('torch.')}"
    if device.type == "cuda" and precision in ("fp32", "amp"):
        rounds = torch.backends.cudnn.allow_tf32 or torch.get_float32_matmul_precision() != "highest"
        text += "-tf32" if rounds else ""
    return text


# ---- when its memory is full ----------------------------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the memory of a device, or of the host, has no room for a tensor."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words) and not is_lost(error)


class Halving:
    """Calls a function on parts of a batch, and halves the parts each time that memory is full.

        encode = Halving("encoding images")
        features = torch.cat(encode(model, images, 256))

    The size that fitted is kept for later calls. If a single row does not fit, its error is raised unchanged.

    Args:
        what: what the function does, for the log line.
    """

    def __init__(self, what: str) -> None:
        self.what, self.size = what, 0

    def __call__(self, function: Callable[[Any], T], batch: Any, size: int = 0) -> list[T]:
        """The results for the parts, in order.

        Args:
            batch: a tensor, or a dict of tensors and lists with a row, or an item, for each image.
            size: rows per part; 0 for all.
        """
        results: list[T] = []
        rows, done = _length(batch), 0
        while done < rows or not results:
            limit = min(size or rows, self.size or rows)
            part = batch if limit >= rows else _rows(batch, rows, done, done + limit)
            try:
                results.append(function(part))
                done += limit
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error) or min(limit, rows - done) <= 1:
                    raise
            # Outside the handler, which keeps the failed call's tensors alive.
            self.size = max(1, min(limit, rows - done) // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            logger.warning(f"Out of memory while {self.what}: continuing with {self.size} at a time")
        return results


def _length(batch: Any) -> int:
    """Number of rows of a batch; 1 if it cannot be split."""
    if isinstance(batch, Mapping):
        return next((len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim), 1)
    return len(batch) if isinstance(batch, Tensor) and batch.ndim else 1


def _rows(batch: Any, rows: int, start: int, end: int) -> Any:
    """Rows ``start`` to ``end`` of each item in a batch that has ``rows`` rows."""
    if isinstance(batch, Mapping):
        return {name: _rows(value, rows, start, end) for name, value in batch.items()}
    if isinstance(batch, list) and batch and isinstance(batch[0], Tensor):  # several versions of every image
        return [_rows(value, rows, start, end) for value in batch]
    cut = (isinstance(batch, Tensor) and batch.ndim) or isinstance(batch, list | tuple)
    return batch[start:end] if cut and len(batch) == rows else batch


# ---- when it has failed ---------------------------------------------------------------------------------------------


def is_lost(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, means that the GPU is lost: every later call fails as well."""
    words = (
        "CUDA error",
        "CUBLAS_STATUS",
        "cuDNN error",
        "device-side assert",
        "CUDNN_STATUS",
        "illegal memory access",
    )
    while error is not None:
        if isinstance(error, getattr(torch, "AcceleratorError", ())):  # torch 2.8
            return True
        if isinstance(error, RuntimeError) and any(word in str(error) for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False


# ---- the host's memory ----------------------------------------------------------------------------------------------


def give_back_memory() -> None:
    """Free what earlier runs in this process have left: unreachable objects, and memory that malloc keeps.

    glibc returns little by itself: one small block in use keeps everything below it allocated. Over hundreds of runs in
    one process, this added up to gigabytes.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:  # only glibc has it
        trim(0)
