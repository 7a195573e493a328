"""Train many methods on many datasets with many shots and seeds.

    python tools/sweep.py --trainers all --shots 1 2 4 8 16 --seeds 1 2 3
    python tools/report.py output/sweep

Type the same line again to go on: finished runs are skipped, failed and interrupted ones are run again.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from tabulate import tabulate

from dassl_lite.engine.commands.cli import ToolParser, add_common_flags, run_tool
from dassl_lite.engine.commands.sweep import Settings, all_methods, sweep, tasks
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, get_logger, setup_logger

logger = get_logger("sweep")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ToolParser(prog="sweep.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--trainers", nargs="+", default=["all"], help="registered names, or all")
    add("--datasets", nargs="+", default=["demo"], help="yaml files or names of datasets")
    add("--shots", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    add("--seeds", nargs="+", type=int, default=[1, 2, 3])
    add("--backbone", default="", help="CLIP backbone")
    add("--output-dir", default="output/sweep", help="the sweep's folder")
    add("--jobs", type=int, default=default_jobs(), help="runs at a time (default: one per core, at most 4; GPU: 1)")
    add_common_flags(parser)
    args = parser.parse_args(argv)
    if args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs}; it must be at least 1")
    return args


def default_jobs() -> int:
    """Small models use one core well and two badly; a GPU is shared badly, and big models need its memory."""
    return 1 if torch.cuda.is_available() else min(4, os.cpu_count() or 1)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    setup_logger()
    load_plugins(args.plugin)

    settings = Settings(args.root, args.backbone, tuple(args.options), tuple(args.plugin), args.allow_new_keys)
    trainers = all_methods() if args.trainers == ["all"] else args.trainers
    todo = tasks(trainers, args.datasets, args.shots, args.seeds)
    failed = sweep(todo, Path(args.output_dir), settings, args.jobs)
    if failed:
        rows = [[str(task.folder), textwrap.shorten(reason, 300)] for task, reason in failed.items()]
        logger.warning("\n" + tabulate(rows, headers=["failed run", "why"]))
    logger.info(f"Results: {args.output_dir} (python tools/report.py {args.output_dir})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
