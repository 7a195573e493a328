"""Read files of weights and checkpoints without running any code in them.

`load_file` reads what `torch.save` writes (the zip format and the legacy one) and TorchScript archives.
Tensors and plain values come back unchanged; any other object becomes an `Inert`.

A pickle is a program: its REDUCE, NEWOBJ, INST and BUILD instructions call whatever they name. Here no name is ever
imported. Names on a short list (tensor rebuilding, OrderedDict, dtypes) map to functions in this file that only build
data. Any other class becomes an `Inert` object, which stores the arguments and the state meant for the real one and
does nothing else. A file that calls a function, such as `os.system`, is refused as a whole: no honest checkpoint does.

The public checkpoints of the CoOp family contain a pickled scheduler beside the weights: it loads as an `Inert`, and
the weights load normally.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch

from dassl_lite.utils.errors import UserError

T = TypeVar("T")

__all__ = ["Inert", "is_torchscript", "load_file", "tensors_of"]

# Lowercase names that harmless pickles call: containers, dates, object reconstruction. Calling one makes an Inert.
_HARMLESS_CALLS = frozenset(
    {
        *(f"collections.{name}" for name in ("defaultdict", "deque")),
        *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
        *(f"builtins.{name}" for name in ("bool", "bytearray", "bytes", "float", "int", "list", "object", "range")),
        *(f"builtins.{name}" for name in ("slice", "str", "tuple")),
        *("copy_reg._reconstructor", "copyreg._reconstructor", "functools.partial"),
    }
)
_ACTING_MODULES = frozenset({"os", "posix", "nt", "subprocess", "multiprocessing", "socket", "ctypes", "threading"})


class RefusedCallError(pickle.UnpicklingError):
    """The pickle would call a function; a file of weights and settings never does."""


def _is_function(name: str) -> bool:
    """Whether a global that a pickle calls is a function rather than a class, judged by its name."""
    root, last = name.partition(".")[0], name.rpartition(".")[2]
    if root in _ACTING_MODULES:
        return True
    return not last[:1].isupper() and name not in _HARMLESS_CALLS and root not in ("torch", "numpy", "__torch__")


class _Called(type):
    """Checks the calls that a pickle makes (REDUCE, INST); NEWOBJ, which only makes an instance, bypasses it."""

    def __call__(cls, *args: object, **kwargs: object) -> Any:
        if _is_function(cls.name):  # type: ignore[attr-defined]
            raise RefusedCallError(f"it would call {cls.name}")  # type: ignore[attr-defined]
        return super().__call__(*args, **kwargs)


class Inert(metaclass=_Called):
    """An object of a class that is not on the short list: its name and what the pickle held for it, as data.

    Attributes:
        name: qualified name, such as "torch.optim.adam.Adam".
        args, kwargs: the constructor's arguments.
        state: the argument of `__setstate__` (usually the instance's `__dict__`), or None.
        items: appended values, or (key, value) pairs.
    """

    name: str = ""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: Any
    items: list[Any]

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        self = super().__new__(cls)
        self.args, self.kwargs = args, kwargs
        self.state, self.items = None, []
        return self

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Accept any arguments; `__new__` has already stored them."""

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.items.append((key, value))

    def append(self, value: object) -> None:
        self.items.append(value)

    def extend(self, values: Sequence[object]) -> None:
        self.items.extend(values)

    def add(self, value: object) -> None:
        self.items.append(value)

    def __repr__(self) -> str:
        return f"<inert {self.name}>"


# Exceptions that a broken or hostile pickle can cause.
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

# EXT instructions look an object up by number in a table of the process and can bypass `find_class`.
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
    """A function of this file that a pickle may call, and only call: BUILD, which would set attributes, is refused."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: object) -> Any:
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it tries to change a function")


def _rebuild_tensor(
    flat: torch.Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: object
) -> torch.Tensor:
    """A view of a one-dimensional `flat`; raises RuntimeError if it would reach out of bounds."""
    if not isinstance(flat, torch.Tensor):
        raise pickle.UnpicklingError("a tensor has no storage")
    return torch.as_strided(flat, tuple(size), tuple(stride), offset)


def _rebuild_from_type(function: object, _type: object, args: Sequence[object], _state: object) -> torch.Tensor:
    """The plain tensor inside a tensor subclass, such as a Parameter with attributes."""
    if not isinstance(function, _Builder):
        raise pickle.UnpicklingError("a tensor is not rebuilt by a known function")
    return function(*args)


def _numpy_scalar(dtype: object, data: object = None) -> bool | int | float | complex:
    """The Python number in a pickled numpy scalar."""
    if not isinstance(dtype, _NumpyType) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a numpy scalar is not a plain number")
    return np.frombuffer(data, dtype.kind, count=1)[0].item()


class _NumpyType:
    """A numpy dtype of plain numbers in native byte order."""

    def __init__(self, kind: str, *_: object) -> None:
        if not isinstance(kind, str) or kind[:1] not in "fiubc":
            raise pickle.UnpicklingError(f"numpy dtype {kind!r} is not a plain number")
        self.kind = kind

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and ">" in state:
            raise pickle.UnpicklingError("numpy numbers are big-endian")


def _latin1(text: str, encoding: str) -> bytes:
    """Bytes, which protocol 2 writes as `_codecs.encode(text, "latin1")`."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"unknown codec {encoding!r}")
    return text.encode("latin1")


def _first(value: T, *_: object) -> T:
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
    """Reads one pickle without importing or calling anything it names.

    Args:
        file: open at the start of the pickle.
        storage: returns the one-dimensional tensor of a storage record, given (dtype, key, numel).
        strict: raise UnpicklingError at the first object that is neither a tensor nor a plain value.
    """

    def __init__(
        self, file: IO[bytes], storage: Callable[[torch.dtype, str, int], torch.Tensor], strict: bool = False
    ) -> None:
        super().__init__(file)
        self._storage = storage
        self._strict = strict

    def find_class(self, module: str, name: str) -> Any:
        """The replacement for the global `module.name`: a builder, a dtype, or a subclass of Inert."""
        module = "builtins" if module == "__builtin__" else module  # the name in protocol 2
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

    def persistent_load(self, pid: object) -> torch.Tensor:
        """The tensor of a storage record: ("storage", dtype, key, location, numel[, view])."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or (len(pid) > 5 and pid[5]):
            raise pickle.UnpicklingError("unknown kind of record")
        _, dtype, key, _, numel = pid[:5]
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or not isinstance(numel, int):
            raise pickle.UnpicklingError("a storage has an unknown type")
        return self._storage(dtype, key, numel)


def check_opcodes(data: bytes | IO[bytes]) -> None:
    """Raise UnpicklingError if a pickle uses EXT instructions; a file is read up to its STOP."""
    for opcode, _, _ in pickletools.genops(data):
        if opcode.name in _REFUSED_OPCODES:
            raise pickle.UnpicklingError(f"it uses the instruction {opcode.name}")


_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_READ_ERRORS = (*PICKLE_ERRORS, zipfile.BadZipFile, struct.error, NotImplementedError)


def load_file(path: str | Path, strict: bool = False) -> Any:
    """Load a file written by `torch.save`, or a TorchScript archive, as data.

    Args:
        path: the file.
        strict: refuse a file with anything but tensors and plain values in it.

    Returns:
        The saved object, or the root module of a TorchScript archive as an `Inert`.

    Raises:
        UserError: the file is missing, damaged, of another format, or refused.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                return _load_zip(file, strict)
            file.seek(0)
            return _load_legacy(file, strict)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except RefusedCallError as error:
        why = f"{error}, which no file of weights needs; none of it was run"
        raise UserError(f"{path} is refused: {why}") from None
    except _READ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot load {path}: not a complete torch.save file ({reason[:200]})") from error


def _load_zip(file: IO[bytes], strict: bool) -> Any:
    """Zip format: `<root>/data.pkl` and one record `<root>/data/<key>` per storage."""
    archive = zipfile.ZipFile(file)
    names = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(names) != 1:
        raise pickle.UnpicklingError("the zip file has no data.pkl")
    root = names[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise pickle.UnpicklingError("it was written on a big-endian machine")
    storages: dict[str, torch.Tensor] = {}

    def storage(dtype: torch.dtype, key: str, numel: int) -> torch.Tensor:
        if key not in storages:
            info = archive.getinfo(f"{root}data/{key}")
            if info.compress_type != zipfile.ZIP_STORED:  # a tiny file could fill the memory; torch never compresses
                raise pickle.UnpicklingError("a storage is compressed")
            storages[key] = _from_bytes(archive.read(info), dtype)
        return storages[key].view(dtype)

    data = archive.read(names[0])
    check_opcodes(data)
    return InertUnpickler(io.BytesIO(data), storage, strict).load()


def _load_legacy(file: IO[bytes], strict: bool) -> Any:
    """Legacy format: five pickles (magic, version, system, object, storage keys), then the storages."""
    storages: dict[str, torch.Tensor] = {}

    def storage(dtype: torch.dtype, key: str, numel: int) -> torch.Tensor:
        if key not in storages:
            size = file.seek(0, io.SEEK_CUR), file.seek(0, io.SEEK_END)
            file.seek(size[0])
            if not 0 <= numel * dtype.itemsize <= size[1]:
                raise pickle.UnpicklingError("a storage is larger than the file")
            storages[key] = torch.empty(numel, dtype=dtype)  # filled below, when its bytes are reached
        return storages[key]

    def load() -> Any:
        start = file.tell()
        check_opcodes(file)
        file.seek(start)
        return InertUnpickler(file, storage, strict).load()

    if load() != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("unknown format")
    load(), load()
    result, keys = load(), load()
    if not isinstance(keys, list) or set(keys) != set(storages):
        raise pickle.UnpicklingError("its list of storages is wrong")
    for key in keys:
        (numel,) = struct.unpack("<q", file.read(8))
        flat = storages[key]
        if numel != flat.numel():
            raise pickle.UnpicklingError("a storage has the wrong size")
        flat.copy_(_from_bytes(file.read(numel * flat.element_size()), flat.dtype))
    return result


def _from_bytes(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    """A one-dimensional tensor over a writable copy of `data`."""
    if not data:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype)


def is_torchscript(loaded: object) -> bool:
    """Whether `load_file` returned the root module of a TorchScript archive."""
    return isinstance(loaded, Inert) and loaded.name.startswith("__torch__.")


def tensors_of(loaded: object) -> dict[str, torch.Tensor]:
    """The tensors of a TorchScript module loaded by `load_file`, under the keys that its `state_dict()` would have."""
    return dict(_walk(loaded, ""))


def _walk(node: object, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(node, torch.Tensor):
        yield path, node
    elif isinstance(node, Inert) and isinstance(node.state, dict):
        for name, child in node.state.items():
            yield from _walk(child, f"{path}.{name}" if path else str(name))
