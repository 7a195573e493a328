"""Download the field's datasets, or check the ones on disk and your own images.

    python tools/prepare.py EuroSAT DescribableTextures --root DATA
    python tools/prepare.py --check Caltech101 --root DATA
    python tools/prepare.py --check all --root DATA
    python tools/prepare.py --check FOLDER TABLE.csv

Files that may be downloaded are downloaded, verified and unpacked into the expected layout; for the rest, it prints
what to download by hand. Interrupted downloads resume, and nothing is downloaded twice. The check counts images and
classes without decoding images. For your own data, it says how it is interpreted, and reads every image. The exit code
is 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm
from yacs.config import CfgNode

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.data.doctor import COLUMNS, Report, examine, generates_itself
from dassl_lite.data.own_check import OwnReport, Seen, check_own_data
from dassl_lite.data.sharded.remote import dataset_at
from dassl_lite.downloads import SOURCES, prepare
from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands.arguments import (
    ToolParser,
    add_data_flag,
    add_plugin_flags,
    add_root_flag,
    nested,
    own_data,
    tool_parser,
)
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, get_logger, setup_logger

logger = get_logger(__name__)

EXIT_WRONG = 1
ALL = "all"
OWN_SUFFIXES = (".csv", ".tsv", ".npz")
MOST_CLASSES = 40  # in the table of one's own data; of more, the smallest and largest are shown


def make_parser() -> ToolParser:
    """The flags of prepare.py."""
    parser = tool_parser("prepare", __doc__, "%(prog)s [options] NAME [NAME ...]")
    add = parser.add_argument
    what = f"registered datasets, {ALL} for the field's fifteen, or paths to your own data"
    add("names", nargs="*", metavar="NAME", help=what)
    add_data_flag(parser, several=True)
    add("--check", action="store_true", help="only check what is on disk")
    add("--keep-archives", action="store_true", help="keep downloaded archives after unpacking them")
    add_root_flag(parser)
    add_plugin_flags(parser)
    parser.ignores("--check", "--keep-archives")
    return parser


def get_dataset(name: str, cfg: CfgNode, keep_archives: bool) -> None:
    """Download one of the field's datasets, or draw an embedded one."""
    if name in SOURCES:
        if not cfg.DATASET.ROOT:
            raise UserError("--root is missing: the folder that contains the datasets' folders")
        prepare(name, cfg.DATASET.ROOT, keep_archives=keep_archives)
        return
    dataset_class = DATASET_REGISTRY.get(name)
    if not generates_itself(name):
        raise UserError(f"dataset {name} cannot be downloaded; choices: {', '.join(SOURCES)}")
    dataset = dataset_class.__new__(dataset_class)
    dataset.locate(cfg)
    dataset.prepare()


@contextlib.contextmanager
def quiet(name: str) -> Iterator[None]:
    """Only warnings from the loggers below ``name``: the table has the rest."""
    quieted = get_logger(name)
    level = quieted.level
    quieted.setLevel(logging.WARNING)
    try:
        yield
    finally:
        quieted.setLevel(level)


def show(reports: Sequence[Report]) -> None:
    """Log the table and, below it, what is wrong."""
    rows = [row for report in reports for row in report.rows()]
    logger.info(tabulate(rows, headers=COLUMNS, intfmt=",", missingval="?", disable_numparse=[0, 1, 6, 7]))
    problems = [f"{report.dataset}: {text}" for report in reports for text in (*report.notes, *report.problems)]
    in_order = sum(not report.problems for report in reports)
    logger.info("\n".join(["", *problems, f"{in_order} of {len(reports)} in order"]))


def is_own(name: str) -> bool:
    """Whether a name is the path of the user's own data, and not that of a registered dataset."""
    return name not in DATASET_REGISTRY and name != ALL and (os.path.exists(name) or Path(name).suffix in OWN_SUFFIXES)


def check_own(path: str) -> OwnReport:
    """Check the user's own data and log what was found."""

    def progress(seen: Iterable[Seen], total: int) -> Iterable[Seen]:
        return tqdm(seen, desc="Reading images", total=total, unit="image", leave=False, file=sys.stderr)

    with quiet("dassl_lite.data"):
        report = check_own_data(path, progress)
    logger.info(describe_own(report) + "\n")
    return report


def check_shards(path: str) -> bool:
    """Index the user's shards and log the table of their splits; returns whether something is wrong."""
    keys = own_data(path)
    with quiet("dassl_lite.data"):
        report = examine(keys["DATASET.NAME"], make_config(flags=nested(keys)))
    logger.info(f"{path}: shards, read as {keys['DATASET.NAME']}")
    show([report])
    return bool(report.problems)


def describe_own(report: OwnReport) -> str:
    """The report as text: what the data is, a table of its classes, and what is wrong."""
    counts = [f"{count:,} {part}".rstrip() for part, count in report.images.items()]
    facts = {
        "taken for": report.taken,
        "classes": f"{len(report.classes):,}" if report.classes else "",
        "images": ", ".join(counts),
        "formats": ", ".join(f"{kind} {count:,}" for kind, count in report.formats.most_common()),
        "sizes": report.sizes,
    }
    lines = [report.path, *(f"  {name:<9}  {text}" for name, text in facts.items() if text)]
    if report.classes:
        names = [0, 1] if report.folders else [0]
        lines += ["", tabulate(class_rows(report), class_columns(report), intfmt=",", disable_numparse=names)]
    for title, texts in (("Problems", report.problems), ("Warnings", report.warnings)):
        if texts:
            lines += ["", f"{title}:", *(f"  - {text}" for text in texts)]
    if not report.problems:
        command = (
            "train --trainer TaskRes --shots 16 --backbone ViT-B/16" if report.trainable else "eval --model-dir RUN"
        )
        lines += ["", f"Ready: dassl-lite {command} --data {shlex.quote(report.path)}"]
    return "\n".join(lines)


def class_columns(report: OwnReport) -> list[str]:
    """Headers of the table of classes."""
    return ["class", *(["folder"] if report.folders else []), *(part or "images" for part in report.counts)]


def class_rows(report: OwnReport) -> list[list[str | int]]:
    """A row per class; of many classes, the smallest and the largest ones."""
    per_class = zip(*report.counts.values(), strict=True)
    rows: list[list[str | int]] = [
        [name, *([report.folders.get(name, "")] if report.folders else []), *counts]
        for name, counts in zip(report.classes, per_class, strict=True)
    ]
    if len(rows) <= MOST_CLASSES:
        return rows
    start = len(rows[0]) - len(report.counts)
    ordered = sorted(rows, key=lambda row: sum(int(cell) for cell in row[start:]))
    half = MOST_CLASSES // 2
    left = f"... {len(rows) - MOST_CLASSES:,} more ..."
    return [*ordered[:half], [left, *[""] * (len(rows[0]) - 1)], *ordered[-half:]]


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    setup_logger()
    load_plugins(args.plugin)
    own = [*(name for name in args.names if is_own(name)), *args.data]
    given = [name for name in args.names if name not in own]
    if not own and not given:
        raise UserError(f"nothing to {'check' if args.check else 'prepare'}: name datasets, {ALL} or your own data")
    if own and not args.check:
        raise UserError(f"{own[0]} is your own data, which needs no preparation; use --check to examine it")
    if args.root and not given:
        raise UserError("--root has no effect on your own data, whose path says where it is")
    wrong = [check_shards(path) if dataset_at(path) else bool(check_own(path).problems) for path in own]
    return EXIT_WRONG if (bool(given) and field(args, given)) or any(wrong) else 0


def field(args: argparse.Namespace, given: Sequence[str]) -> bool:
    """Download and check the field's datasets; returns whether something is wrong."""
    cfg = make_config(flags={"DATASET": {"ROOT": args.root}})
    names = [name for known in given for name in (SOURCES if known == ALL else [known])]
    failures = []
    for name in [] if args.check else names:
        try:
            get_dataset(name, cfg, args.keep_archives)
        except UserError as error:  # continue with the others
            failures.append(error)
    if failures:
        raise UserError("; ".join(str(failure) for failure in failures))
    with quiet("dassl_lite.data"):
        reports = [examine(name, cfg) for name in names]
    show(reports)
    return any(report.problems for report in reports)


if __name__ == "__main__":
    sys.exit(run_tool(main))
