"""Reading files of weights and checkpoints without running anything in them.

`load_file` reads what `torch.save` writes (the zip format and the legacy one) and TorchScript archives.
Tensors and plain values come back as they are; any other object stays an `Inert`, see `inert_pickle`.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from dassl_lite.utils.errors import UserError
from dassl_lite.utils.inert import Inert, RefusedCallError
from dassl_lite.utils.inert_pickle import PICKLE_ERRORS, InertUnpickler, check_opcodes

__all__ = ["Inert", "is_torchscript", "load_file", "tensors_of"]

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_READ_ERRORS = (*PICKLE_ERRORS, zipfile.BadZipFile, struct.error, NotImplementedError)


def load_file(path: str | Path, strict: bool = False) -> Any:
    """The object in a file written by `torch.save`, or the root module of a TorchScript archive, as data.

    Args:
        path: the file.
        strict: refuse a file that holds anything but tensors and plain values.

    Raises:
        UserError: the file is missing, broken, of another format, or refused; one line that names it.
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
        why = f"{error}, which no file of weights needs; nothing in it was run"
        raise UserError(f"{path} is refused: {why}") from None
    except _READ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot load {path}: not a complete file of torch.save ({reason[:200]})") from error


def _load_zip(file: IO[bytes], strict: bool) -> Any:
    """Zip format: `<root>/data.pkl` and one record `<root>/data/<key>` per storage."""
    archive = zipfile.ZipFile(file)
    names = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(names) != 1:
        raise pickle.UnpicklingError("a zip file without data.pkl")
    root = names[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise pickle.UnpicklingError("written on a big-endian machine")
    storages: dict[str, torch.Tensor] = {}

    def storage(dtype: torch.dtype, key: str, numel: int) -> torch.Tensor:
        if key not in storages:
            info = archive.getinfo(f"{root}data/{key}")
            if info.compress_type != zipfile.ZIP_STORED:  # torch never compresses: a small file stays small
                raise pickle.UnpicklingError("compressed storage")
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
                raise pickle.UnpicklingError("a storage larger than the file")
            storages[key] = torch.empty(numel, dtype=dtype)  # filled below, once its bytes are reached
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
            raise pickle.UnpicklingError("a storage of the wrong size")
        flat.copy_(_from_bytes(file.read(numel * flat.element_size()), flat.dtype))
    return result


def _from_bytes(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    """A one-dimensional tensor over a writable copy of `data`."""
    if not data:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype)


def is_torchscript(loaded: Any) -> bool:
    """Whether what `load_file` gave is the root module of a TorchScript archive."""
    return isinstance(loaded, Inert) and loaded.name.startswith("__torch__.")


def tensors_of(loaded: Any) -> dict[str, torch.Tensor]:
    """The tensors in a TorchScript module that was read as data, by the path of attributes that leads to
    them: the keys that the module's own `state_dict()` has."""
    return dict(_walk(loaded, ""))


def _walk(node: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(node, torch.Tensor):
        yield path, node
    elif isinstance(node, Inert) and isinstance(node.state, dict):
        for name, child in node.state.items():
            yield from _walk(child, f"{path}.{name}" if path else str(name))
