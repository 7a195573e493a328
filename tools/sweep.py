"""Train every combination of methods, datasets, numbers of shots and seeds.

    python tools/sweep.py --trainers all --shots 1 2 4 8 16 --seeds 1 2 3
    python tools/sweep.py --trainers ZeroshotCLIP TaskRes --datasets caltech101 dtd --root DATA
    python tools/report.py output/sweep

Repeat the command to resume a sweep: finished runs are skipped, failed and interrupted ones are run again.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from dassl_lite.engine.build import TRAINER_REGISTRY, uses_shots
from dassl_lite.engine.commands.arguments import (
    DEFAULT_DATASET,
    DatasetChoice,
    ToolParser,
    add_config_flags,
    add_dataset_flags,
    add_model_flags,
    add_ray_flags,
    check_at_least,
    config_arguments,
    dataset_choices,
    refuse_keys,
    refuse_without_effect,
    tool_parser,
)
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.on_ray import cluster_of
from dassl_lite.engine.commands.sweep import Settings, all_methods, compatible_methods, sweep, tasks
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, get_logger, setup_logger

logger = get_logger(__name__)

# Config keys that the combinations set -> what to use in their place.
IGNORED = {
    **{"SEED": "--seeds", "DATASET.NUM_SHOTS": "--shots", "OUTPUT_DIR": "--output-dir", "TRAINER.NAME": "--trainers"},
    **{"RESUME": "", "VERBOSE": ""},
}


def make_parser() -> ToolParser:
    """The flags of sweep.py."""
    parser = tool_parser("sweep", __doc__)
    add = parser.add_argument
    add("--trainers", nargs="+", default=["all"], metavar="NAME", help="methods")
    add_model_flags(parser)
    add(
        "--shots",
        dest="numbers_of_shots",
        nargs="+",
        type=int,
        default=[1, 2, 4, 8, 16],
        metavar="N",
        help="training images per class; -1 for all",
    )
    add("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N", help="seeds")
    add("--output-dir", default="output/sweep", metavar="DIR", help="folder for the sweep")
    add("--jobs", type=int, metavar="N", help="runs at a time (default: with a GPU 1, else one per core, at most 4)")
    add_dataset_flags(parser, several=True, alias="--datasets")
    add_ray_flags(parser)
    parser.ignores("--ray", "--jobs")
    add_config_flags(parser)
    return parser


def default_jobs() -> int:
    """Small models gain from one core and little from two; runs that share a GPU compete for its time and memory."""
    import torch  # only now: a signal that comes while it loads must find the handlers of dassl_lite.startup

    return 1 if torch.cuda.is_available() else min(4, os.cpu_count() or 1)


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    cluster = cluster_of(args)
    if args.jobs is None:
        args.jobs = default_jobs()
    check_at_least(args, 1, ["jobs"], at_most=1024)
    refuse_keys(args.options, IGNORED, "in a sweep")
    setup_logger()
    load_plugins(args.plugin)

    trainers = all_methods() if args.trainers == ["all"] else args.trainers
    datasets = dataset_choices(args) or [DatasetChoice(DEFAULT_DATASET)]  # its folder, if DATASET.NAME names another
    for attribute, flag in args.given.items():
        if attribute in ("numbers_of_shots", "seeds") and not any(uses_shots(name) for name in trainers):
            raise UserError(f"{flag} has no effect on {', '.join(trainers)}: one run is all there is")
    for number in args.numbers_of_shots:
        if number < -1 or number == 0:
            raise UserError(f"--shots {number} must be at least 1, or -1 for all images")
    shared = config_arguments(args, DatasetChoice(), trainer="")
    todo = tasks(trainers, datasets, args.numbers_of_shots, args.seeds)
    if args.trainers == ["all"]:
        trainers = compatible_methods(trainers, todo[0].config(shared, Path(args.output_dir)))
        todo = [task for task in todo if task.trainer in trainers]
    kinds = [TRAINER_REGISTRY.get(name) for name in trainers]
    named = {task.dataset: task for task in todo}
    configs = [task.config(shared, Path(args.output_dir)) for task in named.values()]
    if len({cfg.DATASET.NAME for cfg in configs}) == 1:
        refuse_without_effect(args, kinds, configs[0])
    failed = sweep(todo, Settings(Path(args.output_dir), shared, tuple(args.plugin), args.jobs, cluster))
    if failed:
        rows = [[str(task.folder), textwrap.shorten(reason, 300)] for task, reason in failed.items()]
        logger.warning("some runs failed\n" + tabulate(rows, headers=["failed run", "reason"]))
    logger.info(f"Results: {args.output_dir} (python tools/report.py {args.output_dir})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
