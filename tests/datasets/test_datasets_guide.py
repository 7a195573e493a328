"""datasets/README.md: its dataset is checked, trained on and evaluated with the guide's own commands."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dassl_lite.data import DATASET_REGISTRY, FolderDataset
from dassl_lite.engine.commands.cli import run_tool

FOLDER = Path(__file__).resolve().parents[2] / "datasets"
GUIDE = (FOLDER / "README.md").read_text(encoding="utf-8").partition("## Features instead of images")[0]
QUICK = ("OPTIM.MAX_EPOCH", "150", "DATASET.FEATURES.VIEWS", "2", "DATALOADER.NUM_WORKERS", "0")
COLOURS = {"airplane": (200, 40, 40), "baseball_diamond": (40, 200, 40), "sea_ice": (40, 40, 200)}
IMAGES = 20  # per class


def block(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    return text


@pytest.fixture
def guide_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the guide's two files and three of its classes, each as noise of one colour."""
    (tmp_path / "resisc45.py").write_text(block("python"))
    (tmp_path / "resisc45.yaml").write_text(block("yaml"))
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        folder = tmp_path / "DATA" / "resisc45" / "NWPU-RESISC45" / name
        folder.mkdir(parents=True)
        for number in range(1, IMAGES + 1):
            pixels = np.clip(rng.normal(colour, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}_{number:03d}.jpg")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    DATASET_REGISTRY._table.pop("RESISC45", None)


def command(line: str) -> int:
    """Run ``python tools/x.py ...`` in this process for a few epochs."""
    _, path, *arguments = shlex.split(line)
    tool = importlib.import_module(f"dassl_lite.tools.{Path(path).stem}")
    return run_tool(tool.main, [*arguments, *(QUICK if Path(path).stem == "train" else ())])


@pytest.mark.slow
def test_the_guides_commands_check_train_on_and_evaluate_the_dataset(guide_folder, capsys):
    check, train, evaluate = block("bash").splitlines()
    assert [command(line) for line in (train, evaluate, check)] == [0, 0, 0], capsys.readouterr().err
    kept = json.loads((guide_folder / "output" / "resisc45" / "results.json").read_text())
    accuracy = kept["metrics"]["test"]["accuracy"]
    assert accuracy > 90  # three colours are easy to separate
    assert kept["split_sizes"]["train"] == 4 * len(COLOURS)
    out = capsys.readouterr().out
    assert re.search(rf"RESISC45 +{accuracy:.2f} .* 3 of 3", out)
    assert "1 of 1 in order" in out
    split = json.loads((guide_folder / "DATA" / "resisc45" / "split_RESISC45.json").read_text())
    assert {name for _, _, name in split["train"]} == {"airplane", "baseball diamond", "sea ice"}
    assert [len(split[part]) for part in ("train", "val", "test")] == [30, 12, 18]
    assert (guide_folder / "DATA" / "resisc45" / "split_fewshot" / "shot_4-seed_1.json").is_file()


def test_the_check_works_before_the_first_run(guide_folder, capsys):
    assert command(block("bash").splitlines()[0]) == 0, capsys.readouterr().out
    assert "1 of 1 in order" in capsys.readouterr().out


def test_the_dataset_has_at_most_twenty_lines():
    assert len([line for line in block("python").splitlines() if line.strip()]) <= 20


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(\w+\.py)` \|$", GUIDE, re.MULTILINE))))
def test_every_example_in_the_guide_exists(name):
    assert (FOLDER / name).is_file()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(\w+) = ", GUIDE)) | {"classes_file", "prepare"}))
def test_every_declaration_in_the_guide_is_a_real_attribute(name):
    assert hasattr(FolderDataset, name)
