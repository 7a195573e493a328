"""Finds trainers and datasets: ours in their folders, third parties' through entry points or ``--plugin``."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from types import ModuleType

from dassl_lite.startup import loading
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

ENTRY_POINTS = "dassl_lite.plugins"
FOLDERS = ("dassl_lite.trainers", "dassl_lite.datasets")

COMPAT = "dassl_lite.compat"  # imported before other plug-ins, which may need it

_failed: dict[str, str] = {}  # plug-in -> why it could not be imported
_attempted: set[str] = set()
_requested: dict[str, ModuleType] = {}  # value of --plugin -> its module


def load_plugins(requested: Iterable[str] = ()) -> dict[str, str]:
    """Import every module that may register a trainer or dataset.

    Args:
        requested: ``--plugin`` values: a file (``x.py``) or a module (``package.module``).

    Returns:
        Plug-ins that failed to import, mapped to the reason; each is logged and skipped.

    Raises:
        UserError: a plug-in named by ``--plugin`` cannot be imported.
    """
    missing = [
        module for folder in FOLDERS for module in _modules(importlib.import_module(folder)) if module not in _attempted
    ]
    if missing:
        with loading():
            for module in missing:
                _try(module, lambda name=module: importlib.import_module(name))
    for point in _entry_points(tuple(sys.path)):
        _try(point.value, point.load)
    for plugin in sorted(requested, key=lambda name: name != COMPAT):
        load_plugin(plugin)
    return dict(_failed)


@functools.cache
def _entry_points(path: tuple[str, ...]) -> EntryPoints:
    """Entry points installed on ``path``; cached because the lookup takes 20 ms and every config needs it."""
    return entry_points(group=ENTRY_POINTS)


def load_plugin(plugin: str) -> ModuleType:
    """Import one plug-in by file or module name; a file is imported only once, under whichever module name."""
    if plugin.endswith(".py") and not Path(plugin).is_file():
        raise UserError(f"plug-in {plugin} does not exist")
    try:
        module = _imported_from(_file_of(plugin)) or (
            _import_file(Path(plugin)) if plugin.endswith(".py") else importlib.import_module(plugin)
        )
    except Exception as error:
        raise UserError(f"plug-in {plugin} cannot be imported: {type(error).__name__}: {error}") from error
    if plugin not in _requested and _is_script(module):
        logger.warning(
            f"plug-in {plugin} is a training script: only its imports and extend_cfg are used here, not its flags or "
            f"its own settings; {run_unchanged_hint(module)}"
        )
    _requested[plugin] = module
    return module


def _is_script(module: ModuleType) -> bool:
    """Whether a plug-in builds its own config or parses a command line."""
    return any(callable(getattr(module, name, None)) for name in ("setup_cfg", "reset_cfg")) or bool(
        re.search(r"^[^#\n]*\bArgumentParser\(", _source(module.__dict__.get("__file__")), re.MULTILINE)
    )


def run_unchanged_hint(module: ModuleType) -> str:
    """A hint for users: how to run a plug-in that is a training script."""
    return f"to run that script unchanged: dassl-lite run-dassl {module.__file__} ARGUMENTS"


def declaring_script(key: str) -> Path | None:
    """The script in a plug-in's repository that declares a config key with a line like ``cfg.TRAINER.X.KEY = 1``.

    Searches the folders of the plug-ins and of their packages, skipping scripts that are plug-ins themselves.
    """
    known = {file for module in _requested.values() if (file := _file_of_module(module))}
    folders = dict.fromkeys(folder for file in known for folder in (file.parent, _root_of(file), *_grandparent(file)))
    pattern = re.compile(rf"\.{re.escape(key)}\s*=[^=]")
    for folder in folders:
        for path in sorted(folder.glob("*.py")):
            if path not in known and pattern.search(_source(path)):
                return path
    return None


def _grandparent(file: Path) -> list[Path]:
    """The parent of the folder of a file outside a package: a repository's ``trainers`` need not be a package."""
    return [file.parent.parent] if _root_of(file) == file.parent else []


def _file_of_module(module: ModuleType) -> Path | None:
    """The file of a third-party module; None for modules of this package."""
    file = module.__dict__.get("__file__")
    return Path(file).resolve() if file and module.__name__.partition(".")[0] != "dassl_lite" else None


def _source(file: str | Path | None) -> str:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace") if file else ""
    except OSError:
        return ""


def _file_of(plugin: str) -> Path | None:
    """The file of a plug-in, or None for a module without one."""
    if plugin.endswith(".py"):
        return Path(plugin).resolve()
    spec = importlib.util.find_spec(plugin)
    return Path(spec.origin).resolve() if spec and spec.origin and spec.has_location else None


def _imported_from(file: Path | None) -> ModuleType | None:
    """The module already imported from ``file``, if any: its trainers must not be registered twice."""
    for name, module in list(sys.modules.items()):
        module_file = getattr(module, "__dict__", {}).get(
            "__file__"
        )  # accessing the attribute could trigger a lazy import
        if (
            file
            and module_file
            and name != "__main__"
            and Path(module_file).name == file.name
            and Path(module_file).resolve() == file
        ):
            return module
    return None


def requested_plugins() -> list[ModuleType]:
    """The modules named by ``--plugin``. A plug-in may declare config keys in a function ``extend_cfg(cfg)``."""
    return list(_requested.values())


def _modules(package: ModuleType) -> list[str]:
    """Full names of a package's modules, found without importing them.

    Includes sub-folders, with or without ``__init__.py``; excludes names with a leading underscore.
    """
    modules = []
    for folder in map(Path, package.__path__):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if not any(part.startswith(("_", ".")) or not part.isidentifier() for part in parts):
                modules.append(".".join((package.__name__, *parts)))
    return modules


def _try(name: str, load: object) -> None:
    if name in _attempted:
        return
    _attempted.add(name)
    try:
        load()  # type: ignore[operator]
    except Exception as error:  # noqa: BLE001
        _failed[name] = f"{type(error).__name__}: {error}"
        logger.warning(f"plug-in {name} cannot be imported and is skipped: {_failed[name]}")


def _import_file(path: Path) -> ModuleType:
    """Import a file as a module of its package, with the package's parent folder on ``sys.path``.

    This lets ``trainers/x.py`` in a paper's repository import its neighbours, and ``clip`` beside ``trainers``.
    """
    path = path.resolve()
    root = _add_to_path(path)
    if (path.parent / "__init__.py").is_file():
        return _import_as_package(path, root)
    return _execute(f"dassl_lite_plugin_{path.stem}", path)


def _add_to_path(path: Path) -> Path:
    """Prepend the folders that a file imports from to ``sys.path``; returns the one that contains its package."""
    root = _root_of(path)
    folders = [path.parent] if root == path.parent else [root]
    if root == path.parent and path.parent.name in ("trainers", "datasets"):
        folders.append(root.parent)  # a repository whose folders are not packages
    for folder in reversed(folders):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    return root


def _root_of(path: Path) -> Path:
    """The folder that contains a file's package, or the file's own folder if it is not in a package."""
    root = path.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    return root


def _import_as_package(path: Path, root: Path) -> ModuleType:
    """Import ``<root>/trainers/x.py`` as ``trainers.x``; two repositories may both have a package ``trainers``."""
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    package = importlib.import_module(name.rpartition(".")[0])
    if str(path.parent) not in package.__path__:
        package.__path__.append(str(path.parent))
    loaded = importlib.import_module(name)
    if Path(loaded.__file__ or "").resolve() == path:
        return loaded
    return _execute(f"{name}_of_{root.name}", path)  # that name was already taken by a file of another repository


def _execute(name: str, path: Path) -> ModuleType:
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
