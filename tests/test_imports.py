"""Imports go one way: utils <- config, downloads <- data, models, optim, ... <- engine <- trainers <- tools.

Within the engine too: files, parallel <- contract <- methods, and commands on top.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
# Package -> what it may import of dassl_lite, besides itself.
MAY_IMPORT = {
    "startup": set(),
    "utils": set(),
    "config": {"utils"},
    "downloads": {"utils"},
    "data": {"utils", "config", "downloads"},
    "models": {"utils", "config", "downloads"},
    "optim": {"utils", "config"},
    "metrics": {"utils", "config"},
    "evaluation": {"utils", "config"},
    "networks": {"utils", "config", "metrics"},
}
MAY_IMPORT["engine"] = set(MAY_IMPORT) | {"configs"}
MAY_IMPORT["classifier"] = set(MAY_IMPORT)
MAY_IMPORT["compat"] = set(MAY_IMPORT) - {"classifier"} | {"configs"}
MAY_IMPORT["trainers"] = set(MAY_IMPORT) - {"classifier"}
MAY_IMPORT["datasets"] = {"data"}
MAY_IMPORT["pages"] = set(MAY_IMPORT) - {"compat", "trainers", "datasets"}
MAY_IMPORT["tools"] = set(MAY_IMPORT) | {"datasets", "trainers"}
# Errors, logging and signals are of the house, not of a layer above: a dataset may raise a UserError.
EVERYWHERE = {"utils", "startup"}
# Room of the engine -> the others that it may import; "plugins" and "build" are its two files outside a room.
ROOMS: dict[str, set[str]] = {
    "plugins": set(),
    "build": {"plugins"},
    "parallel": set(),
    "files": {"parallel"},
    "contract": {"files", "parallel"},
    "methods": {"contract", "files", "parallel"},
    "commands": {"plugins", "build", "parallel", "files", "contract", "methods"},
}


def modules() -> list[Path]:
    folders = ["dassl_lite", "trainers", "datasets", "tools"]
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


def package_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).parts
    return parts[1].removesuffix(".py") if parts[0] == "dassl_lite" else parts[0]


def imported(path: Path, package: str = "dassl_lite") -> set[str]:
    """Parts of a package that a file imports, anywhere but under TYPE_CHECKING."""
    found: set[str] = set()
    depth = package.count(".") + 1
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
            found.add(node.module.split(".")[depth])
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {n.name.split(".")[depth] for n in node.names if n.name.startswith(f"{package}.")}
    return found


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_no_package_imports_what_stands_above_it(package: str) -> None:
    allowed = MAY_IMPORT[package] | EVERYWHERE | {package}
    files = [path for path in modules() if package_of(path) == package]
    wrong = {str(path.relative_to(REPOSITORY)): sorted(imported(path) - allowed) for path in files}
    assert {path: extra for path, extra in wrong.items() if extra} == {}
    assert files or package == "compat"


def test_every_package_has_a_rule() -> None:
    known = set(MAY_IMPORT) | {"__init__"}
    assert {package_of(path) for path in modules()} <= known


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_no_room_of_the_engine_imports_what_stands_above_it(room: str) -> None:
    engine = REPOSITORY / "dassl_lite" / "engine"
    files = [path for path in engine.rglob("*.py") if path.relative_to(engine).parts[0].removesuffix(".py") == room]
    # Through the engine's own door a room would import every other one.
    wrong = {path.name: sorted(imported(path, "dassl_lite.engine") - ROOMS[room] - {room}) for path in files}
    assert files
    assert {path: extra for path, extra in wrong.items() if extra} == {}


def test_every_room_of_the_engine_has_a_rule() -> None:
    engine = REPOSITORY / "dassl_lite" / "engine"
    found = {
        path.name.removesuffix(".py") for path in engine.iterdir() if path.name not in ("__init__.py", "__pycache__")
    }
    assert found == set(ROOMS)
