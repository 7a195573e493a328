"""Finding trainers and datasets: ours by looking into their folders, other people's by entry point or ``--plugin``."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

ENTRY_POINTS = "dassl_lite.plugins"
FOLDERS = ("dassl_lite.trainers", "dassl_lite.datasets")

_failed: dict[str, str] = {}  # plug-in -> why it could not be imported
_done: set[str] = set()


def load_plugins(asked_for: Iterable[str] = ()) -> dict[str, str]:
    """Import everything that may register something.

    Args:
        asked_for: ``--plugin`` values: a file (``x.py``) or a module (``package.module``).

    Returns:
        Plug-ins that failed to import, with the reason; they are logged, and the rest go on.

    Raises:
        UserError: a plug-in that was asked for cannot be imported.
    """
    for folder in FOLDERS:
        package = importlib.import_module(folder)
        for module in _modules(package):
            _try(module, lambda name=module: importlib.import_module(name))
    for point in entry_points(group=ENTRY_POINTS):
        _try(point.value, point.load)
    for plugin in asked_for:
        load_plugin(plugin)
    return dict(_failed)


def load_plugin(plugin: str) -> ModuleType:
    """Import one plug-in by file or module name."""
    try:
        if plugin.endswith(".py"):
            return _import_file(Path(plugin))
        return importlib.import_module(plugin)
    except FileNotFoundError:
        raise UserError(f"plug-in {plugin}: there is no such file") from None
    except Exception as error:
        raise UserError(f"plug-in {plugin} cannot be imported: {type(error).__name__}: {error}") from error


def _modules(package: ModuleType) -> list[str]:
    """Full names of a package's modules, sub-folders included; a leading underscore hides one."""
    found = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    return [m.name for m in found if not any(part.startswith("_") for part in m.name.split("."))]


def _try(name: str, load: object) -> None:
    if name in _done:
        return
    _done.add(name)
    try:
        load()  # type: ignore[operator]
    except Exception as error:  # noqa: BLE001
        _failed[name] = f"{type(error).__name__}: {error}"
        logger.warning(f"plug-in {name} cannot be imported and is left out: {_failed[name]}")


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise FileNotFoundError(path)
    name = f"dassl_lite_plugin_{path.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # a plug-in may import its neighbours
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"plug-in {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
