"""Run code written for Dassl: ``import dassl`` and its submodules resolve to this package.

    import dassl_lite.compat                      # before anything that imports dassl
    python -m dassl_lite.compat REPO/train.py ARGUMENTS ...       # a training script as it is, see runner.py
    python tools/train.py --dassl-compat --plugin their/trainers/x.py ...

``dassl.engine`` *is* ``dassl_lite.engine``, not a copy, so a class that registers there is registered here.
``names.py`` maps the modules whose names differ, and says what else can be imported from Dassl's. If a third party's
trainer or dataset has the name of a built-in one (every fork brings its own CoOp), it replaces the built-in one, and
one log line says so.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from dassl_lite.compat.clip_package import ClipFinder
from dassl_lite.compat.names import KEYS, PLACES, imports_of, resolve, submodules_of
from dassl_lite.config import CN, cfg_default
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.registry import Registry

logger = get_logger(__name__)

THEIRS, OURS = "dassl", "dassl_lite"

# (our module, the Dassl module whose names were added to it, the attributes that this replaced).
_lent: list[tuple[ModuleType, str, dict[str, Any]]] = []


class _Alias(Loader):
    """Loads a module that already exists, unchanged."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system has set the alias's spec


class DasslFinder(MetaPathFinder):
    """Finds ``dassl`` and ``dassl.*`` among our modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root, _, rest = fullname.partition(".")
        module = _resolve(rest) if root == THEIRS else None
        if module is None:
            return None
        return ModuleSpec(fullname, _Alias(module), is_package=hasattr(module, "__path__"))


def _resolve(rest: str) -> ModuleType | None:
    """Our module for ``dassl.<rest>``, or None if there is none."""
    same_name = re.sub(r"^modeling\b", "networks", rest)
    places = [f"{OURS}.{place}".rstrip(".") for place in PLACES.get(rest, (same_name,))]
    if not all(_exists(place) for place in places):
        return None
    modules = [importlib.import_module(place) for place in places]
    module = modules[0] if len(modules) == 1 else _gathered(f"{THEIRS}.{rest}", modules)
    if not any(borrower is module and place == rest for borrower, place, _ in _lent):
        _load_shadowed(rest, module)
        _lend(rest, module)
    return module


def _load_shadowed(rest: str, package: ModuleType) -> None:
    """Load the modules of ``package`` that share a name with one of its functions, such as ``ops.mixup``.

    The import system sets a submodule as an attribute of its package when it finds it, which would replace the
    function in our package. It looks in ``sys.modules`` first, and then leaves the attribute alone.
    """
    for place in PLACES:
        parent, _, name = place.rpartition(".")
        if parent == rest and not isinstance(getattr(package, name, package), ModuleType):
            module = _resolve(place)
            if module is not None:
                sys.modules.setdefault(f"{THEIRS}.{place}", module)


def _lend(place: str, module: ModuleType) -> None:
    """Let ``module`` also provide the names that ``dassl.<place>`` imports, and its submodules; each is looked up on
    use."""
    lent, own = imports_of(place), module.__dict__
    names = {**submodules_of(place), **lent}
    if not names:
        return
    before: Callable[[str], Any] | None = own.get("__getattr__")

    def find(attribute: str) -> Any:
        if before is not None:
            try:
                return before(attribute)
            except AttributeError:
                if attribute not in names:
                    raise
        if attribute in names:
            return resolve(names[attribute])
        raise AttributeError(f"module '{module.__name__}' has no attribute '{attribute}'")

    _lent.append((module, place, {name: own.get(name) for name in ("__getattr__", "__all__")}))
    public = own.get("__all__") or [name for name in own if not name.startswith("_")]
    own["__getattr__"], own["__all__"] = find, sorted({*public, *lent})  # the latter is for `from dassl.x import *`


def _take_back() -> None:
    """Undo every ``_lend``."""
    for module, _, before in reversed(_lent):
        for name, value in before.items():
            if value is None:
                module.__dict__.pop(name, None)
            else:
                module.__dict__[name] = value
    _lent.clear()


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent does not exist either
        return False


def _gathered(name: str, modules: Sequence[ModuleType]) -> ModuleType:
    """A module that combines the names of several modules."""
    gathered = ModuleType(name, f"Names of {', '.join(module.__name__ for module in modules)}.")

    def find(attribute: str) -> Any:
        for module in modules:
            if hasattr(module, attribute):
                return getattr(module, attribute)
        raise AttributeError(f"module '{name}' has no attribute '{attribute}'")

    gathered.__path__ = []  # makes it a package, so that its submodules can be imported
    gathered.__getattr__ = find  # type: ignore[method-assign]
    gathered.__dict__["__all__"] = sorted({n for module in modules for n in vars(module) if not n.startswith("_")})
    return gathered


def enable() -> None:
    """Make ``import dassl`` resolve to this package. Importing this module does so; a second call does nothing.

    Raises:
        UserError: the real Dassl has already been imported.
    """
    if any(isinstance(finder, DasslFinder) for finder in sys.meta_path):
        return
    if THEIRS in sys.modules:
        place = getattr(sys.modules[THEIRS], "__file__", None)
        raise UserError(f"dassl has already been imported from {place}; import dassl_lite.compat before it")
    installed = importlib.util.find_spec(THEIRS)
    if installed is not None:
        logger.warning(f"dassl is installed at {installed.origin}, but dassl_lite replaces it in this process")
    sys.meta_path[:0] = [DasslFinder(), ClipFinder()]
    Registry.others_win = True
    for name, keys in KEYS.items():
        cfg_default.TRAINER[name] = CN(keys)


def disable() -> None:
    """Undo ``enable``. Code that has already imported something from ``dassl`` keeps it."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, DasslFinder | ClipFinder)]
    for name in [name for name in sys.modules if name.partition(".")[0] == THEIRS]:
        del sys.modules[name]
    _take_back()
    Registry.others_win = False
    for name in KEYS:
        cfg_default.TRAINER.pop(name, None)


enable()
