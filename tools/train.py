"""Train a method, or evaluate a trained one with --eval-only.

    python tools/train.py --trainer TaskRes
    python tools/train.py --trainer TaskRes --root DATA --dataset-config-file caltech101 --shots 16 --seed 1
    python tools/train.py --trainer TaskRes --data FOLDER OPTIM.MAX_EPOCH 50

Without a dataset it trains on the embedded one, which needs no download. All of the reference's flags are accepted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from dassl_lite.engine.build import TRAINER_REGISTRY, make_config
from dassl_lite.engine.commands import describe, run
from dassl_lite.engine.commands.arguments import (
    PLUGIN_FLAGS,
    ToolParser,
    add_config_flags,
    add_dataset_flags,
    add_method_flags,
    add_model_flags,
    config_arguments,
    plugins_in,
    refuse_keys,
    refuse_without_effect,
    tool_parser,
)
from dassl_lite.engine.commands.cli import free_folder, prepare_output, run_tool
from dassl_lite.engine.commands.evaluate import for_testing, load_run
from dassl_lite.engine.parallel import distributed
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, setup_logger
from dassl_lite.utils.logger import say
from dassl_lite.utils.registry import is_ours

# Config keys without effect on an evaluation -> what to use in their place.
NOT_EVALUATED = {**dict.fromkeys(("MODEL.INIT_WEIGHTS", "OPTIM", "TRAIN"), ""), "RESUME": "--model-dir"}
FOR_OWN_DATA = "Auto"  # the method for --data, if none is named
NO_MODEL_DIR = "--eval-only needs --model-dir, the folder of the run to evaluate"


def make_parser() -> ToolParser:
    """The flags of train.py; those that trainers declare are there once plug-ins are loaded."""
    parser = tool_parser("train", __doc__)
    add = parser.add_argument
    add(
        "--trainer",
        default="",
        metavar="NAME",
        help="method to train, such as TaskRes (--list shows all; default with --data: Auto)",
    )
    add_model_flags(parser)
    add("--head", default="", metavar="NAME", help="head on the image features (MODEL.HEAD.NAME)")
    add("--transforms", nargs="+", metavar="NAME", help="training transforms (INPUT.TRANSFORMS)")
    add("--shots", type=int, metavar="N", help="training images per class (default: as the recipe says)")
    add("--seed", type=int, metavar="N", help="seed of the few-shot draw and of training (default: 1)")
    add("--output-dir", default="", metavar="DIR", help="folder for the run (default: output/TRAINER/DATASET-...)")
    add("--resume", nargs="?", const=True, default="", metavar="DIR", help="resume the run in DIR or in --output-dir")
    add("--overwrite", action="store_true", help="replace the run in --output-dir")
    add("--eval-only", action="store_true", help="evaluate the run in --model-dir, do not train")
    add("--model-dir", default="", metavar="DIR", help="run to evaluate with --eval-only")
    add("--load-epoch", type=int, metavar="N", help="checkpoint epoch to load (default: the best, else the last)")
    add("--no-train", action="store_true", help="build the trainer and stop before training")
    add("--list", action="store_true", help="list the registered trainers, datasets and other parts, and exit")
    add("--help-trainer", default="", metavar="NAME", help="print a trainer's config keys and recipes, and exit")
    add_method_flags(parser)
    add_dataset_flags(parser)
    add = parser.add_argument_group("domains").add_argument
    add("--source-domains", nargs="+", metavar="NAME", help="domains to train on (DATASET.SOURCE_DOMAINS)")
    add("--target-domains", nargs="+", metavar="NAME", help="domains to test on (DATASET.TARGET_DOMAINS)")
    add_config_flags(parser)
    for mode in ("--list", "--help-trainer"):
        parser.ignores(mode, but=PLUGIN_FLAGS)
    parser.ignores("--eval-only", "--resume", "--overwrite", "--no-train")
    parser.ignores("--no-train", "--resume", "--overwrite")
    parser.needs("--eval-only", "--model-dir", "--load-epoch")
    return parser


def config_of(args: argparse.Namespace) -> CfgNode:
    """The run's config: files, then flags, then options."""
    resume = args.resume if isinstance(args.resume, str) else ""
    cfg = make_config(**config_arguments(args, flags={"RESUME": resume}))
    return for_testing(cfg) if args.eval_only else cfg


def with_output(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """``cfg`` with the run's folder, which is created and, if none was given, chosen."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(distributed.on_first(lambda: _prepared_folder(cfg, args)))
    cfg.freeze()
    return cfg


def _prepared_folder(cfg: CfgNode, args: argparse.Namespace) -> Path:
    if args.output_dir or "OUTPUT_DIR" in args.options[::2]:
        folder = Path(cfg.OUTPUT_DIR)
    elif cfg.RESUME:
        folder = Path(cfg.RESUME)
    elif args.resume is True:
        if distributed.restarted():
            raise UserError(
                "torchrun has restarted this run, which is resumed only in a folder that --output-dir names"
            )
        raise UserError("--resume needs the run's folder: --resume DIR, or --output-dir DIR --resume")
    else:
        shots = f"{cfg.DATASET.NUM_SHOTS}shots" if cfg.DATASET.NUM_SHOTS > 0 else "all"
        folder = free_folder(Path("output") / cfg.TRAINER.NAME / f"{cfg.DATASET.NAME}-{shots}-seed{cfg.SEED}")
    writes = not args.no_train and not args.eval_only
    return prepare_output(folder, overwrite=args.overwrite and writes, resume=bool(args.resume) or not writes)


def main(argv: Sequence[str] | None = None) -> int:
    setup_logger()
    load_plugins(plugins_in(argv))
    args = make_parser().parse_args(argv)
    if args.list or args.help_trainer:
        say(describe.registered() if args.list else describe.trainer_help(args.help_trainer))
        return 0
    if distributed.restarted() and not (args.overwrite or args.eval_only or args.no_train):
        args.resume = args.resume or True
    if args.resume and args.overwrite:
        raise UserError("--resume continues the run in the folder, --overwrite replaces it; leave one of them out")
    if args.data and not args.eval_only:
        args.trainer = args.trainer or FOR_OWN_DATA
    if not args.trainer:
        raise UserError(f"--trainer is missing; choices: {', '.join(sorted(TRAINER_REGISTRY))}")
    kind = TRAINER_REGISTRY.get(args.trainer)  # reports a misspelt name before anything is created
    if args.overwrite and not (args.output_dir or "OUTPUT_DIR" in args.options[::2]):
        raise UserError("--overwrite has no effect without --output-dir: every run gets a new folder")
    if args.eval_only and not args.model_dir and getattr(kind, "takes_features", False) and kind.trains:
        raise UserError(NO_MODEL_DIR)  # other trainers must be built to know: a paper's zero-shot CLIP has no state
    cfg = config_of(args)
    refuse_without_effect(args, [kind], cfg)
    if args.eval_only and is_ours(kind):
        refuse_keys(args.options, NOT_EVALUATED, "with --eval-only")
    distributed.start(cfg.USE_CUDA)
    cfg = with_output(cfg, args)
    if not args.eval_only and not args.no_train:
        with run.session(cfg, overwrite=args.overwrite, skip_finished=bool(args.resume)) as trainer:
            if trainer is None:
                say(f"{cfg.OUTPUT_DIR} holds this run, finished: there is nothing to resume")
            else:
                trainer.train()
        return 0
    trainer = run.build(cfg)
    if args.eval_only:
        if trainer.has_state():
            if not args.model_dir:
                raise UserError(NO_MODEL_DIR)
            load_run(trainer, args.model_dir, args.load_epoch)
        elif args.model_dir or args.load_epoch is not None:
            flag = "--model-dir" if args.model_dir else "--load-epoch"
            raise UserError(f"{flag} has no effect: {args.trainer} learns nothing that is loaded")
        trainer.evaluate_split()
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
