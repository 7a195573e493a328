"""Get the field's datasets, or check what is there.

    python tools/prepare.py EuroSAT DescribableTextures --root DATA
    python tools/prepare.py --check Caltech101 --root DATA
    python tools/prepare.py --check all --root DATA

What may be downloaded is downloaded, checked and unpacked into the layout that the datasets read; for the rest it
says which files to fetch by hand. A download that was cut is continued, and nothing is fetched twice. The check
counts images and classes without decoding; its exit code is 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tabulate import tabulate

from dassl_lite.config import get_cfg_default
from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.data.doctor import COLUMNS, Report, examine, makes_itself
from dassl_lite.downloads import SOURCES, prepare
from dassl_lite.engine.commands.cli import ToolParser, run_tool
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, get_logger, setup_logger

logger = get_logger(__name__)

EXIT_WRONG = 1
ALL = "all"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ToolParser(prog="prepare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("names", nargs="+", metavar="NAME", help=f"registered names, or {ALL}: the field's fifteen datasets")
    add("--root", default="", help="folder that holds the datasets' folders")
    add("--check", action="store_true", help="only look at what is there")
    add("--keep-archives", action="store_true", help="keep downloaded archives beside what was in them")
    add("--plugin", action="append", default=[], metavar="FILE_OR_MODULE", help="import this first")
    add("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args(argv)


def datasets_config(root: str) -> Any:
    """The config with which a dataset finds its folder."""
    cfg = get_cfg_default()
    cfg.DATASET.ROOT = root
    cfg.freeze()
    return cfg


def get_dataset(name: str, cfg: Any, keep_archives: bool) -> None:
    """Download a dataset of the field's, or let one that draws itself do so."""
    if name in SOURCES:
        if not cfg.DATASET.ROOT:
            raise UserError("--root is missing: the folder that holds the datasets' folders")
        prepare(name, cfg.DATASET.ROOT, keep_archives=keep_archives)
        return
    dataset_class = DATASET_REGISTRY.get(name)
    if not makes_itself(name):
        raise UserError(f"dataset {name} is not one that can be downloaded; choices: {', '.join(SOURCES)}")
    dataset = dataset_class.__new__(dataset_class)
    dataset.locate(cfg)
    dataset.prepare()


@contextlib.contextmanager
def quiet(name: str) -> Iterator[None]:
    """Only warnings from the loggers under ``name``: the table says it all."""
    level = logging.getLogger(name).level
    logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        logging.getLogger(name).setLevel(level)


def show(reports: Sequence[Report]) -> None:
    """The table, and below it what is wrong."""
    rows = [row for report in reports for row in report.rows()]
    logger.info(tabulate(rows, headers=COLUMNS, intfmt=",", missingval="?", disable_numparse=[0, 1, 6, 7]))
    problems = [f"{report.dataset}: {text}" for report in reports for text in (*report.notes, *report.problems)]
    in_order = sum(not report.problems for report in reports)
    logger.info("\n".join(["", *problems, f"{in_order} of {len(reports)} in order"]))


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    setup_logger()
    load_plugins(args.plugin)
    cfg = datasets_config(args.root)
    names = [name for given in args.names for name in (SOURCES if given == ALL else [given])]
    failures = []
    for name in [] if args.check else names:
        try:
            get_dataset(name, cfg, args.keep_archives)
        except UserError as error:  # the others are still to be had
            failures.append(error)
    if failures:
        raise UserError("; ".join(str(failure) for failure in failures))
    with quiet("dassl_lite.data"):
        reports = [examine(name, cfg) for name in names]
    show(reports)
    return EXIT_WRONG if any(report.problems for report in reports) else 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
