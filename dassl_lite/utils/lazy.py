"""Modules that are slow to load and that most runs never use: loaded when something is first taken from them.

if TYPE_CHECKING:
    from torchvision import transforms as T
else:
    T = lazy_module("torchvision.transforms")

And modules of optional libraries, which a user may not have: ``optional_module``.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from dassl_lite.startup import loading
from dassl_lite.utils.errors import UserError

# Libraries that report their use over the network from when they are loaded, unless this variable is set by then.
REPORTING = {"onnxruntime": "ORT_DISABLE_TELEMETRY"}


class _LazyModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        module = sys.modules.get(self.__name__)
        if module is None:
            with loading():  # once: whatever is garbage at its end is kept for good
                module = importlib.import_module(self.__name__)
        return getattr(module, name)


def lazy_module(name: str) -> ModuleType:
    """A stand-in for the module ``name``, which is loaded with the first attribute that is asked for."""
    return _LazyModule(name)


def is_loaded(name: str) -> bool:
    """Whether a module is loaded: if not, nothing can be an instance of its classes."""
    return name in sys.modules


def optional_module(name: str, extra: str, purpose: str) -> ModuleType:
    """Import ``name``, of a library that only an extra of this package installs; one of `REPORTING` reports nothing.

    Args:
        name: the module, such as "pyarrow.parquet".
        extra: the extra in pyproject.toml, such as "parquet".
        purpose: what needs it, to start the message with: "--output .parquet".

    Raises:
        UserError: the library is not installed, or another that it needs; the message names the extra.
    """
    try:
        with _unreported(name.split(".")[0]):
            return importlib.import_module(name)
    except ImportError as error:
        library = (error.name or name).split(".")[0]
        raise UserError(f"{purpose} needs {library}: {install_line(extra)}") from error


@contextmanager
def _unreported(library: str) -> Iterator[None]:
    """A context in which the variable of a library of `REPORTING` is set, unless the user has set it."""
    name = REPORTING.get(library, "")
    if not name or name in os.environ:
        yield
        return
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name, None)


def install_line(extra: str) -> str:
    """The command that installs an extra."""
    return f'pip install "dassl-lite[{extra}]"'
