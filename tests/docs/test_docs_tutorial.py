"""docs/tutorial.md: its commands run in order, with fewer epochs."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from dassl_lite.engine.commands.cli import run_tool

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("python tools/")]
QUICK = ("OPTIM.MAX_EPOCH", "2", "DATASET.FEATURES.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0")
NEEDS_IMAGES = "mushrooms"  # the reader's own images


@pytest.mark.slow
def test_the_commands_of_the_tutorial_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in COMMANDS:
        # One number of shots, one seed and one dataset of three; tests/trainers/test_trainers_guide.py runs a sweep.
        short = line.replace("--shots 1 4 16 --seeds 1 2 3", "--shots 1 --seeds 1")
        _, path, *arguments = shlex.split(short.replace("shapesnetv2 shapesnetsketch shapesneta", "shapesnetv2"))
        if NEEDS_IMAGES in arguments:
            continue
        trains = Path(path).stem in ("train", "sweep") and "--help-trainer" not in arguments
        tool = importlib.import_module(f"dassl_lite.tools.{Path(path).stem}")
        assert run_tool(tool.main, [*arguments, *(QUICK if trains else ())]) == 0, f"{line}\n{capsys.readouterr().err}"
    for name in re.findall(r"^\| `([\w./-]+)`", PAGE, re.MULTILINE):
        assert (tmp_path / "output" / "first" / name.replace("-200", "-2")).exists(), name
    table = (tmp_path / "output" / "sweep" / "report.md").read_text(encoding="utf-8")
    assert all(method in table for method in ("ZeroshotCLIP", "TaskRes", "TipAdapter", "LinearProbe"))
