"""Read files of weights and checkpoints without running any code in them.

`load_file` reads what `torch.save` writes (the zip format and the legacy one) and TorchScript archives.
Tensors and plain values come back unchanged; any other object becomes an `Inert`.

A pickle is a program: its REDUCE, NEWOBJ, INST and BUILD instructions call whatever they name. Here no name is ever
imported. Names on a short list (tensor rebuilding, OrderedDict, dtypes) map to functions in this file that only build
data. Any other class becomes an `Inert` object, which stores the arguments and the state meant for the real one and
does nothing else. A file that calls a function, such as `os.system`, is refused as a whole: no honest checkpoint does.

A pickle can also be a bomb: `scan` and `check_graph` limit its bytes, steps, depth and sharing before memory is
allocated for them.

The public checkpoints of the CoOp family contain a pickled scheduler beside the weights: it loads as an `Inert`, and
the weights load normally.
"""

from __future__ import annotations

import io
import itertools
import lzma
import math
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch

from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import HashingFile, open_file

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
    SystemError,
    TypeError,
    ValueError,
)

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


MAX_DIMS = 64
MAX_REPEATED = 1 << 24  # elements of a tensor that repeats a smaller storage, such as a mask


class _Builder:
    """A function of this file that a pickle may call, but not modify: BUILD, which would set attributes, is refused."""

    __slots__ = ("_function", "_spend")

    def __init__(self, function: Callable[..., Any], spend: Callable[[Iterable[object]], None]) -> None:
        self._function, self._spend = function, spend

    def __call__(self, *args: object) -> Any:
        self._spend(args)
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it tries to change a function")


def _rebuild_tensor(
    flat: torch.Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: object
) -> torch.Tensor:
    """A view of a one-dimensional `flat`; raises RuntimeError if it would reach out of bounds.

    With strides of 0, a view can have more elements than its storage; a copy of it needs memory for all of them.
    """
    if not isinstance(flat, torch.Tensor):
        raise pickle.UnpicklingError("a tensor has no storage")
    if len(size) > MAX_DIMS or any(step < 0 for step in (*size, *stride)):
        raise pickle.UnpicklingError("a tensor has an impossible shape")
    if math.prod(size) > max(flat.numel(), MAX_REPEATED):
        raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} has a storage of {flat.numel():,} numbers")
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
        if not isinstance(kind, str) or not re.fullmatch(r"[fiubc]\d{1,2}", kind):
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
    """Reads one pickle without importing or calling anything it names; :func:`unpickle` calls it.

    Args:
        data: the pickle.
        storage: returns the one-dimensional tensor of a storage record, given (dtype, key, numel).
        strict: raise UnpicklingError at the first object that is neither a tensor nor a plain value.
    """

    def __init__(
        self, data: bytes | memoryview, storage: Callable[[torch.dtype, str, int], torch.Tensor], strict: bool = False
    ) -> None:
        super().__init__(io.BytesIO(data))
        self._storage = storage
        self._strict = strict
        self._globals: dict[str, Any] = {}
        self._left = 8 * len(data) + (1 << 20)

    def find_class(self, module: str, name: str) -> Any:
        """The replacement for the global `module.name`: a builder, a dtype, or a subclass of Inert."""
        module = "builtins" if module == "__builtin__" else module  # the name in protocol 2
        qualified = f"{module}.{name}"
        if qualified not in self._globals:
            if len(self._globals) >= MAX_GLOBALS:
                raise pickle.UnpicklingError(f"it names more than {MAX_GLOBALS:,} classes")
            self._globals[qualified] = self._replacement(module, name, qualified)
        return self._globals[qualified]

    def _replacement(self, module: str, name: str, qualified: str) -> Any:
        if qualified in _BUILDERS:
            return _Builder(_BUILDERS[qualified], self._spend)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if self._strict:
            raise pickle.UnpicklingError(f"it names {qualified}, which is neither a tensor nor a plain value")
        return type("Inert", (Inert,), {"name": qualified})

    def _spend(self, args: Iterable[object]) -> None:
        """Count what builders copy: a pickle may copy one long text a million times."""
        self._left -= sum(len(arg) for arg in args if isinstance(arg, Sized) and not isinstance(arg, torch.Tensor))
        if self._left < 0:
            raise pickle.UnpicklingError("it copies more than it contains")

    def persistent_load(self, pid: object) -> torch.Tensor:
        """The tensor of a storage record: ("storage", dtype, key, location, numel[, view])."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or (len(pid) > 5 and pid[5]):
            raise pickle.UnpicklingError("unknown kind of record")
        _, dtype, key, _, numel = pid[:5]
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or not isinstance(numel, int):
            raise pickle.UnpicklingError("a storage has an unknown type")
        return self._storage(dtype, key, numel)


# ---- budgets: checked before a pickle is read ------------------------------------------------------------------------

MAX_PICKLE = 256 << 20  # bytes of a pickle without its tensors; a checkpoint's has less than 1 MB
MAX_STEPS = 3_000_000  # instructions; a checkpoint has about 50 per tensor
MAX_GLOBALS = 10_000  # classes that a pickle names
MAX_DEPTH = 500  # containers within containers
MAX_LONGS = 10_000  # numbers of more than 64 bits
MAX_DIGITS = 1000  # of a number written as text
MAX_EXPANDED = 10_000_000  # values in a graph if each is counted as often as it is reached

# What each instruction does, by its code. ``_ARGUMENTS``: bytes of its argument; if negative, pickletools' code for a
# variable length. ``_TAKES``: values taken from the stack; ``_PUTS``: whether one is put there.
_ARGUMENTS, _NAMES, _KINDS, _TAKES, _PUTS = [0] * 256, [""] * 256, [0] * 256, [0] * 256, [False] * 256
_PUSH, _UNKNOWN, _EXTENSION, _STOP, _MARK, _PUT, _GET, _DUP, _POP, _PLAIN, _TO_MARK = range(11)
_PREFIXES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_SPECIAL = {
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _EXTENSION),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _PUT),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _GET),
    **{"STOP": _STOP, "MARK": _MARK, "DUP": _DUP, "POP": _POP},
}
_EFFECTS = {
    **dict.fromkeys(("POP", "APPEND", "BUILD"), (1, False)),
    "SETITEM": (2, False),
    **dict.fromkeys(("REDUCE", "NEWOBJ", "STACK_GLOBAL", "TUPLE2"), (2, True)),
    **dict.fromkeys(("NEWOBJ_EX", "TUPLE3"), (3, True)),
    **dict.fromkeys(("BINPERSID", "TUPLE1"), (1, True)),
    **dict.fromkeys(("PROTO", "FRAME", "READONLY_BUFFER"), (0, False)),
}
_MARK_EFFECTS = {
    **dict.fromkeys(("POP_MARK", "APPENDS", "SETITEMS", "ADDITEMS"), False),
    **dict.fromkeys(("TUPLE", "LIST", "DICT", "FROZENSET", "INST", "OBJ"), True),
}
_NESTS = {"TUPLE": 1, "TUPLE1": 1, "TUPLE2": 1, "TUPLE3": 1, "FROZENSET": 1, "REDUCE": 0}  # levels of tuples added


def _learn_instructions() -> None:
    _KINDS[:] = [_UNKNOWN] * 256
    for opcode in pickletools.opcodes:
        code, name = ord(opcode.code), opcode.name
        _ARGUMENTS[code], _NAMES[code] = opcode.arg.n if opcode.arg else 0, name
        plain = _PLAIN if name in _EFFECTS else _TO_MARK if name in _MARK_EFFECTS else _PUSH
        _KINDS[code] = _SPECIAL.get(name, plain)
        _TAKES[code], _PUTS[code] = _EFFECTS.get(name, (0, _MARK_EFFECTS.get(name, False)))


_learn_instructions()


def scan(data: bytes, start: int = 0) -> int:
    """Check a pickle without reading it; returns the position after its STOP.

    Refused are:

    - EXT instructions: they look an object up by number in a table of the process, and can bypass `find_class`;
    - more than ``MAX_STEPS`` instructions;
    - a memo index that is too large: the memo is an array, which one instruction could make gigabytes long;
    - tuples nested deeper than ``MAX_DEPTH``: hashing one could overflow the stack;
    - more than ``MAX_LONGS`` enormous numbers: unlike text, they can be chosen so that their hashes collide.

    Raises:
        UnpicklingError: it is refused, or not a pickle.
    """
    depths: list[int] = []  # nesting depth of each value on the stack
    marks: list[int] = []
    memo: dict[int, int] = {}
    position, longs = start, 0
    try:
        for _ in range(MAX_STEPS):
            code, begin = data[position], position + 1
            kind, argument = _KINDS[code], _ARGUMENTS[code]
            position = begin + argument
            if argument < 0:
                position = _end_of_argument(data, begin, argument, _NAMES[code])
                if position - begin > 9 and _NAMES[code].startswith("LONG") and (longs := longs + 1) > MAX_LONGS:
                    raise pickle.UnpicklingError(f"it has more than {MAX_LONGS:,} numbers of more than 64 bits")
            if position > len(data):
                break
            if kind == _PUSH:
                depths.append(0)
            elif kind == _PUT:
                index = _index(data, begin, position, code) if argument else len(memo)
                if index > position - start:  # honest pickles number their entries from 0
                    raise pickle.UnpicklingError(f"it keeps something at place {index:,}")
                memo[index] = depths[-1]
            elif kind == _GET:
                depths.append(memo.get(_index(data, begin, position, code), 0))
            elif kind in (_PLAIN, _TO_MARK):
                below = len(depths) - _TAKES[code] if kind == _PLAIN else marks.pop()
                _take(depths, below, code)
            elif kind == _MARK:
                marks.append(len(depths))
            elif kind == _STOP:
                return position
            elif kind == _POP and marks and marks[-1] == len(depths):
                marks.pop()
            elif kind == _POP:
                depths.pop()
            elif kind == _DUP:
                depths.append(depths[-1])
            elif kind == _EXTENSION:
                raise pickle.UnpicklingError(f"it uses the instruction {_NAMES[code]}")
            else:
                raise pickle.UnpicklingError(f"it has an unknown instruction {code}")
        else:
            raise pickle.UnpicklingError(f"it has more than {MAX_STEPS:,} instructions")
    except IndexError:
        pass
    raise pickle.UnpicklingError("it is truncated or not a pickle")


def _take(depths: list[int], below: int, code: int) -> None:
    """Replace the stack's values above ``below`` by the instruction's result."""
    if below < 0:
        raise pickle.UnpicklingError("it takes more than there is")
    depth = 0
    if (levels := _NESTS.get(_NAMES[code])) is not None:
        depth = max(depths[below:], default=0) + levels
        if depth > MAX_DEPTH:
            raise pickle.UnpicklingError(f"tuples are nested more than {MAX_DEPTH} deep")
    del depths[below:]
    if _PUTS[code]:
        depths.append(depth)


def _end_of_argument(data: bytes, begin: int, kind: int, name: str) -> int:
    """The position after an argument of variable length."""
    if kind in _PREFIXES:
        width = _PREFIXES[kind]
        return begin + width + int.from_bytes(data[begin : begin + width], "little")
    end = begin
    for _ in range(2 if name in ("GLOBAL", "INST") else 1):
        end = data.find(b"\n", end) + 1
        if end == 0:
            return len(data) + 1
    if end - begin > MAX_DIGITS and name not in ("STRING", "UNICODE"):
        raise pickle.UnpicklingError(f"the argument of {name} is too long")
    return end


def _index(data: bytes, begin: int, end: int, code: int) -> int:
    """The memo index in an instruction: in binary, or in digits with a line end."""
    if end - begin == 1 and _ARGUMENTS[code] == 1:
        return data[begin]
    argument = data[begin:end]
    return int(argument) if _ARGUMENTS[code] < 0 else int.from_bytes(argument, "little")


_CONTAINERS = (dict, list, tuple, set, frozenset)


def check_graph(root: object) -> None:
    """Refuse values that would take forever to traverse: cycles, deep nesting, and values shared again and again.

    The contents of an `Inert` are not followed: the schedulers in public checkpoints refer to each other.

    Raises:
        UnpicklingError: it is refused.
    """
    sizes: dict[int, int] = {}  # expanded sizes of finished containers
    path: dict[int, tuple[object, Iterator[object]]] = {}

    def enter(node: object) -> None:
        inner = itertools.chain(node.keys(), node.values()) if isinstance(node, dict) else node
        nested = [value for value in inner if isinstance(value, _CONTAINERS)]  # type: ignore[attr-defined]
        sizes[id(node)] = 1 + len(node)  # type: ignore[arg-type]
        path[id(node)] = node, iter(nested)

    if isinstance(root, _CONTAINERS):
        enter(root)
    while path:
        current, (_, rest) = next(reversed(path.items()))
        child = next(rest, None)
        if child is None:
            del path[current]
            if path:
                _add(sizes, next(reversed(path)), sizes[current])
        elif id(child) in path:
            raise pickle.UnpicklingError("a container contains itself")
        elif id(child) in sizes:
            _add(sizes, current, sizes[id(child)])
        elif len(path) >= MAX_DEPTH:
            raise pickle.UnpicklingError(f"containers are nested more than {MAX_DEPTH} deep")
        else:
            enter(child)


def _add(sizes: dict[int, int], node: int, size: int) -> None:
    sizes[node] += size
    if sizes[node] > MAX_EXPANDED:
        raise pickle.UnpicklingError(f"it expands to more than {MAX_EXPANDED:,} values")


def unpickle(
    data: bytes,
    storage: Callable[[torch.dtype, str, int], torch.Tensor],
    strict: bool = False,
    start: int = 0,
) -> tuple[Any, int]:
    """Read the pickle that begins at ``start``, within the budgets above; see `InertUnpickler`.

    Returns:
        The object, and the position after the pickle.

    Raises:
        One of `PICKLE_ERRORS`.
    """
    end = scan(data, start)
    loaded = InertUnpickler(memoryview(data)[start:end], storage, strict).load()
    check_graph(loaded)
    return loaded, end


_BLOCK = 1 << 20  # bytes read at a time
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_READ_ERRORS = (*PICKLE_ERRORS, zipfile.BadZipFile, struct.error, zlib.error, lzma.LZMAError)


def load_file(path: str | Path, strict: bool = False, *, hasher: Any = None, largest: float = math.inf) -> Any:
    """Load a file written by `torch.save`, or a TorchScript archive, as data.

    Args:
        path: the file.
        strict: refuse a file with anything but tensors and plain values in it.
        hasher: a hashlib object, which gets all bytes of the file; each is read only once.
        largest: the most bytes of a storage that is read; tensors of larger ones are on the device "meta", without
            values.

    Returns:
        The saved object, or the root module of a TorchScript archive as an `Inert`.

    Raises:
        UserError: the file is missing, damaged, of another format, or refused.
    """
    path = Path(path)
    try:
        with open_file(path) as opened:
            file: Any = opened if hasher is None else HashingFile(opened, hasher)
            loaded = (_load_zip if file.read(4) == b"PK\x03\x04" else _load_legacy)(file, strict, largest)
            if hasher is not None:
                file.hash_to()
            return loaded
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except RefusedCallError as error:
        why = f"{error}, which no file of weights needs; none of it was run"
        raise UserError(f"{path} is refused: {why}") from None
    except _READ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot load {path}: not a complete torch.save file ({reason[:200]})") from error


def _load_zip(file: Any, strict: bool, largest: float) -> Any:
    """Zip format: `<root>/data.pkl` and one record `<root>/data/<key>` per storage."""
    left = file.seek(0, io.SEEK_END)  # bytes that storages may have
    archive = zipfile.ZipFile(file)
    names = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(names) != 1:
        raise pickle.UnpicklingError("the zip file has no data.pkl")
    root = names[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and _small(archive, f"{root}byteorder", 64) != b"little":
        raise pickle.UnpicklingError("it was written on a big-endian machine")
    storages: dict[str, torch.Tensor] = {}  # bytes
    records: list[tuple[zipfile.ZipInfo, torch.Tensor]] = []

    def storage(dtype: torch.dtype, key: str, numel: int) -> torch.Tensor:
        nonlocal left
        if key not in storages:
            info = archive.getinfo(f"{root}data/{key}")
            if info.compress_type != zipfile.ZIP_STORED:  # a tiny file could fill memory; torch never compresses
                raise pickle.UnpicklingError("a storage is compressed")
            left -= info.file_size
            if info.file_size != info.compress_size or left < 0:  # or records that overlap
                raise pickle.UnpicklingError("its storages are larger than the file")
            storages[key] = _empty(info.file_size, torch.uint8, largest)
            records.append((info, storages[key]))
        return storages[key].view(dtype)

    loaded = unpickle(_small(archive, names[0], min(MAX_PICKLE, 32 * left + (1 << 20))), storage, strict)[0]
    for info, flat in sorted(records, key=lambda record: record[0].header_offset):  # in their order in the file
        if isinstance(file, HashingFile):
            file.hash_to(info.header_offset)
        if not flat.is_meta:
            with archive.open(info) as record:
                _fill(flat, record)
    return loaded


def _empty(numel: int, dtype: torch.dtype, largest: float) -> torch.Tensor:
    """An empty storage; on the device "meta" if it has more bytes than ``largest``."""
    return torch.empty(numel, dtype=dtype, device="meta" if numel * dtype.itemsize > largest else None)


def _fill(flat: torch.Tensor, record: IO[bytes]) -> None:
    """Fill a storage with bytes from the file."""
    left = memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
    while left:
        block = record.read(min(len(left), _BLOCK))
        if not block:
            raise EOFError("a storage ends too early")
        left[: len(block)] = block
        left = left[len(block) :]
    if record.read(1):  # also checks the record's checksum
        raise pickle.UnpicklingError("a storage has the wrong size")


def _small(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """A record that may be compressed, if it unpacks to at most ``limit`` bytes."""
    info = archive.getinfo(name)
    if info.file_size > limit:
        raise pickle.UnpicklingError(f"{name} has {info.file_size:,} bytes, more than the {limit:,} that are read")
    return archive.read(info)


def _load_legacy(file: Any, strict: bool, largest: float) -> Any:
    """Legacy format: five pickles (magic, version, system, object, storage keys), then the storages."""
    storages: dict[str, torch.Tensor] = {}
    left = file.seek(0, io.SEEK_END)  # bytes that storages may have
    file.seek(0)
    pickles = file.read(min(left, MAX_PICKLE))
    position = 0

    def storage(dtype: torch.dtype, key: str, numel: int) -> torch.Tensor:
        nonlocal left
        if key not in storages:
            left -= numel * dtype.itemsize
            if numel < 0 or left < 0:
                raise pickle.UnpicklingError("its storages are larger than the file")
            storages[key] = _empty(numel, dtype, largest)  # filled below, when its bytes are reached
        return storages[key]

    def load() -> Any:
        nonlocal position
        loaded, position = unpickle(pickles, storage, strict, position)
        return loaded

    def take(size: int) -> bytes:
        nonlocal position
        start, position = position, position + size
        if position <= len(pickles):
            return pickles[start:position]
        file.seek(start)
        return file.read(size)

    if load() != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("unknown format")
    load(), load()
    result, keys = load(), load()
    if not isinstance(keys, list) or set(keys) != set(storages):
        raise pickle.UnpicklingError("its list of storages is wrong")
    for key in keys:
        (numel,) = struct.unpack("<q", take(8))
        flat = storages[key]
        if numel != flat.numel():
            raise pickle.UnpicklingError("a storage has the wrong size")
        if flat.is_meta:
            position += flat.nbytes
        else:
            flat.copy_(_from_bytes(take(flat.nbytes), flat.dtype))
    return result


def _from_bytes(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    """A one-dimensional tensor over a writable copy of `data`."""
    if not data:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype)


MAX_MODULE_DEPTH = 64
MAX_MODULE_PARTS = 300_000  # modules, tensors and values


def is_torchscript(loaded: object) -> bool:
    """Whether `load_file` returned the root module of a TorchScript archive."""
    return isinstance(loaded, Inert) and loaded.name.startswith("__torch__.")


def tensors_of(loaded: object) -> dict[str, torch.Tensor]:
    """The tensors of a TorchScript module loaded by `load_file`, under the keys that its `state_dict()` would have.

    Raises:
        UserError: its modules contain themselves or each other, so that there would be infinitely many keys.
    """
    tensors: dict[str, torch.Tensor] = {}
    waiting: list[tuple[str, int, object]] = [("", 0, loaded)]
    visited = 0
    while waiting:
        path, depth, node = waiting.pop()
        visited += 1
        if depth > MAX_MODULE_DEPTH or visited > MAX_MODULE_PARTS:
            raise UserError("a TorchScript archive is refused: its modules contain themselves or each other")
        if isinstance(node, torch.Tensor):
            tensors[path] = node
        elif isinstance(node, Inert) and isinstance(node.state, dict):
            inner = [(f"{path}.{name}" if path else str(name), depth + 1, child) for name, child in node.state.items()]
            waiting += reversed(inner)
    return tensors
