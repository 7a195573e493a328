"""How long a dataset of ImageNet's size takes to be listed, labelled and checked.

Empty files are made in a folder that is deleted afterwards. Folders are read on every run, and nothing of them is kept,
so a listing is never out of date. The first time, the system may have to read them from disk.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from dassl_lite.config import get_cfg_default
from dassl_lite.data import build_dataset
from dassl_lite.data.imagenet import imagenet_classes
from dassl_lite.engine.commands.arguments import ToolParser, check_at_least
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.tools._bench import Row, write_rows
from dassl_lite.utils import UserError

NAME = "listing"
DATASETS = {"ImageNet": "", "ImageFolder": "imagenet/images"}  # dataset -> its root within the folder
_ROUNDS = ("first", "again")


def add_parser(subparsers: argparse._SubParsersAction[ToolParser]) -> None:
    """Declare the flags of ``bench.py listing``."""
    parser = subparsers.add_parser(NAME, help="listing the folders of a large dataset", description=__doc__)
    add = parser.add_argument
    add("--classes", type=int, default=1000, metavar="K", help="classes")
    add("--images", type=int, default=1280, metavar="N", help="training images of each; 50 more are for testing")
    add("--folder", default="", metavar="DIR", help="where the files are made (default: a temporary folder)")
    add("--json", default="", metavar="FILE", help="write the numbers as JSON")


def run(args: argparse.Namespace) -> list[Row]:
    """Measure and print a table; returns its rows: dataset, images, round, CPU s, s."""
    check_at_least(args, 2, ("classes",), at_most=1000)
    check_at_least(args, 1, ("images",), at_most=1_000_000)
    rows: list[Row] = []
    load_plugins()
    try:
        with tempfile.TemporaryDirectory(dir=args.folder or None) as place:
            make_files(Path(place), args.classes, args.images)
            for name, root in DATASETS.items():
                for number in _ROUNDS:
                    rows.append(_measure(name, Path(place, root), number))
    except OSError as error:
        raise UserError(f"cannot make the files in '{args.folder}': {error.strerror or error}") from error
    print(tabulate(rows, headers="keys", floatfmt=".3g", intfmt=","))
    write_rows(args.json, rows)
    return rows


def make_files(folder: Path, classes: int, images: int) -> None:
    """Make ImageNet's folders with empty files."""
    wnids = imagenet_classes().ids[:classes]
    for part, count in (("train", images), ("val", 50)):
        for wnid in wnids:
            place = folder / "imagenet" / "images" / part / wnid
            place.mkdir(parents=True)
            for number in range(count):
                os.close(os.open(place / f"{wnid}_{number}.JPEG", os.O_CREAT | os.O_WRONLY))
    names = "".join(f"{wnid} thing {number}\n" for number, wnid in enumerate(wnids))
    (folder / "imagenet" / "classnames.txt").write_text(names)


def _measure(name: str, root: Path, number: str) -> Row:
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = name, str(root)
    cpu, wall = time.process_time(), time.perf_counter()
    dataset = build_dataset(cfg)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    images = len(dataset.train_x) + len(dataset.test or ())
    return {"dataset": name, "images": images, "round": number, "CPU s": cpu, "s": wall}
