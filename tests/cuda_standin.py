"""A stand-in for "cuda:0" on a machine without a GPU: real numbers, in tensors that say ``cuda:0``.

    python tests/cuda_standin.py tools/train.py --trainer TaskRes DATALOADER.NUM_WORKERS 0
    python tests/cuda_standin.py -m pytest -n0 tests/engine        # what a machine with a GPU would see

A tensor keeps CPU storage, but its device is "cuda:0", so autocast, GradScaler and branches on the device are taken.
Each operation checks that its tensors are on one device, random numbers come from the device's own stream, and
``counting`` counts what makes the host wait and what is copied to the device. ``memory_of`` makes large tensors fail as
they do when a GPU's memory is full, ``broken`` makes every operation fail as after a CUDA error.

It cannot see which kernel runs (attention, TF32), streams, memory in use, or NCCL.

How it works: C++ is told "cpu", because backward on a C++ CUDA device asks for a driver. A dispatch mode catches the
creation of tensors, a function mode what C++ does before dispatching. This rests on private parts of torch, so other
versions than `TESTED` are refused. Entering changes torch for the rest of the process: use a process for it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import runpy
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

TESTED = ("2.14",)  # versions of torch
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
REPOSITORY = Path(__file__).resolve().parent.parent
aten = torch.ops.aten


def entered() -> bool:
    """Whether this process has the stand-in."""
    return _STATE.entered


def why_not() -> str:
    """Why the stand-in cannot be used here; "" if it can."""
    if torch.cuda.is_available() and not _STATE.entered:
        return "there is a GPU"
    version = ".".join(torch.__version__.split(".")[:2])
    return "" if version in TESTED else f"tests/cuda_standin.py is tested with torch {', '.join(TESTED)}, not {version}"


# ---- counting and failing ---------------------------------------------------------------------------------------


@dataclass
class Counts:
    """What happened on the device, by kind of operation and line of the project.

    Attributes:
        waits: of the host for the device: ``.item()``, ``.cpu()``, ``if tensor``, boolean indexing.
        copies: from the host to the device.
        operations: by name.
    """

    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"{name}: {dict(found)}" for name, found in (("waits", self.waits), ("copies", self.copies)) if found]
        return "; ".join(lines) or "no waits, no copies"


@dataclass
class _State:
    """Of the process's one device."""

    entered: bool = False
    counts: Counts | None = None
    largest: float = float("inf")  # bytes of the largest tensor that fits
    error: Exception | None = None  # what every operation raises
    random: torch.Tensor | None = None  # state of the device's random stream


_STATE = _State()
_LOCAL = threading.local()  # .explicit: whether the program itself is moving a tensor


@contextlib.contextmanager
def counting() -> Iterator[Counts]:
    """Count what happens on the device within the block."""
    before, _STATE.counts = _STATE.counts, Counts()
    try:
        yield _STATE.counts
    finally:
        _STATE.counts = before


@contextlib.contextmanager
def memory_of(size: float) -> Iterator[None]:
    """A new tensor of more than ``size`` bytes raises ``torch.OutOfMemoryError`` within the block."""
    before, _STATE.largest = _STATE.largest, size
    try:
        yield
    finally:
        _STATE.largest = before


@contextlib.contextmanager
def broken(error: Exception) -> Iterator[None]:
    """Every operation on the device raises ``error`` within the block, as after a CUDA error."""
    before, _STATE.error = _STATE.error, error
    try:
        yield
    finally:
        _STATE.error = before


def _where() -> str:
    """The innermost line of the project that is running."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(REPOSITORY) and path != Path(__file__):
            return f"{path.relative_to(REPOSITORY)}:{frame.lineno}"
    return "elsewhere"


# ---- tensors ----------------------------------------------------------------------------------------------------


class StandIn(torch.Tensor):
    """A tensor on "cuda:0", over the storage of a CPU tensor."""

    @staticmethod
    def __new__(cls, tensor: torch.Tensor) -> StandIn:
        return torch.Tensor._make_subclass(cls, tensor, False, dispatch_device=True)

    device = CUDA  # type: ignore[assignment]
    is_cuda, is_cpu = True, False

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
            "first."
        )

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __repr__(self, **_: Any) -> str:
        return f"StandIn({_plain(self)!r}, device='cuda:0')"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            with torch.no_grad():
                copied: Any = self.detach().clone().requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copied = torch.nn.Parameter(copied, self.requires_grad)
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As a CUDA tensor is pickled, but for the device: it is loaded on the CPU."""
        plain = _plain(self).clone()
        if getattr(self, "_is_param", False):
            plain = torch.nn.Parameter(plain, self.requires_grad)
        return plain.requires_grad_(self.requires_grad).__reduce_ex__(protocol)


def _plain(item: Any) -> Any:
    """A CPU tensor over the storage of a stand-in; anything else as it is."""
    if not isinstance(item, StandIn):
        return item
    plain = torch.empty(0, dtype=item.dtype)
    plain.set_(item.untyped_storage(), item.storage_offset(), item.size(), item.stride())
    return plain.conj() if item.is_conj() else plain


def _each(change: Callable[[Any], Any], item: Any) -> Any:
    """``change`` of everything in the arguments or the results of an operation, which are lists at most."""
    if type(item) is tuple or type(item) is list:
        return type(item)([_each(change, one) for one in item])
    if type(item) is dict:
        return {name: _each(change, one) for name, one in item.items()}
    return change(item)


def _tensors(*items: Any) -> list[torch.Tensor]:
    """All tensors in the arguments or the results of an operation."""
    found = []
    for item in items:
        if isinstance(item, torch.Tensor):
            found.append(item)
        elif type(item) is tuple or type(item) is list:
            found += _tensors(*item)
        elif type(item) is dict:
            found += _tensors(*item.values())
    return found


def _stand_in(item: Any) -> Any:
    return StandIn(item) if isinstance(item, torch.Tensor) and not isinstance(item, StandIn) else item


# ---- operations -------------------------------------------------------------------------------------------------

_MAY_MIX = {aten._to_copy.default, aten.copy_.default, aten.copy.default, aten._copy_from.default}
_MAY_MIX |= {aten._foreach_copy_.default}
_READS_INDEX = {aten.index.Tensor, aten._unsafe_index.Tensor}  # (tensor, indices): these may be on the CPU
_WRITES_INDEX = {aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}  # (tensor, ., values)
_WRITES_INDEX |= {aten._unsafe_index_put.default}
_WAITS = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.equal.default: "equal",
    aten.is_nonzero.default: "bool",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.bincount.default: "bincount",
    aten.repeat_interleave.Tensor: "repeat_interleave",
}


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation that a stand-in or the device is part of."""
    if func is torch.ops.prim.device.default:
        return CPU  # what C++ is told; autograd then asks no driver for a stream
    if _STATE.error is not None:
        raise _STATE.error
    tensors = _tensors(args, kwargs)
    here = any(isinstance(tensor, StandIn) for tensor in tensors)
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if here and target == CPU and not getattr(_LOCAL, "explicit", False):
        target = None  # autograd's own: it takes the device that C++ was told
    on_cuda = here if target is None else target.type == "cuda"
    if here:
        _require_one_device(func, args, tensors)
    if _STATE.counts is not None:
        _count(_STATE.counts, func, args, here, target, on_cuda)
    plain_args, plain_kwargs = _each(_plain, args), _each(_plain, kwargs)
    if target is not None:
        plain_kwargs["device"] = CPU
    if plain_kwargs.get("pin_memory"):
        plain_kwargs["pin_memory"] = False
    random = on_cuda and torch.Tag.nondeterministic_seeded in func.tags
    with _stream_of_the_device() if random else contextlib.nullcontext():
        result = func(*plain_args, **plain_kwargs)
    if func is aten._to_copy.default and on_cuda != here and result.data_ptr() == plain_args[0].data_ptr():
        result = result.clone()  # what is on two devices shares no storage
    return _on_the_device(func, args, kwargs, result) if on_cuda else result


def _require_one_device(func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    others = [tensor for tensor in tensors if not isinstance(tensor, StandIn)]
    if not others or func in _MAY_MIX or str(func).startswith("aten.set_.source_Storage"):
        return
    if isinstance(args[0], StandIn) and func in _READS_INDEX:
        return
    if isinstance(args[0], StandIn) and func in _WRITES_INDEX:
        others = [args[2]] if isinstance(args[2], torch.Tensor) and not isinstance(args[2], StandIn) else []
    pointwise = torch.Tag.pointwise in func.tags  # takes numbers of the CPU as arguments
    if any(tensor.dim() or not (pointwise or func in _WRITES_INDEX) for tensor in others):
        shapes = [(tuple(tensor.shape), str(tensor.device)) for tensor in tensors]
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"(in {func}, {shapes})"
        )


def _count(counts: Counts, func: Any, args: Any, here: bool, target: Any, on_cuda: bool) -> None:
    if not (here or on_cuda):
        return
    counts.operations[str(func)] += 1
    if func in _WAITS:
        counts.waits[f"{_WAITS[func]} {_where()}"] += 1
    elif func in _READS_INDEX | _WRITES_INDEX:
        indices = [index for index in args[1] if isinstance(index, torch.Tensor)]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            counts.waits[f"boolean index {_where()}"] += 1
        if not all(isinstance(index, StandIn) for index in indices):
            counts.copies[f"index on the CPU {_where()}"] += 1
    elif func is aten._to_copy.default and here != on_cuda:
        (counts.copies if on_cuda else counts.waits)[f"to {target} {_where()}"] += 1
    elif func is aten.copy_.default and isinstance(args[0], StandIn) != isinstance(args[1], StandIn):
        (counts.copies if isinstance(args[0], StandIn) else counts.waits)[f"copy_ {_where()}"] += 1


@contextlib.contextmanager
def _stream_of_the_device() -> Iterator[None]:
    kept = torch.get_rng_state()
    torch.set_rng_state(_random_state())
    try:
        yield
    finally:
        _STATE.random = torch.get_rng_state()
        torch.set_rng_state(kept)


def _random_state(*_: Any) -> torch.Tensor:
    if _STATE.random is None:
        _seed(0)
    assert _STATE.random is not None
    return _STATE.random.clone()


def _set_random_state(state: torch.Tensor, *_: Any) -> None:
    _STATE.random = state.clone()


def _seed(seed: int) -> None:
    _STATE.random = torch.Generator().manual_seed(int(seed) % 2**63).get_state()


@functools.cache
def _changed_arguments(func: Any) -> list[tuple[int, str]]:
    """Places and names of the arguments that an operation changes and gives back; none if it makes new tensors."""

    def changes(one: Any) -> bool:
        return one.alias_info is not None and one.alias_info.is_write

    schema = func._schema
    if not schema.returns or not all(map(changes, schema.returns)):
        return []
    if schema.name.startswith(("aten::resize_", "aten::set_")):
        raise NotImplementedError(f"{func} on a stand-in")
    changed = [(number, argument.name) for number, argument in enumerate(schema.arguments) if changes(argument)]
    return changed[: len(schema.returns)]


def _on_the_device(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """The result as stand-ins; of an operation in place, the very arguments that it changed."""

    if changed := _changed_arguments(func):
        found = [args[number] if number < len(args) else kwargs[name] for number, name in changed]
        return found[0] if len(found) == 1 else tuple(found)
    for tensor in _tensors(result):
        if (size := tensor.numel() * tensor.element_size()) > _STATE.largest:
            wanted = size / 2**20
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {wanted:.2f} MiB. GPU 0 has ...")
    return _each(_stand_in, result)


class _DispatchMode(TorchDispatchMode):
    """Sees operations without a stand-in among their arguments: tensors made on the device, or moved there."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and its wrapper would be entered at each operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        involved = device is not None and torch.device(device).type == "cuda"
        involved = involved or any(isinstance(tensor, StandIn) for tensor in _tensors(args, kwargs))
        return _run(func, args, kwargs) if involved else func(*args, **kwargs)


# ---- what C++ does before an operation is dispatched ------------------------------------------------------------

_Autocast = torch.amp.autocast_mode.autocast
# Functions that CUDA's autocast runs in fp32, and the CPU's does not.
_WIDE = {
    *(F.layer_norm, torch.layer_norm, F.group_norm, torch.Tensor.norm, torch.norm, torch.linalg.vector_norm),
    *(torch.linalg.norm, F.cosine_similarity, F.softmax, F.log_softmax, torch.softmax, torch.log_softmax),
    *(torch.Tensor.softmax, torch.Tensor.log_softmax, torch.exp, torch.Tensor.exp, torch.log, torch.Tensor.log),
    *(torch.pow, torch.Tensor.pow, torch.rsqrt, torch.Tensor.sum, torch.sum, torch.prod, torch.cumsum),
    *(F.cross_entropy, F.nll_loss, F.mse_loss, torch.Tensor.logsumexp),
}


class _CudaAutocast(_Autocast):
    """CUDA's autocast, by the CPU's in the same type: where it matters both run the same operations in it."""

    depth = 0

    def __init__(
        self, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: bool | None = None
    ) -> None:
        self.for_cuda = device_type == "cuda" and enabled
        if device_type == "cuda":
            device_type, dtype = "cpu", dtype or torch.float16
        super().__init__(device_type, dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)

    def __enter__(self) -> Any:
        _CudaAutocast.depth += self.for_cuda
        return super().__enter__()

    def __exit__(self, *args: Any) -> Any:
        _CudaAutocast.depth -= self.for_cuda
        return super().__exit__(*args)


def _widened(item: Any) -> Any:
    half = isinstance(item, StandIn) and item.dtype in (torch.float16, torch.bfloat16)
    return item.float() if half else item


def _indexed(item: Any) -> Any:
    """``cuda`` means ``cuda:0``."""
    is_cuda = item == "cuda" if type(item) is str else isinstance(item, torch.device) and item.type == "cuda"
    return CUDA if is_cuda else item


def _moved(tensor: torch.Tensor, device: Any = None, dtype: Any = None, copy: bool = False, layout: Any = None) -> Any:
    """``Tensor.to`` with every argument known."""
    here = CUDA if isinstance(tensor, StandIn) else CPU
    device, dtype = device or here, dtype or tensor.dtype
    if device == here and dtype == tensor.dtype and not copy and layout is None:
        return tensor
    _LOCAL.explicit = True
    try:
        more = {} if layout is None else {"memory_format": layout}
        return aten._to_copy.default(tensor, dtype=dtype, device=device, **more)
    finally:
        _LOCAL.explicit = False


def _to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """``Tensor.to``, as it is called."""
    device = dtype = None
    for item in (*args, kwargs.get("device"), kwargs.get("dtype"), kwargs.get("other")):
        if isinstance(item, torch.dtype):
            dtype = item
        elif isinstance(item, torch.Tensor):
            device, dtype = item.device, item.dtype
        elif isinstance(item, str | torch.device):
            device = _indexed(torch.device(item))
    copy = kwargs.get("copy", False) or any(item is True for item in args[2:3])  # (device, dtype, non_blocking, copy)
    return _moved(tensor, device, dtype, copy, kwargs.get("memory_format"))


class _FunctionMode(TorchFunctionMode):
    """Replaces what asks for a driver, or for the device of a tensor, before it is dispatched."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = tuple(map(_indexed, args))
        kwargs = {name: _indexed(value) for name, value in (kwargs or {}).items()}
        first = args[0] if args else None
        if _CudaAutocast.depth and func in _WIDE and torch.is_autocast_enabled("cpu"):
            args, kwargs = _each(_widened, args), _each(_widened, kwargs)
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and kwargs.get("device") == CUDA:
            source = _moved(first, CPU) if isinstance(first, StandIn) else first
            return _moved(func(source, *args[1:], **{**kwargs, "device": CPU}), CUDA)
        if func is torch.Tensor.pin_memory:
            return first
        if isinstance(first, torch.Tensor):
            if func is torch.Tensor.to:
                return _to(*args, **kwargs)
            if func is torch.Tensor.cpu:
                return _moved(first, CPU)
            if func is torch.Tensor.cuda:
                return _moved(first, CUDA)
        if isinstance(first, StandIn):
            if func is torch.Tensor.tolist:
                return _moved(first.detach(), CPU).tolist()
            if func is torch.unravel_index:  # makes a tensor where modes are off
                return tuple(_moved(part, CUDA) for part in func(_moved(first, CPU), *args[1:], **kwargs))
            if func in (F.one_hot, torch.linalg.pinv):  # make tensors in C++
                return _moved(func(_moved(first, CPU), *args[1:], **kwargs), CUDA)
            if func is F.scaled_dot_product_attention and kwargs.pop("is_causal", False):  # makes its mask in C++
                size = first.shape[-2], args[1].shape[-2]
                kwargs["attn_mask"] = torch.ones(size, dtype=torch.bool, device=CUDA).tril()
        return func(*args, **kwargs)


class _Event:
    """A mark in a stream: here everything has always been done."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        if _STATE.counts is not None:
            _STATE.counts.waits[f"event {_where()}"] += 1

    def query(self) -> bool:
        return True


# ---- torch as it looks with a GPU -------------------------------------------------------------------------------


def _patch() -> None:
    """Make the rest of torch see one GPU, for good."""

    def constant(value: Any) -> Callable[..., Any]:
        return lambda *_, **__: value

    cuda: Any = torch.cuda
    for name in ("_lazy_init", "set_device", "synchronize", "empty_cache", "reset_peak_memory_stats"):
        setattr(cuda, name, constant(None))
    for name, value in {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "stand-in",
        "get_device_capability": (9, 0),
        "max_memory_allocated": 0,
        "memory_allocated": 0,
        "mem_get_info": (64 * 2**30, 80 * 2**30),
    }.items():
        setattr(cuda, name, constant(value))
    cuda.Event = _Event
    cuda.manual_seed = cuda.manual_seed_all = _seed
    cuda.get_rng_state, cuda.set_rng_state = _random_state, _set_random_state
    cuda.get_rng_state_all = lambda: [_random_state()]
    cuda.amp.common.amp_definitely_not_available = constant(False)
    accelerator: Any = getattr(torch, "accelerator", None)
    if accelerator is not None:
        accelerator.is_available, accelerator.device_count = constant(True), constant(1)
        accelerator.current_accelerator, accelerator.current_device_index = constant(torch.device("cuda")), constant(0)
        accelerator.synchronize = accelerator.set_device_index = constant(None)
    amp: Any = torch.amp
    torch.autocast = amp.autocast = amp.autocast_mode.autocast = _CudaAutocast  # type: ignore[misc,assignment]
    optimizer: Any = torch.optim.Optimizer
    optimizer._accelerator_graph_capture_health_check = optimizer._cuda_graph_capture_health_check = constant(None)
    torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[assignment]  # also in threads
    # Which attention kernel runs is asked of the driver, except for this one.
    for kernel in ("flash", "mem_efficient", "cudnn", "math"):
        getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(kernel == "math")
    torch.__future__.set_swap_module_params_on_conversion(True)
    run = threading.Thread.run

    @functools.wraps(run)
    def run_with_modes(self: threading.Thread) -> None:
        with _DispatchMode(), _FunctionMode():  # modes belong to a thread
            run(self)

    threading.Thread.run = run_with_modes  # type: ignore[method-assign]


def enter() -> None:
    """Give this process a stand-in for "cuda:0", for the rest of its life.

    Raises:
        RuntimeError: it cannot be used here, see `why_not`.
    """
    if reason := why_not():
        raise RuntimeError(reason)
    if not _STATE.entered:
        _STATE.entered = True
        _patch()
        _DispatchMode().__enter__()
        _FunctionMode().__enter__()


def main(argv: list[str]) -> None:
    """Run a script, or with ``-m`` a module, that sees the stand-in."""
    enter()
    # A module that imports this one again must find it entered.
    sys.modules["cuda_standin"] = sys.modules[__name__]
    module, *rest = argv[1:] if argv[0] == "-m" else argv
    sys.argv = [module, *rest]
    sys.path[0] = os.getcwd() if argv[0] == "-m" else str(Path(module).resolve().parent)
    if argv[0] == "-m":
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(module, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
