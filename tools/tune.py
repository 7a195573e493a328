"""Search for a method's best settings by validation accuracy; test images are never read.

    python tools/tune.py --trainer TaskRes --space OPTIM.LR=1e-4:1e-1:log TRAINER.TaskRes.RESIDUAL_SCALE=0.1,0.5,1.0
    python tools/tune.py --trainer LPPlusPlus --data FOLDER --shots 4 --space OPTIM.MAX_EPOCH=50:500:int --trials 30

A range is lo:hi; add :log for a logarithmic scale and :int for integers. a,b,c are choices. Repeat the command to
resume; with more --trials, it continues from there. The best settings are written as a recipe for tools/train.py
--config-file.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from tabulate import tabulate

from dassl_lite.config.check import leaves
from dassl_lite.data import published_name
from dassl_lite.engine.build import TRAINER_REGISTRY
from dassl_lite.engine.commands import search_space, search_trial, tune
from dassl_lite.engine.commands.arguments import (
    ToolParser,
    add_config_flags,
    add_dataset_flags,
    add_method_flags,
    add_model_flags,
    add_ray_flags,
    check_at_least,
    config_arguments,
    dataset_choice,
    plugins_in,
    refuse_keys,
    refuse_without_effect,
    tool_parser,
)
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.on_ray import cluster_of, ray_workers
from dassl_lite.engine.commands.search_trial import COMPLETE, FAILED, PRUNED, Result, Search
from dassl_lite.engine.commands.tune import Study
from dassl_lite.engine.commands.workers import Workers, local_workers, this_process
from dassl_lite.engine.files.run_lock import only_run_in
from dassl_lite.engine.plugins import COMPAT, load_plugins
from dassl_lite.utils import UserError, get_logger, setup_logger
from dassl_lite.utils.errors import shown
from dassl_lite.utils.lazy import optional_module

logger = get_logger(__name__)

MOST_TRIALS = 100_000
BEST = 5  # trials in the closing table


def make_parser() -> ToolParser:
    """The flags of tune.py; those that trainers declare are there once plug-ins are loaded."""
    parser = tool_parser("tune", __doc__)
    add = parser.add_argument
    add("--trainer", default="", metavar="NAME", help="method to tune, such as TaskRes")
    add(
        "--space",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=RANGE",
        help=f"what to search: {search_space.FORMS}",
    )
    add("--trials", type=int, default=50, metavar="N", help="total number of trials")
    add_model_flags(parser)
    add("--shots", type=int, metavar="N", help="training images per class (default: as the recipe says)")
    add("--seed", type=int, default=1, metavar="N", help="seed of the search and, without --seeds, of its runs")
    add(
        "--seeds",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="seeds of draws and training; trials average over them",
    )
    add(
        "--folds",
        type=int,
        metavar="N",
        help="validate on training images by N-fold cross-validation; as many as --shots is leave-one-out (default: "
        "the validation images; without any, 5)",
    )
    add("--no-pruning", action="store_true", help="finish every trial, even hopeless ones")
    add("--jobs", type=int, default=1, metavar="N", help="trials at a time, proposed together")
    add("--output-dir", default="", metavar="DIR", help="folder of the search (default: output/tune/TRAINER/DATASET)")
    add_method_flags(parser)
    add_dataset_flags(parser)
    add_ray_flags(parser)
    add_config_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    setup_logger()
    load_plugins(plugins_in(argv))
    args = make_parser().parse_args(argv)
    cluster_of(args)  # what is wrong with it is told before anything is read
    search = _search(args)
    optional_module("optuna", "tune", "tune.py")
    search.folder.mkdir(parents=True, exist_ok=True)
    with only_run_in(search.folder):
        search_trial.remove_leftovers(search.folder)
        study = Study(search)
        try:
            if not study.results:
                search_trial.prepare(search)
            logger.info(f"Trials are measured on {search.measured_on}")
            with _workers(args) as each:
                tune.search_all(search, study, each)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("stopped; repeat the command to continue") from None
        finally:
            setup_logger()
            tune.write_table(study, search.folder / tune.TABLE)
        best = study.best
        if best is None:
            reason = next((one.reason for one in study.before(sys.maxsize) if one.reason), "all were broken off")
            raise UserError(f"none of {len(study.results)} trials succeeded: {reason}")
        _finish(args, search, study, best, sys.argv[1:] if argv is None else argv)
    return 0


def _workers(args: argparse.Namespace) -> AbstractContextManager[Workers]:
    """What does the trials."""
    cluster = cluster_of(args)
    if cluster is not None:
        return ray_workers(cluster, args.plugin)
    return local_workers(args.jobs, args.plugin) if args.jobs > 1 else this_process()


def _search(args: argparse.Namespace) -> Search:
    """The search that the command line describes.

    Raises:
        UserError: something of it is wrong.
    """
    if not args.trainer:
        raise UserError(f"--trainer is missing; choices: {', '.join(sorted(TRAINER_REGISTRY))}")
    kind = TRAINER_REGISTRY.get(args.trainer)
    if not args.space:
        raise UserError(f"--space is missing: {search_space.FORMS}")
    check_at_least(args, 1, ["jobs"], at_most=1024)
    check_at_least(args, 1, ["trials"], at_most=MOST_TRIALS)
    check_at_least(args, 0, ["seed", "seeds"])
    if args.folds is not None:
        check_at_least(args, 2, ["folds"], at_most=1000)
    if len(set(args.seeds)) < len(args.seeds):
        raise UserError("--seeds has a seed twice")
    refuse_keys(args.options, search_space.FIXED, "in a search")
    shared, seeds = config_arguments(args), tuple(args.seeds or [args.seed])
    plain = Search(args.trainer, shared, (), Path(), seeds=seeds).config(seeds[0])
    values = leaves(plain)
    space = search_space.parse_space(args.space, values.get)
    search_space.check_space(space, shared, args.trainer)
    given = set(args.options[::2]) & {one.key for one in space}
    if given:
        raise UserError(f"{sorted(given)[0]} is both in --space and at the end of the line; leave one of them out")
    refuse_without_effect(args, [kind], plain, searched=[one.key for one in space])
    name = published_name(plain)
    return Search(
        args.trainer,
        shared,
        space,
        Path(args.output_dir or Path("output") / "tune" / args.trainer / name),
        trials=args.trials,
        seed=args.seed,
        seeds=seeds,
        folds=search_trial.with_folds(args.folds or 0, plain),
        prunes=not args.no_pruning,
        jobs=args.jobs,
    )


def _finish(args: argparse.Namespace, search: Search, study: Study, best: Result, argv: Sequence[str]) -> None:
    """Write the recipe, and tell what was found."""
    path = search.folder / tune.RECIPE
    states = [one.state for one in study.results.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in (COMPLETE, PRUNED, FAILED) if state in states)
    data = dataset_choice(args)
    tree = tune.recipe_of(search, best, data)
    command = ["python", "tools/train.py", "--trainer", args.trainer, "--config-file", str(path), *_data_words(args)]
    command += ["--seed", str(search.seeds[0])]
    pairs = zip(args.options[::2], args.options[1::2], strict=True)
    command += [word for key, text in pairs if key in search_space.DATA_KEYS for word in (key, text)]
    optuna = optional_module("optuna", "tune", "tune.py")
    value = f"{best.value:.2f} % {best.metric}"
    header = [
        f"{args.trainer}: the best of {len(states)} trials on {published_name(search.config(search.seeds[0]))}.",
        f"Run:    {shlex.join(command)}",
        f"Source: {shlex.join(['python', 'tools/tune.py', *argv])} (trial {best.number}; {counts}; Optuna "
        f"{optuna.__version__})",
        f"Expect: {value} on {search.measured_on}; test images were not looked at",
    ]
    tune.write_recipe(tree, header, path)
    keys = [one.key for one in search.space]
    ranked = sorted(
        (one for one in study.results.values() if one.state == COMPLETE), key=lambda r: (-r.value, r.number)
    )
    rows = [[one.number, f"{one.value:.2f}", *(shown(one.params[key]) for key in keys)] for one in ranked[:BEST]]
    table = tabulate(rows, ["trial", f"{best.metric} %", *keys], disable_numparse=True)
    logger.info(f"\n{table}\n\n{len(states)} trials: {counts}; measured on {search.measured_on}")
    if importances := study.importances():
        logger.info("Share of the differences by key: " + ", ".join(f"{k} {v:.0%}" for k, v in importances.items()))
    logger.info(f"Best: trial {best.number}, {value}\nTrials: {search.folder / tune.TABLE}\nRecipe: {path}")


def _data_words(args: argparse.Namespace) -> list[str]:
    """The flags that say which dataset it is, as they were typed."""
    flags = {"--root": args.root, "--dataset-config-file": args.dataset_config_file, "--data": args.data}
    words = [word for flag, value in flags.items() if value for word in (flag, value)]
    for plugin in args.plugin:
        words += ["--dassl-compat"] if plugin == COMPAT else ["--plugin", plugin]
    return words + ["--allow-new-keys"] * args.allow_new_keys


if __name__ == "__main__":
    sys.exit(run_tool(main))
