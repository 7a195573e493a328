"""Download the field's datasets, or check the ones on disk.

    python tools/prepare.py EuroSAT DescribableTextures --root DATA
    python tools/prepare.py --check Caltech101 --root DATA
    python tools/prepare.py --check all --root DATA

Files that may be downloaded are downloaded, verified and unpacked into the expected layout; for the others it prints
what to download by hand. Interrupted downloads resume, and nothing is downloaded twice. The check counts images and
classes without decoding them; it exits with 1 if something is wrong.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence

from tabulate import tabulate
from yacs.config import CfgNode

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.data.doctor import COLUMNS, Report, examine, generates_itself
from dassl_lite.downloads import SOURCES, prepare
from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands.arguments import ToolParser, add_plugin_flags, add_root_flag, tool_parser
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, get_logger, setup_logger

logger = get_logger(__name__)

EXIT_WRONG = 1
ALL = "all"


def make_parser() -> ToolParser:
    """The flags of prepare.py."""
    parser = tool_parser("prepare", __doc__, "%(prog)s [options] NAME [NAME ...]")
    add = parser.add_argument
    add("names", nargs="+", metavar="NAME", help=f"registered datasets, or {ALL} for the field's fifteen")
    add("--check", action="store_true", help="only check what is on disk")
    add("--keep-archives", action="store_true", help="keep downloaded archives after unpacking them")
    add_root_flag(parser)
    add_plugin_flags(parser)
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


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    setup_logger()
    load_plugins(args.plugin)
    cfg = make_config(flags={"DATASET": {"ROOT": args.root}})
    names = [name for given in args.names for name in (SOURCES if given == ALL else [given])]
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
    return EXIT_WRONG if any(report.problems for report in reports) else 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
