"""Modules that are slow to load and that most runs never use: loaded when something is first taken from them.

if TYPE_CHECKING:
    from torchvision import transforms as T
else:
    T = lazy_module("torchvision.transforms")
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from dassl_lite.startup import loading


class _LazyModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        with loading():
            return getattr(importlib.import_module(self.__name__), name)


def lazy_module(name: str) -> ModuleType:
    """A stand-in for the module ``name``, which is loaded with the first attribute that is asked for."""
    return _LazyModule(name)


def is_loaded(name: str) -> bool:
    """Whether a module is loaded: if not, nothing can be an instance of its classes."""
    return name in sys.modules
