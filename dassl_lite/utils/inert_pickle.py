"""Unpickling in which nothing runs.

A pickle is a program: its REDUCE, NEWOBJ, INST and BUILD instructions call whatever they name. Here a name
is never imported. Names on a short list (tensor rebuilding, OrderedDict, dtypes) are answered by functions
of ours that only build data; every other name becomes a class of inert objects, which keep the arguments and
the state that the pickle wanted to give to the real object, and do nothing else (see `inert`).

The public checkpoints of the CoOp family hold a pickled scheduler beside the weights: it stays readable as
an `Inert`, and the weights beside it load as they should.
"""

from __future__ import annotations

import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import IO, Any

import numpy as np
import torch

from dassl_lite.utils.inert import Inert

# What a broken or hostile pickle can raise (the pickle module's documentation names most of them).
PICKLE_ERRORS = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)

# EXT instructions look a number up in the process' own table and may take the object from a cache, past
# `find_class`; nothing that belongs in a checkpoint uses them.
_REFUSED_OPCODES = frozenset({"EXT1", "EXT2", "EXT4"})

_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


class _Builder:
    """A function of ours under a pickle's name for it. It can be called and nothing else: BUILD, which would
    set attributes, is refused."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the pickle tries to change a function")


def _rebuild_tensor(flat: torch.Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Any:
    """The view (offset, size, stride) of a one-dimensional `flat`; out of bounds raises RuntimeError."""
    if not isinstance(flat, torch.Tensor):
        raise pickle.UnpicklingError("a tensor without its storage")
    return torch.as_strided(flat, tuple(size), tuple(stride), offset)


def _rebuild_from_type(function: Any, _type: Any, args: Sequence[Any], _state: Any) -> Any:
    """A tensor subclass, such as Parameter with attributes, as the plain tensor in it."""
    if not isinstance(function, _Builder):
        raise pickle.UnpicklingError("a tensor that is not rebuilt by a known function")
    return function(*args)


def _numpy_scalar(dtype: Any, data: Any = None) -> Any:
    """The Python number in a pickled numpy scalar."""
    if not isinstance(dtype, _NumpyType) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a numpy scalar that is not a plain number")
    return np.frombuffer(data, dtype.kind, count=1)[0].item()


class _NumpyType:
    """A numpy dtype of plain numbers; its pickled state (byte order and the like) must be the native one."""

    def __init__(self, kind: str, *_: Any) -> None:
        if not isinstance(kind, str) or kind[:1] not in "fiubc":
            raise pickle.UnpicklingError(f"numpy dtype {kind!r} is not a plain number")
        self.kind = kind

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and ">" in state:
            raise pickle.UnpicklingError("big-endian numpy numbers")


def _latin1(text: str, encoding: str) -> bytes:
    """Protocol 2 writes bytes as a call of `_codecs.encode(text, "latin1")`; no other codec is needed."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding!r}")
    return text.encode("latin1")


def _first(value: Any, *_: Any) -> Any:
    return value


_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.dict": dict,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
    "_codecs.encode": _latin1,
    "numpy.dtype": _NumpyType,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "torch.Size": lambda size=(): torch.Size(size),
    "torch.device": torch.device,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.jit._pickle.restore_type_tag": _first,
    **{f"torch.jit._pickle.build_{kind}list": list for kind in ("int", "bool", "double", "tensor")},
}


class InertUnpickler(pickle.Unpickler):
    """Reads one pickle without importing or calling anything that it names.

    Args:
        file: positioned at the pickle.
        storage: (dtype, key, numel) -> one-dimensional tensor of a storage record.
        strict: raise UnpicklingError at the first name that is not a tensor or a plain value.
    """

    def __init__(
        self, file: IO[bytes], storage: Callable[[torch.dtype, str, int], torch.Tensor], strict: bool = False
    ) -> None:
        super().__init__(file)
        self._storage = storage
        self._strict = strict

    def find_class(self, module: str, name: str) -> Any:
        """What stands in for the global `module.name`: a builder, a dtype, or a class of inert objects."""
        module = "builtins" if module == "__builtin__" else module  # its name in protocol 2
        qualified = f"{module}.{name}"
        if qualified in _BUILDERS:
            return _Builder(_BUILDERS[qualified])
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if self._strict:
            raise pickle.UnpicklingError(f"it names {qualified}, which is neither a tensor nor a plain value")
        return type("Inert", (Inert,), {"name": qualified})

    def persistent_load(self, pid: Any) -> torch.Tensor:
        """The storage record that a tensor refers to: ("storage", dtype, key, location, numel[, view])."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or (len(pid) > 5 and pid[5]):
            raise pickle.UnpicklingError("an unknown kind of record")
        _, dtype, key, _, numel = pid[:5]
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or not isinstance(numel, int):
            raise pickle.UnpicklingError("a storage of unknown type")
        return self._storage(dtype, key, numel)


def check_opcodes(data: bytes | IO[bytes]) -> None:
    """Refuse a pickle that uses EXT instructions. Raises one of PICKLE_ERRORS; a file is read to its STOP."""
    for opcode, _, _ in pickletools.genops(data):
        if opcode.name in _REFUSED_OPCODES:
            raise pickle.UnpicklingError(f"it uses the instruction {opcode.name}")
