from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dassl_lite.engine import TRAINER_REGISTRY, plugins
from dassl_lite.utils import UserError

PLUGIN = """
from dassl_lite.engine import TRAINER_REGISTRY, TrainerX

@TRAINER_REGISTRY.register()
class {name}(TrainerX):
    '''From a plug-in.'''
"""


def test_a_plug_in_file_registers_and_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_plugin.py").write_text("NAME = 'x'\n")
    path = tmp_path / "plugin_by_file.py"
    path.write_text("import neighbour_of_plugin\n" + PLUGIN.format(name="TrainerFromFile"))
    plugins.load_plugin(str(path))
    plugins.load_plugin(str(path))  # asked for twice: imported once, no clash
    assert TRAINER_REGISTRY.get("TrainerFromFile").__doc__ == "From a plug-in."


def test_a_plug_in_module_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_package").mkdir()
    (tmp_path / "plugin_package" / "__init__.py").touch()
    (tmp_path / "plugin_package" / "method.py").write_text(PLUGIN.format(name="TrainerFromModule"))
    monkeypatch.syspath_prepend(tmp_path)
    plugins.load_plugin("plugin_package.method")
    assert "TrainerFromModule" in TRAINER_REGISTRY
    assert "plugin_package.method" in sys.modules


def test_a_broken_plug_in_that_was_asked_for_is_reported_with_its_error(tmp_path: Path) -> None:
    path = tmp_path / "broken_plugin.py"
    path.write_text("1 / 0\n")
    with pytest.raises(UserError, match="broken_plugin.py cannot be imported: ZeroDivisionError: division by zero"):
        plugins.load_plugin(str(path))
    assert "dassl_lite_plugin_broken_plugin" not in sys.modules


def test_a_missing_plug_in_is_reported() -> None:
    with pytest.raises(UserError, match="does not exist"):
        plugins.load_plugin("nowhere/x.py")
    with pytest.raises(UserError, match="ModuleNotFoundError"):
        plugins.load_plugin("no_such_package.module")


def test_our_own_methods_and_datasets_are_found_without_a_list() -> None:
    from dassl_lite.data import DATASET_REGISTRY

    assert plugins.load_plugins() == {}
    assert {"TaskRes", "ZeroshotCLIP", "ZeroshotCLIP2", "TaskResEnhance"} <= set(TRAINER_REGISTRY)
    assert {"ImageFolder", "Caltech101", "ShapesNet"} <= set(DATASET_REGISTRY)


def test_a_file_of_our_own_may_be_named_as_a_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from dassl_lite import trainers

    plugins.load_plugins()
    before = TRAINER_REGISTRY.get("CoOp")
    folder, path = Path(trainers.__path__[0]), list(sys.path)
    monkeypatch.chdir(folder.parent)
    named = plugins.load_plugin("trainers/coop.py")
    assert named is plugins.load_plugin(str(folder / "coop.py")) is sys.modules["dassl_lite.trainers.coop"]
    assert plugins.load_plugin("dassl_lite.trainers.coop") is named
    assert TRAINER_REGISTRY.get("CoOp") is before
    assert sys.path == path, "nothing of ours becomes importable under another name"


@pytest.mark.slow
def test_a_plug_in_file_that_is_a_module_already_is_not_imported_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugin_twice").mkdir()
    (tmp_path / "plugin_twice" / "__init__.py").touch()
    path = tmp_path / "plugin_twice" / "method.py"
    path.write_text(PLUGIN.format(name="TrainerTwice"))
    monkeypatch.syspath_prepend(tmp_path)
    module = plugins.load_plugin("plugin_twice.method")
    (tmp_path / "link.py").symlink_to(path)
    assert plugins.load_plugin(str(path)) is plugins.load_plugin(str(tmp_path / "link.py")) is module
    monkeypatch.syspath_prepend(tmp_path / "plugin_twice")
    assert plugins.load_plugin("method") is module
