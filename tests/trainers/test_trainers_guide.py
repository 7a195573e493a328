"""trainers/README.md: its method is trained, evaluated and compared by the commands that the guide gives."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from dassl_lite.engine import TRAINER_REGISTRY
from dassl_lite.engine.commands.cli import run_tool

GUIDE = (Path(__file__).resolve().parents[2] / "trainers" / "README.md").read_text(encoding="utf-8")
QUICK = ("OPTIM.MAX_EPOCH", "3", "DATASET.FEATURES.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0")


def block(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    return text


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which someone wrote the guide's two files."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "blended_probe.py").write_text(block("python"))
    (folder / "blended_probe.yaml").write_text(block("yaml"))
    yield folder
    TRAINER_REGISTRY._table.pop("BlendedProbe", None)


def command(line: str) -> int:
    """Run ``python tools/x.py ...`` in this process, for few epochs."""
    _, path, *arguments = shlex.split(line)
    quick = {"train": QUICK, "sweep": ("--output-dir", "output/sweep", *QUICK)}.get(Path(path).stem, ())
    tool = importlib.import_module(f"dassl_lite.tools.{Path(path).stem}")
    return run_tool(tool.main, [*arguments, *quick])


@pytest.mark.slow
def test_the_guides_commands_lead_to_the_methods_row(followed, monkeypatch, capsys):
    monkeypatch.chdir(followed)
    lines = block("bash").splitlines()
    assert [command(line) for line in lines] == [0] * len(lines), capsys.readouterr().err
    kept = json.loads((followed / "output" / "first" / "results.json").read_text())
    assert kept["config"]["DATALOADER"]["TRAIN_X"]["BATCH_SIZE"] == 256  # the recipe beside the method was taken
    accuracy = kept["metrics"]["test"]["accuracy"]
    assert accuracy > kept["zero_shot_accuracy"]
    out = capsys.readouterr().out
    assert re.search(rf"Silhouettes +{accuracy:.2f} .* 20 of 20", out)  # what eval.py says of the saved run
    assert [path.name for path in (followed / "output" / "first" / "blended_probe").glob("model*")] == [
        "model.pth.tar-3"
    ]
    table = (followed / "output" / "sweep" / "report.md").read_text()
    assert len(re.findall(r"\| BlendedProbe +(\| [\d.]+ ± [\d.]+ *){3}\|", table)) == 1


def test_the_method_has_forty_lines_or_fewer():
    assert len([line for line in block("python").splitlines() if line.strip()]) <= 40


@pytest.mark.parametrize("place", sorted(set(re.findall(r"`(dassl_lite\.[\w.]+\.[A-Z]\w+)`", GUIDE))))
def test_a_class_or_registry_that_the_guide_names_is_there(place):
    module, _, name = place.rpartition(".")
    assert hasattr(importlib.import_module(module), name)
