"""How much memory a run takes on a folder of feature shards: resident memory at its peak, of a process of its own.

Features are float16 in sparse files: some random rows, and holes. Zero-shot CLIP evaluates the test rows; LinearProbe
and TaskRes train an epoch on the training rows. Rows are read and not mapped, so the page cache does not count.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from dassl_lite.data.feature_files.folder import CLASSES, shard_name, write_manifest
from dassl_lite.engine.commands.arguments import ToolParser, check_at_least
from dassl_lite.tools._bench import write_rows
from dassl_lite.utils import UserError

NAME = "memory"
RUNS = {"evaluate": "ZeroshotCLIP", "linear": "LinearProbe", "taskres": "TaskRes"}
_FILLED = 4096  # rows of a shard that are random


def add_parser(subparsers: argparse._SubParsersAction[ToolParser]) -> None:
    """Declare the flags of ``bench.py memory``."""
    parser = subparsers.add_parser(NAME, help="resident memory on shards of features", description=__doc__)
    add = parser.add_argument
    add("--rows", type=int, nargs="+", default=[100_000], metavar="N", help="rows, for each a measurement")
    add("--classes", type=int, default=1000, metavar="K", help="classes")
    add("--width", type=int, default=512, metavar="D", help="width of the features")
    add("--runs", nargs="+", choices=list(RUNS), default=list(RUNS), metavar="RUN", help=f"which: {', '.join(RUNS)}")
    add("--batch", type=int, default=1024, metavar="N", help="rows of a batch")
    add("--folder", default="", metavar="DIR", help="where the features are made (default: a temporary folder)")
    add("--json", default="", metavar="FILE", help="write the numbers as JSON")


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and print a table; returns its rows."""
    check_at_least(args, 2, ("rows", "classes"))
    check_at_least(args, 1, ("width", "batch"))
    rows = []
    for count in args.rows:
        for name in args.runs:
            with tempfile.TemporaryDirectory(dir=args.folder or None) as place:
                rows.append(_measure(Path(place), name, count, args))
    print(tabulate(rows, headers="keys", floatfmt=".4g", intfmt=","))
    write_rows(args.json, rows)
    return rows


def make_features(folder: Path, parts: dict[str, int], classes: int, width: int, rows_of_shard: int = 1 << 20) -> None:
    """Make a folder of feature shards; ``parts``: the number of rows of each split."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, list[str]] = {}
    for part, count in parts.items():
        features, labels = manifest.setdefault(f"{part}_features", []), manifest.setdefault(f"{part}_labels", [])
        for start in range(0, count, rows_of_shard):
            rows = min(rows_of_shard, count - start)
            features.append(shard_name(f"{part}_features", len(features)))
            labels.append(shard_name(f"{part}_labels", len(labels)))
            np.save(folder / labels[-1], ((start + np.arange(rows)) % classes).astype(np.int16))
            with open(folder / features[-1], "wb") as file:
                header = {"descr": "<f2", "fortran_order": False, "shape": (rows, width)}
                np.lib.format.write_array_header_1_0(file, header)
                begins = file.tell()
                file.write(rng.standard_normal((min(_FILLED, rows), width), dtype=np.float32).astype("<f2").tobytes())
                file.truncate(begins + rows * width * 2)
    names = np.array([f"thing {label}" for label in range(classes)])
    weights = rng.standard_normal((classes, width), dtype=np.float32)
    np.savez(folder / CLASSES, classnames=names, text_weights=weights)
    write_manifest(folder, manifest)


def _measure(place: Path, name: str, count: int, args: argparse.Namespace) -> dict[str, Any]:
    parts = {"test": count} if name == "evaluate" else {"train": count, "test": args.classes}
    make_features(place / "features", parts, args.classes, args.width)
    sizes = [f"DATALOADER.{part}.BATCH_SIZE" for part in ("TRAIN_X", "TEST")]
    options = [word for key in sizes for word in (key, str(args.batch))]
    if name != "evaluate":
        options += ["OPTIM.MAX_EPOCH", "1"]
    command = [
        sys.executable,
        "-m",
        "dassl_lite.tools.train",
        "--trainer",
        RUNS[name],
        "--data",
        str(place / "features"),
    ]
    log, start = place / "log", time.perf_counter()
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [*command, *options, "OUTPUT_DIR", str(place / "run")], stdout=file, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)  # what /usr/bin/time prints
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"the run {name} failed: {log.read_text(errors='replace').strip().splitlines()[-1]}")
    shutil.rmtree(place / "features")
    resident = usage.ru_maxrss / (1 << 20 if sys.platform != "darwin" else 1 << 30)
    cpu = usage.ru_utime + usage.ru_stime
    return {"run": name, "rows": count, "resident GiB": resident, "CPU s": cpu, "s": time.perf_counter() - start}
