"""Train many methods on many datasets with many shots and seeds.

    python tools/sweep.py --trainers all --shots 1 2 4 8 16 --seeds 1 2 3
    python tools/report.py output/sweep

Type the same line again to go on: finished runs are skipped, failed and interrupted ones are run again.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate
from yacs.config import CfgNode

from dassl_lite.engine.build import default_recipe, make_config
from dassl_lite.engine.cli import add_common_flags, run_tool
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.engine.sweep import Task, all_methods, sweep, tasks
from dassl_lite.utils import get_logger, setup_logger

logger = get_logger("sweep")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sweep.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--trainers", nargs="+", default=["all"], help="registered names, or all")
    add("--datasets", nargs="+", default=["demo"], help="yaml files or names of datasets")
    add("--shots", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    add("--seeds", nargs="+", type=int, default=[1, 2, 3])
    add("--backbone", default="", help="CLIP backbone")
    add("--output-dir", default="output/sweep", help="the sweep's folder")
    add_common_flags(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    setup_logger()
    load_plugins(args.plugin)

    def config(task: Task) -> CfgNode:
        flags: dict[str, Any] = {"DATASET": {"NUM_SHOTS": task.shots or -1}, "SEED": task.seed}
        if args.root:
            flags["DATASET"]["ROOT"] = args.root
        if args.backbone:
            flags["MODEL"] = {"BACKBONE": {"NAME": args.backbone}}
        return make_config(
            trainer=task.trainer,
            dataset_file=task.dataset,
            method_file=default_recipe(task.trainer),
            flags=flags,
            options=args.options,
            allow_new_keys=args.allow_new_keys,
        )

    trainers = all_methods() if args.trainers == ["all"] else args.trainers
    todo = tasks(trainers, args.datasets, args.shots, args.seeds)
    failed = sweep(todo, Path(args.output_dir), config)
    if failed:
        rows = [[str(task.folder), textwrap.shorten(reason, 300)] for task, reason in failed.items()]
        logger.warning("\n" + tabulate(rows, headers=["failed run", "why"]))
    logger.info(f"Results: {args.output_dir} (python tools/report.py {args.output_dir})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
