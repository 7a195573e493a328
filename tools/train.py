"""Train a method, or evaluate one with --eval-only.

    python tools/train.py --trainer TaskRes
    python tools/train.py --trainer TaskRes --root DATA --dataset-config-file caltech101 --shots 16 --seed 1

Without a dataset it takes the embedded default, which needs no download. Flags are the reference's, with ours
beside them; trailing KEY VALUE pairs set config keys.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from dassl_lite.engine.build import TRAINER_REGISTRY, default_recipe, make_config
from dassl_lite.engine.commands import describe, run
from dassl_lite.engine.commands.cli import ToolParser, add_common_flags, free_folder, prepare_output, run_tool
from dassl_lite.engine.commands.evaluate import load_run
from dassl_lite.engine.parallel import distributed
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, setup_logger

DEFAULT_DATASET = "demo"
NO_MODEL_DIR = "--eval-only needs --model-dir, the folder of the run to evaluate"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ToolParser(prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--trainer", default="", help="registered name of the method, such as TaskRes")
    add("--config-file", default="", help="the method's yaml (default: configs/trainers/<trainer>/default.yaml)")
    add("--dataset-config-file", default="", help="the dataset's yaml or its name (default: the embedded dataset)")
    add("--data", default="", metavar="PATH", help="your own: folder of images by class, table (.csv), features (.npz)")
    add("--output-dir", default="", help="where the run is kept (default: output/<trainer>/<dataset>-...)")
    add("--shots", type=int, help="training images per class (DATASET.NUM_SHOTS)")
    add("--seed", type=int, help="of the draw and the training; 0 is a seed too")
    add("--backbone", default="", help="CLIP backbone: ViT-B/16, ViT-B-16:laion2b_s34b_b88k, a file, demo ...")
    add("--head", default="", help="name of the head (MODEL.HEAD.NAME)")
    add("--transforms", nargs="+", help="training transforms (INPUT.TRANSFORMS)")
    add("--source-domains", nargs="+", help="source domains")
    add("--target-domains", nargs="+", help="target domains")
    add("--enhanced-base", default="", help="TaskRes: checkpoint of an enhanced base")
    add("--resume", nargs="?", const=True, default="", metavar="DIR", help="go on with the run in DIR or --output-dir")
    add("--overwrite", action="store_true", help="replace the run in --output-dir")
    add("--eval-only", action="store_true", help="load --model-dir and evaluate")
    add("--model-dir", default="", help="run to load with --eval-only")
    add("--load-epoch", type=int, help="which checkpoint of it (default: the best, else the last)")
    add("--no-train", action="store_true", help="build everything, train nothing")
    add("--list", action="store_true", help="list what is registered and stop")
    add("--help-trainer", default="", metavar="NAME", help="print a trainer's config keys and recipes and stop")
    add_common_flags(parser)
    return parser.parse_args(argv)


def config_of(args: argparse.Namespace) -> CfgNode:
    """The run's config: files, then flags, then options."""
    named = "DATASET.NAME" in args.options[::2]
    dataset_file = args.dataset_config_file or ("" if named or args.data else DEFAULT_DATASET)
    flags = {
        "DATASET.ROOT": args.root,
        **_own_data(args.data),
        "DATASET.NUM_SHOTS": args.shots,
        "DATASET.SOURCE_DOMAINS": args.source_domains,
        "DATASET.TARGET_DOMAINS": args.target_domains,
        "INPUT.TRANSFORMS": args.transforms,
        "MODEL.BACKBONE.NAME": args.backbone,
        "MODEL.HEAD.NAME": args.head,
        "OUTPUT_DIR": args.output_dir,
        "RESUME": args.resume if isinstance(args.resume, str) else "",
        "SEED": args.seed,
        "TRAINER.TaskRes.ENHANCED_BASE": args.enhanced_base,
    }
    return make_config(
        trainer=args.trainer,
        dataset_file=dataset_file,
        method_file=args.config_file or default_recipe(args.trainer),
        flags=_nested({key: value for key, value in flags.items() if value not in ("", None)}),
        options=args.options,
        allow_new_keys=args.allow_new_keys,
    )


def _own_data(data: str) -> dict[str, str]:
    """The dataset that --data means: a folder of images, a table of them or a file of features."""
    if not data:
        return {}
    if data.endswith(".npz"):
        return {"DATASET.NAME": "Features", "DATASET.FILE": data}
    return {"DATASET.NAME": "CSV" if Path(data).is_file() else "ImageFolder", "DATASET.ROOT": data}


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def with_output(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """``cfg`` with the folder of the run made and, where none was named, chosen."""
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
        raise UserError("--resume needs the run's folder: --resume DIR, or --output-dir DIR --resume")
    else:
        shots = f"{cfg.DATASET.NUM_SHOTS}shots" if cfg.DATASET.NUM_SHOTS > 0 else "all"
        folder = free_folder(Path("output") / cfg.TRAINER.NAME / f"{cfg.DATASET.NAME}-{shots}-seed{cfg.SEED}")
    writes = not args.no_train and not args.eval_only
    return prepare_output(folder, overwrite=args.overwrite and writes, resume=bool(args.resume) or not writes)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    setup_logger()
    load_plugins(args.plugin)
    if args.list or args.help_trainer:
        print(describe.registered() if args.list else describe.trainer_help(args.help_trainer))
        return 0
    if not args.trainer:
        raise UserError(f"--trainer is missing; choices: {', '.join(sorted(TRAINER_REGISTRY))}")
    kind = TRAINER_REGISTRY.get(args.trainer)  # a misspelt name is told before anything is made
    if args.eval_only and not args.model_dir and getattr(kind, "takes_features", False) and kind.trains:
        raise UserError(NO_MODEL_DIR)  # of others it shows when they are built: a paper's zero-shot CLIP has no state
    distributed.start()
    cfg = with_output(config_of(args), args)
    if not args.eval_only and not args.no_train:
        run.train(cfg)
        return 0
    trainer = run.build(cfg)
    if args.eval_only:
        if trainer.has_state():
            if not args.model_dir:
                raise UserError(NO_MODEL_DIR)
            load_run(trainer, args.model_dir, args.load_epoch)
        trainer.evaluate_split()
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
