"""Control characters in names of classes, files and folders are escaped on the terminal and kept raw in files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.tools import eval as eval_tool
from dassl_lite.tools import prepare, report, show, sweep, train
from dassl_lite.utils.errors import printable

ESC = "\x1b]0;owned\x07\x9b2J"
CLASSES = (f"cat {ESC}", f"dog\nline{ESC}", f"\u202etac {ESC}")
QUICK = ("TEST.PER_CLASS_RESULT", "True", "OPTIM.MAX_EPOCH", "2", "DATALOADER.NUM_WORKERS", "0")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Eight small images per class; the names of folder, table and classes contain terminal control sequences."""
    folder = tmp_path / f"mine {ESC}"
    folder.mkdir()
    path = folder / f"table {ESC}.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "classname", f"other {ESC}"])
        for number in range(24):
            name = f"{number}{ESC}.png"
            Image.new("RGB", (32, 32), (10 * number, 0, 0)).save(folder / name)
            rows.writerow([name, CLASSES[number % 3], ""])
    return path


@pytest.mark.slow
def test_no_tool_prints_a_control_character_of_a_name(
    table: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / f"out {ESC}"
    run = output / "run"
    trained = ["--trainer", "TaskRes", "--data", str(table), "--shots", "2", "--output-dir", str(run), *QUICK]
    swept = ["--trainers", "ZeroshotCLIP", "--data", str(table), "--shots", "1", "--seeds", "1"]
    commands = {
        train: [trained, trained, [*trained, "--resume"]],
        eval_tool: [["--model-dir", str(run), *QUICK[:2]]],
        show: [["--data", str(table), "--out", str(output / "sheet.png")]],
        sweep: [[*swept, "--output-dir", str(output / "sweep"), "DATALOADER.NUM_WORKERS", "0"]],
        report: [[str(output)]],
        prepare: [["--check", "--data", str(table)], [f"no{ESC}", "--root", str(output)]],
    }
    seen = ""
    for tool, lines in commands.items():
        for words in lines:
            code = run_tool(tool.main, words)
            shown = "".join(capfd.readouterr())
            seen += shown
            assert code in (0, 2), shown
            acting = shown.replace("\r", "").replace("\x1b[A", "")  # written by tqdm
            assert printable(acting, keep="\n\t") == acting, (tool.__name__, words)
    assert "\\x1b]0;owned" in seen
    kept = json.loads((run / "results.json").read_text())
    assert {row["classname"] for row in kept["per_class"]} <= {*CLASSES}
    log = (run / "log.txt").read_text()
    assert printable(log, keep="\n\t") == log
    assert printable(CLASSES[1]) in log
