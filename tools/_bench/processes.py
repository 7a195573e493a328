"""How many times as fast several processes extract features as one does, each of them with one core.

All start, import and load the backbone before the clock does. Rounds alternate. Where other programs keep the cores
busy, the ratio says little: the load of the machine is printed beside it.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from dassl_lite.data.feature_files.pieces import Piece
from dassl_lite.engine.commands.arguments import ToolParser, check_at_least
from dassl_lite.engine.commands.feature_export import Encoding, encode_piece
from dassl_lite.engine.commands.workers import Workers, local_workers
from dassl_lite.models.clip import load_clip
from dassl_lite.tools._bench import Row, photographs, write_rows
from dassl_lite.tools._bench.extract import field_transform

NAME = "processes"
_PIECES = 8  # for each process, so that none waits long for the last


def add_parser(subparsers: argparse._SubParsersAction[ToolParser]) -> None:
    """Declare the flags of ``bench.py processes``."""
    parser = subparsers.add_parser(NAME, help="extraction by several processes against one", description=__doc__)
    add = parser.add_argument
    add("--backbone", default="random:ViT-B-32", metavar="NAME", help="backbone; random:ARCHITECTURE needs no download")
    add("--jobs", type=int, default=2, metavar="N", help="processes")
    add("--images", type=int, default=512, metavar="N", help="pictures of 500 x 375 pixels")
    add("--photos", metavar="FOLDER", help="JPEG files to extract from (default: drawn)")
    add("--rounds", type=int, default=3, metavar="N", help="repetitions; the median is reported")
    add("--json", metavar="FILE", help="also write the rows to FILE")


def run(args: argparse.Namespace) -> list[Row]:
    """Measure and print a table; returns its rows: processes, s, ratio, load."""
    check_at_least(args, 2, ["jobs"], at_most=1024)
    check_at_least(args, 1, ["images", "rounds"], at_most=1_000_000)
    with tempfile.TemporaryDirectory() as place:
        seconds = _measure(args, Path(place))
    first = statistics.median(seconds[1])
    rows = [
        {
            "processes": jobs,
            "images/s": args.images / statistics.median(values),
            "times as fast": first / statistics.median(values),
            "load": os.getloadavg()[0],
        }
        for jobs, values in seconds.items()
    ]
    print(tabulate(rows, headers="keys", floatfmt=".3g"))
    write_rows(args.json, rows)
    return rows


def _measure(args: argparse.Namespace, place: Path) -> dict[int, list[float]]:
    """Wall-clock seconds per round, by number of processes."""
    clip = load_clip(args.backbone, "fp32", "cpu")
    photos = photographs(place / "photos", args.images, args.photos)
    paths = [str(photos[number % len(photos)]) for number in range(args.images)]
    step = max(1, args.images // (_PIECES * args.jobs))
    transform = field_transform(clip, 1)
    pieces = [
        Piece(("test_features",), number, tuple(paths[start : start + step]), transform, 1, 0, "bench")
        for number, start in enumerate(range(0, len(paths), step))
    ]
    encoding = Encoding(place / "features", args.backbone, clip.digest, "fp32", False, False, False, step, 0, False)

    def clocked(each: Workers, some: list[Piece]) -> float:
        shutil.rmtree(encoding.folder, ignore_errors=True)
        start = time.perf_counter()
        for _ in each(functools.partial(encode_piece, encoding=encoding), some):
            pass
        return time.perf_counter() - start

    found: dict[int, list[float]] = {1: [], args.jobs: []}
    with local_workers(1, threads=1) as single, local_workers(args.jobs, threads=1) as several:
        clocked(single, pieces[:1])
        clocked(several, pieces)  # each of them loads the backbone
        for _ in range(args.rounds):
            found[1].append(clocked(single, pieces))
            found[args.jobs].append(clocked(several, pieces))
    return found
