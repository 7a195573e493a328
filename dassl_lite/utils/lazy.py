"""Modules that are slow to import and that most runs never use: imported on first use.

if TYPE_CHECKING:
    from torchvision import transforms as T
else:
    T = lazy_module("torchvision.transforms")

``optional_module`` imports modules of optional libraries, which a user may not have.
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

# Libraries that send usage data from the moment they are imported, unless this variable is set.
REPORTING = {"onnxruntime": "ORT_DISABLE_TELEMETRY"}


class _LazyModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        module = sys.modules.get(self.__name__)
        if module is None:
            with loading():  # only once: objects that are garbage when it ends are never freed
                module = importlib.import_module(self.__name__)
        return getattr(module, name)


def lazy_module(name: str) -> ModuleType:
    """A proxy for the module ``name``, which is imported on first attribute access."""
    return _LazyModule(name)


def is_loaded(name: str) -> bool:
    """Whether a module has been imported; if not, nothing can be an instance of its classes."""
    return name in sys.modules


def optional_module(name: str, extra: str, purpose: str) -> ModuleType:
    """Import ``name`` from a library that an extra of this package installs; those in `REPORTING` send no usage data.

    Args:
        name: the module, such as "pyarrow.parquet".
        extra: the extra in pyproject.toml, such as "parquet".
        purpose: what needs it, such as "--output .parquet"; starts the message.

    Raises:
        UserError: the library, or another that it needs, is not installed; the message names the extra.
    """
    try:
        with _unreported(name.split(".")[0]):
            return importlib.import_module(name)
    except ImportError as error:
        library = (error.name or name).split(".")[0]
        raise UserError(f"{purpose} needs {library}: {install_line(extra)}") from error


@contextmanager
def _unreported(library: str) -> Iterator[None]:
    """A context in which a library's variable in `REPORTING` is set, unless the user has set it."""
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
