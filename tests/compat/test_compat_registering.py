"""How other people's files get registered, by real use: a wheel, a dropped file, a repository's layout."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe import RECIPE

from dassl_lite.engine import TRAINER_REGISTRY, plugins
from dassl_lite.engine.build import make_config
from dassl_lite.utils import UserError
from dassl_lite.utils.registry import Registry

REPOSITORY = Path(__file__).resolve().parents[2]
TRAINER = '''
from dassl_lite.engine import TRAINER_REGISTRY, TrainerX

@TRAINER_REGISTRY.register()
class {name}(TrainerX):
    """From outside."""
'''
DATASET = """
from dassl_lite.data import DATASET_REGISTRY, FolderDataset

@DATASET_REGISTRY.register()
class {name}(FolderDataset):
    pass
"""
LIST = """
import sys
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.engine import TRAINER_REGISTRY
from dassl_lite.data import DATASET_REGISTRY
print(sorted(load_plugins().items()))
print(*[name for name in (*TRAINER_REGISTRY, *DATASET_REGISTRY) if name.startswith("Dropped") or name == "TaskRes"])
"""


def in_a_new_process(code: str, *path: Path) -> list[str]:
    """What the code prints, with folders before all others on its path; the last line is the answer."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def build_wheel(folder: Path) -> Path:
    """A distribution of one module with two entry points, one of which cannot be imported."""
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "paper_of_wheel.py").write_text(TRAINER.format(name="DroppedWheel"))
    (folder / "src" / "broken_of_wheel.py").write_text("import no_such_library\n")
    points = '[project.entry-points."dassl_lite.plugins"]\npaper = "paper_of_wheel"\nbroken = "broken_of_wheel"\n'
    system = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    package = '[tool.setuptools]\npackage-dir = {"" = "src"}\npy-modules = ["paper_of_wheel", "broken_of_wheel"]\n'
    (folder / "pyproject.toml").write_text(
        f'{system}\n[project]\nname = "paper-of-wheel"\nversion = "1.0"\n\n{points}\n{package}'
    )
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"  # what pip calls, without its wait
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    options = ["--no-deps", "--no-index", "--no-compile", "--target", str(folder / "site"), str(wheel)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install"]
    subprocess.run([*pip, *options], check=True, capture_output=True)
    assert "paper_of_wheel.py" in zipfile.ZipFile(wheel).namelist()
    return folder / "site"


@pytest.mark.slow
def test_an_installed_entry_point_and_a_dropped_file_are_found(tmp_path: Path) -> None:
    """All in one process, as starting one takes seconds: a wheel in a folder of its own; files dropped into a copy of
    trainers/ and datasets/ and their sub-folders, with and without __init__.py; broken ones, which are named."""
    pytest.importorskip("setuptools")
    site = build_wheel(tmp_path / "wheel")
    for folder in ("trainers", "datasets"):
        shutil.copytree(REPOSITORY / folder, tmp_path / "copy" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    dropped = {
        "trainers/dropped.py": TRAINER.format(name="DroppedTrainer"),
        "trainers/mine/deep/deeper.py": TRAINER.format(name="DroppedDeep"),
        "trainers/packaged/__init__.py": "",
        "trainers/packaged/inside.py": TRAINER.format(name="DroppedPackaged"),
        "trainers/_hidden.py": TRAINER.format(name="DroppedHidden"),
        "trainers/broken.py": "1 / 0\n",
        "trainers/broken_package/__init__.py": "import no_such_library\n",
        "trainers/broken_package/inside.py": TRAINER.format(name="DroppedNever"),
        "datasets/mine/dropped.py": DATASET.format(name="DroppedDataset"),
    }
    for name, text in dropped.items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    redirect = "\n".join(
        f"import dassl_lite.{folder}; dassl_lite.{folder}.__path__[:] = [{str(tmp_path / 'copy' / folder)!r}]"
        for folder in ("trainers", "datasets")
    )
    *_, failed, found = in_a_new_process(redirect + LIST, site)
    names = {"DroppedWheel", "DroppedTrainer", "DroppedDeep", "DroppedPackaged", "DroppedDataset", "TaskRes"}
    assert set(found.split()) == names
    assert dict(ast.literal_eval(failed)) == {
        "broken_of_wheel": "ModuleNotFoundError: No module named 'no_such_library'",
        "dassl_lite.trainers.broken": "ZeroDivisionError: division by zero",
        "dassl_lite.trainers.broken_package.inside": "ModuleNotFoundError: No module named 'no_such_library'",
    }


# ---- a paper's repository ----

THEIR_COOP = '''
from clip import clip                         # beside trainers/, their own
from dassl.engine import TRAINER_REGISTRY, TrainerX
from .helpers_of_paper import HELP            # in their package
from trainers.helpers_of_paper import HELP as AGAIN

@TRAINER_REGISTRY.register()
class CoOp(TrainerX):
    """Their CoOp."""
    found = (clip.WHOSE, HELP, AGAIN)
'''


@pytest.fixture
def paper(tmp_path: Path) -> Iterator[Path]:
    """A checkout in the layout of CoOp's forks."""
    files = {
        "clip/__init__.py": "from .clip import *\n",
        "clip/clip.py": "WHOSE = 'theirs'\n",
        "trainers/__init__.py": "",
        "trainers/helpers_of_paper.py": "HELP = 'neighbour'\n",
        "trainers/coop.py": THEIR_COOP,
        "train.py": "from yacs.config import CfgNode as CN\nimport trainers.coop\n"
        "def extend_cfg(cfg):\n    cfg.TRAINER.PAPER = CN()\n    cfg.TRAINER.PAPER.DEPTH = 9\n",
    }
    for name, text in files.items():
        path = tmp_path / "paper" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    plugins.load_plugins()
    kept, path = (dict(TRAINER_REGISTRY._table), dict(TRAINER_REGISTRY.replaced)), list(sys.path)
    yield tmp_path / "paper"
    TRAINER_REGISTRY._table, TRAINER_REGISTRY.replaced = kept
    sys.path[:] = path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("clip", "trainers")]:
        del sys.modules[name]
    for name in [name for name in plugins._requested if str(tmp_path) in name]:
        del plugins._requested[name]


@pytest.mark.slow
def test_a_checkouts_trainer_finds_its_own_files_and_replaces_ours(paper: Path) -> None:
    ours = TRAINER_REGISTRY.get("CoOp")
    plugins.load_plugin(str(paper / "trainers" / "coop.py"))
    theirs = TRAINER_REGISTRY.get("CoOp")
    assert theirs.__doc__ == "Their CoOp."
    assert theirs.found == ("theirs", "neighbour", "neighbour")
    assert theirs.__module__ == "trainers.coop"
    plugins.load_plugins()  # ours do not come back
    assert TRAINER_REGISTRY.get("CoOp") is theirs
    assert TRAINER_REGISTRY.replaced == {"CoOp": ours}
    assert make_config(trainer="CoOp").TRAINER.COOP.N_CTX == 16  # its yaml files' keys are known


@pytest.mark.slow
def test_a_checkouts_own_train_py_brings_its_trainers_and_keys(paper: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "paper.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "TRAINER": {"PAPER": {"DEPTH": 3}, "COOP": {"N_CTX": 4}}}))
    with pytest.raises(UserError, match="unknown config key 'TRAINER.PAPER'"):
        make_config(trainer="CoOp", method_file=recipe)
    assert make_config(trainer="CoOp", method_file=recipe, allow_new_keys=True).TRAINER.PAPER.DEPTH == 3
    plugins.load_plugin(str(paper / "train.py"))
    assert TRAINER_REGISTRY.get("CoOp").__doc__ == "Their CoOp."
    cfg = make_config(trainer="CoOp", method_file=recipe, options=("TRAINER.PAPER.DEPTH", "4"))
    assert (cfg.TRAINER.PAPER.DEPTH, cfg.TRAINER.COOP.N_CTX) == (4, 4)


@pytest.mark.slow
def test_two_checkouts_with_a_package_of_the_same_name_both_load(paper: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "trainers"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    (other / "second.py").write_text(TRAINER.format(name="DroppedSecond"))
    (other / "coop.py").write_text(TRAINER.format(name="DroppedThird"))
    for path in (paper / "trainers" / "coop.py", other / "second.py", other / "coop.py"):
        plugins.load_plugin(str(path))
    assert {"CoOp", "DroppedSecond", "DroppedThird"} <= set(TRAINER_REGISTRY)


def test_a_name_taken_twice_is_refused_without_the_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(module: str) -> Any:
        return type("Same", (), {"__module__": module})

    registry, ours, theirs = Registry("trainer"), made("dassl_lite.trainers.same"), made("trainers.same")
    registry.register(theirs)
    registry.register(ours)
    assert registry.get("Same") is theirs
    with pytest.raises(KeyError, match="registered twice"):
        registry.register(made("another.same"))
    monkeypatch.setattr(Registry, "others_win", False)
    registry = Registry("trainer")
    registry.register(ours)
    with pytest.raises(KeyError, match="registered twice"):
        registry.register(theirs)
