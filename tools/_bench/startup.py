"""How long the tools take to start: CPU seconds of processes, over those of a bare ``import torch``.

``train --help``, ``train --list``, and TaskRes on a feature file of 10 classes for 20 epochs, beside a plain loop with
one torch optimiser, which is the least that a run can take. Rounds alternate; the median of the ratios is reported.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from dassl_lite.data.feature_files import FeatureFile, write_feature_file
from dassl_lite.data.feature_files.file import FeaturePart
from dassl_lite.engine.commands.arguments import ToolParser, check_at_least
from dassl_lite.tools._bench import write_rows

NAME = "startup"
_IMPORT = "import torch"
_OPTIMISER = """
import torch
weight = torch.nn.Parameter(torch.zeros(10, 64))
optimiser = torch.optim.Adam([weight])
for _ in range(20):
    optimiser.zero_grad()
    torch.nn.functional.cross_entropy(torch.randn(160, 64) @ weight.t(), torch.randint(0, 10, (160,))).backward()
    optimiser.step()
"""


def add_parser(subparsers: argparse._SubParsersAction[ToolParser]) -> None:
    """Declare the flags of ``bench.py startup``."""
    parser = subparsers.add_parser(NAME, help="how long the tools take to start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="repetitions; the median is reported")
    parser.add_argument("--json", metavar="FILE", help="also write the rows to FILE")


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and print a table; returns its rows."""
    check_at_least(args, 1, ["rounds"], at_most=1000)
    train = ["-m", "dassl_lite.tools.train"]
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_feature_file(_features(), f"{folder}/features.npz")
        flags = ["--trainer", "TaskRes", "--data", f"{folder}/features.npz"]
        for number in range(args.rounds):
            commands = {
                _IMPORT: ["-c", _IMPORT],
                "a torch optimiser": ["-c", _OPTIMISER],
                "train --help": [*train, "--help"],
                "train --list": [*train, "--list"],
                "a run of 10 classes": [*train, *flags, "--output-dir", f"{folder}/{number}", "OPTIM.MAX_EPOCH", "20"],
            }
            for name, command in commands.items():
                seconds.setdefault(name, []).append(cpu_seconds([sys.executable, *command], folder))
    rows = [
        {
            "process": name,
            "CPU s": statistics.median(found),
            "over import torch": statistics.median(a / b for a, b in zip(found, seconds[_IMPORT], strict=True)),
        }
        for name, found in seconds.items()
    ]
    print(tabulate(rows, headers="keys", floatfmt=".3g"))
    write_rows(args.json, rows)
    return rows


def cpu_seconds(command: list[str], folder: str | Path) -> float:
    """User and system time of a process and of its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _features() -> FeatureFile:
    rng = np.random.default_rng(0)

    def part(count: int) -> FeaturePart:
        return FeaturePart(rng.standard_normal((1, 10 * count, 64), dtype=np.float32), np.arange(10).repeat(count))

    text = rng.standard_normal((1, 10, 64), dtype=np.float32)
    return FeatureFile({"train": part(16), "test": part(16)}, tuple(f"thing {label}" for label in range(10)), text)
