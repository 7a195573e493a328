"""Run the field's protocols, training and evaluation, and print the tables that papers show.

    python tools/benchmark.py all --trainers ZeroshotCLIP TaskRes
    python tools/benchmark.py few-shot --trainers TaskRes CoOp --root DATA --backbone ViT-B/16
    python tools/benchmark.py base-to-new --trainers all --root DATA --backbone ViT-B/16 --dry-run

The protocols are few-shot, base-to-new, cross-dataset and domain-generalization. Without --root, they run on the
embedded datasets. Repeat the command to resume: finished runs and evaluations are skipped. Datasets that are not on
this machine are listed and left out. For any other combination, use sweep.py.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from dassl_lite.engine.build import TRAINER_REGISTRY, make_config
from dassl_lite.engine.commands.arguments import (
    DatasetChoice,
    ToolParser,
    add_backbone_flag,
    add_config_flags,
    add_ray_flags,
    add_root_flag,
    check_at_least,
    config_arguments,
    refuse_conflicts,
    refuse_keys,
    tool_parser,
)
from dassl_lite.engine.commands.benchmark import (
    FEW_SHOT,
    PROTOCOLS,
    SHOTS,
    Datasets,
    Plan,
    evaluate_all,
    forecast,
    has_runs,
    note_on_length,
    plan,
    plan_table,
    write_notes,
)
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.on_ray import cluster_of
from dassl_lite.engine.commands.report import make_report
from dassl_lite.engine.commands.sweep import Settings, all_methods, compatible_methods, sweep
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.tools.report import report
from dassl_lite.tools.sweep import IGNORED as IN_A_SWEEP
from dassl_lite.tools.sweep import default_jobs
from dassl_lite.utils import UserError, get_logger, setup_logger

logger = get_logger(__name__)

# Config keys that the protocols set -> what to use in their place.
IGNORED = {
    **IN_A_SWEEP,
    **{"DATASET.NAME": "--datasets", "DATASET.SUBSAMPLE_CLASSES": "base-to-new", "DATASET.ROOT": "--root"},
}
DEMO_SHOTS, DEMO_SEEDS = (1, 4, 16), (1,)  # of the embedded datasets, to keep it short


def make_parser() -> ToolParser:
    """The flags of benchmark.py."""
    parser = tool_parser("benchmark", __doc__)
    parser.set_defaults(dataset_config_file=[], data=[])
    add = parser.add_argument
    add("protocol", choices=[*PROTOCOLS, "all"], metavar="PROTOCOL", help=f"{', '.join(PROTOCOLS)} or all")
    add("--trainers", nargs="+", default=["all"], metavar="NAME", help="methods")
    add_backbone_flag(parser)
    add(
        "--shots",
        dest="numbers_of_shots",
        nargs="+",
        type=int,
        metavar="N",
        help=f"training images per class of few-shot (default: {_listed(SHOTS)}; without --root {_listed(DEMO_SHOTS)})",
    )
    seeds = f"(default: 1 2 3; without --root {_listed(DEMO_SEEDS)})"
    add("--seeds", nargs="+", type=int, metavar="N", help=f"seeds {seeds}")
    add(
        "--datasets", nargs="+", default=[], metavar="NAME", help="only these of the protocol's datasets (default: all)"
    )
    add("--output-dir", default="output/benchmark", metavar="DIR", help="folder for the benchmark")
    add("--jobs", type=int, metavar="N", help="runs at a time (default: with a GPU 1, else one per core, at most 4)")
    about = "without --root: train encoders for the full length of the recipe instead of a tenth"
    add("--full-length", action="store_true", help=about)
    add("--dry-run", action="store_true", help="print the plan with an estimate of time and disk space, and exit")
    add_root_flag(parser)
    add_ray_flags(parser)
    parser.ignores("--ray", "--jobs")
    add_config_flags(parser)
    parser.usage = "%(prog)s PROTOCOL [options] [KEY VALUE ...]"
    return parser


def _listed(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    protocols = PROTOCOLS if args.protocol == "all" else (args.protocol,)
    drawn = not args.root
    if args.full_length and not drawn:
        raise UserError("--full-length has no effect with --root: no recipe is shortened there")
    if args.numbers_of_shots is not None and FEW_SHOT not in protocols:
        raise UserError(f"--shots has no effect on {args.protocol}, which trains with 16")
    args.numbers_of_shots = args.numbers_of_shots or list(DEMO_SHOTS if drawn else SHOTS)
    args.seeds = args.seeds or list(DEMO_SEEDS if drawn else (1, 2, 3))
    cluster = cluster_of(args)
    args.jobs = default_jobs() if args.jobs is None else args.jobs
    check_at_least(args, 1, ["jobs"], at_most=1024)
    for number in args.numbers_of_shots:
        if number < -1 or number == 0:
            raise UserError(f"--shots {number} must be at least 1, or -1 for all images")
    refuse_conflicts(args)
    refuse_keys(args.options, IGNORED, "in a benchmark")
    setup_logger()
    load_plugins(args.plugin)

    folder = Path(args.output_dir)
    shared = config_arguments(args, DatasetChoice(), trainer="")
    trainers = all_methods() if args.trainers == ["all"] else list(dict.fromkeys(args.trainers))
    for name in trainers:
        TRAINER_REGISTRY.get(name)  # an unknown one ends it here
    if args.trainers == ["all"]:
        keys = shared["flags"], shared["options"], shared["allow_new_keys"]
        trainers = compatible_methods(trainers, make_config(flags=keys[0], options=keys[1], allow_new_keys=keys[2]))
    made = plan(
        protocols,
        trainers,
        shared,
        datasets=Datasets.demo() if drawn else Datasets.field(),
        only=args.datasets,
        shots=args.numbers_of_shots,
        seeds=args.seeds,
        short=drawn and not args.full_length,
    )
    note = note_on_length(made, shared)
    _tell(made, folder, args.jobs)
    if note:
        logger.info(note)
    if args.dry_run or not made.runs:
        return 0
    write_notes([note] if note else [], folder)
    settings = Settings(folder, shared, tuple(args.plugin), args.jobs, cluster)
    failed = {str(task.folder): reason for task, reason in sweep(made.runs, settings).items()}
    failed |= evaluate_all(made, settings)
    if has_runs(folder):
        report(make_report(folder))
    if failed:
        rows = [[what, textwrap.shorten(reason, 300)] for what, reason in failed.items()]
        logger.warning("some runs or evaluations failed\n" + tabulate(rows, headers=["failed", "reason"]))
    return 1 if failed else 0


def _tell(made: Plan, folder: Path, jobs: int) -> None:
    """Log the plan, what it leaves out, and about what is to come."""
    if made.runs:
        logger.info(plan_table(made).as_text())
        logger.info("\n" + "\n".join(forecast(made, folder, jobs)))
    if made.missing:
        rows = [[name, textwrap.shorten(reason, 300)] for name, reason in made.missing.items()]
        logger.info("\nnot on this machine, so left out\n" + tabulate(rows, headers=["dataset", "reason"]))
    if not made.runs:
        logger.warning("there is nothing to do: no dataset of the protocol is on this machine")


if __name__ == "__main__":
    sys.exit(run_tool(main))
