"""What runs of a sweep cost that follow each other in a process, if they share what they read, and if they share the
backbone alone.

Warm runs of some methods: features are cached, modules are loaded. Rounds alternate between the two ways; the median of
their ratios is reported.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tabulate import tabulate

from dassl_lite.engine.commands import sweep
from dassl_lite.engine.commands.arguments import ConfigArguments, DatasetChoice, ToolParser, check_at_least
from dassl_lite.engine.methods.backbone import shared_backbone
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.startup import keep_for_good
from dassl_lite.tools._bench import seconds_of, write_rows
from dassl_lite.utils import setup_logger
from dassl_lite.utils.errors import UserError

NAME = "sweep"


def add_parser(subparsers: argparse._SubParsersAction[ToolParser]) -> None:
    """Declare the flags of ``bench.py sweep``."""
    parser = subparsers.add_parser(NAME, help="what runs of a sweep share", description=__doc__)
    add = parser.add_argument
    add("--trainers", nargs="+", default=["TaskRes", "ProKeR"], metavar="NAME", help="methods")
    add("--dataset", default="shapesnet", metavar="NAME", help="a dataset's yaml")
    add("--data", metavar="FILE", help="a feature file, or pictures, in place of it")
    add("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16], metavar="N", help="training images per class")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="seeds")
    add("--epochs", type=int, default=20, metavar="N", help="epochs of the methods that have any")
    add("--rounds", type=int, default=3, metavar="N", help="repetitions; the median of their ratios is reported")
    add("--cpu-time", action="store_true", help="measure CPU time instead of wall time, for a shared machine")
    add("--json", metavar="FILE", help="also write the rows to FILE")


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and print a table; returns its rows."""
    check_at_least(args, 1, ["epochs", "rounds"], at_most=1000)
    clock = time.process_time if args.cpu_time else time.perf_counter
    load_plugins()
    keep_for_good()
    dataset = DatasetChoice(data=args.data) if args.data else DatasetChoice(args.dataset)
    seconds: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for trainer in args.trainers:
                todo = sweep.tasks([trainer], [dataset], args.shots, args.seeds)
                seconds[trainer] = _measured(todo, args, Path(folder) / trainer, clock)
        finally:
            setup_logger()
    rows = [
        {
            "method": trainer,
            "runs": len(args.shots) * len(args.seeds),
            **{f"{way}, s": statistics.median(found) for way, found in ways.items()},
            "times as fast": statistics.median(a / b for a, b in zip(*ways.values(), strict=True)),
        }
        for trainer, ways in seconds.items()
    ]
    print(f"{dataset.label}, {'CPU' if args.cpu_time else 'wall'} seconds, {torch.get_num_threads()} threads")
    print(tabulate(rows, headers="keys", floatfmt=".3g"))
    write_rows(args.json, rows)
    return rows


def _measured(todo: list[sweep.Task], args: argparse.Namespace, folder: Path, clock: Any) -> dict[str, list[float]]:
    shared: ConfigArguments = {
        "trainer": "",
        "dataset_file": "",
        "method_file": None,
        "flags": {},
        "options": ["OPTIM.MAX_EPOCH", str(args.epochs)],
        "allow_new_keys": False,
    }

    def work(name: str) -> None:
        if failed := sweep.sweep(todo, sweep.Settings(folder / name, shared)):
            raise UserError(next(iter(failed.values())))

    found: dict[str, list[float]] = {"backbone shared": [], "all shared": []}
    work("first")  # extracts the features
    for number in range(args.rounds):
        with _backbone_alone():
            found["backbone shared"].append(seconds_of(partial(work, f"alone-{number}"), clock))
        found["all shared"].append(seconds_of(partial(work, f"all-{number}"), clock))
    return found


@contextmanager
def _backbone_alone() -> Iterator[None]:
    """A context in which sweeps share the backbone and nothing else."""
    with mock.patch.object(sweep, "sharing", shared_backbone):
        yield
