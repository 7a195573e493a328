"""Save a dataset's CLIP features to a file that methods can train on.

    python tools/extract.py --dataset-config-file caltech101 --root DATA --backbone ViT-B/16 --output caltech101.npz
    python tools/extract.py --convert other.npz --output features.npz
    python tools/train.py --trainer TaskRes --data caltech101.npz

The file has features of images and prompts; datasets/README.md describes it. Features that the cache has are read from
it, new ones are added to it. --convert reads the layouts listed in dassl_lite/data/feature_files/convert.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate
from yacs.config import CfgNode

from dassl_lite.data import published_name
from dassl_lite.data.feature_files import FeatureFile, convert_features, first_of_each_class, write_feature_file
from dassl_lite.engine.build import TRAINER_REGISTRY, build_trainer, make_config
from dassl_lite.engine.commands.arguments import (
    OWN_DATA,
    ToolParser,
    add_backbone_flag,
    add_config_flags,
    add_dataset_flags,
    config_arguments,
    refuse_keys,
    refuse_without_effect,
    tool_parser,
)
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.feature_export import FeatureExport
from dassl_lite.engine.parallel import distributed
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, get_logger, set_random_seed, setup_logger

logger = get_logger(__name__)

FROZEN_CLIP = "ZeroshotCLIP"  # the method that adds nothing to it
# Config keys without effect -> what to use in their place.
IGNORED = {
    **dict.fromkeys(("MODEL.HEAD", "MODEL.INIT_WEIGHTS", "OPTIM", "RESUME", "TEST", "TRAIN", "TRAINER.NAME"), ""),
    **{"DATASET.DESCRIPTIONS": "", "DATASET.FEATURES.VIEWS": "--views", "OUTPUT_DIR": "--output"},
}


def make_parser() -> ToolParser:
    """The flags of extract.py."""
    parser = tool_parser("extract", __doc__)
    add = parser.add_argument
    add("--output", default="", metavar="FILE.npz", help="file to write")
    add("--overwrite", action="store_true", help="replace the file if it exists")
    add_backbone_flag(parser)
    add("--precision", default="auto", metavar="NAME", help="auto (fp16 on a GPU, else fp32), fp32, fp16, bf16 or amp")
    add("--views", type=int, default=10, metavar="N", help="augmented views per training image, 0 for none")
    add("--shots", type=int, default=-1, metavar="N", help="training images per class (default: all)")
    add("--seed", type=int, default=1, metavar="N", help="seed of the few-shot draw")
    add("--states", action="store_true", help="store the states before the image encoder's projection too (ProLIP)")
    add("--half", action="store_true", help="store features as float16, half the size")
    add("--convert", default="", metavar="FILE.npz", help="convert a file of features instead of encoding images")
    add(
        "--first",
        type=int,
        default=0,
        metavar="N",
        help="with --convert: keep the first N training rows per class (default: all)",
    )
    add(
        "--dataset-name",
        default="",
        metavar="NAME",
        help="with --convert: the dataset, such as ImageNet, for its recipes, template and tables",
    )
    add_dataset_flags(parser)
    add_config_flags(parser)
    parser.ignores("--convert", but=("--output", "--overwrite", "--first"))
    return parser


def config_of(args: argparse.Namespace) -> CfgNode:
    """The config of a frozen CLIP on the dataset."""
    flags = {"DATASET.FEATURES.VIEWS": max(args.views, 1), f"TRAINER.{FROZEN_CLIP}.PREC": args.precision}
    return make_config(**config_arguments(args, trainer=FROZEN_CLIP, flags=flags))


def extract(args: argparse.Namespace) -> FeatureFile:
    """The features of a dataset's images."""
    if args.first:
        raise UserError("--first goes with --convert; use --shots for a dataset of images")
    if args.dataset_name:
        raise UserError("--dataset-name goes with --convert; a dataset of images has a name")
    if args.views < 0:
        raise UserError(f"--views is {args.views}; it must be 0 or more")
    refuse_keys(args.options, IGNORED, "on features")
    cfg = config_of(args)
    refuse_without_effect(args, [TRAINER_REGISTRY.get(FROZEN_CLIP)], cfg)
    distributed.start(cfg.USE_CUDA)  # several processes share the encoding
    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    export = FeatureExport(
        data=trainer.dm,
        dataset="" if cfg.DATASET.NAME in OWN_DATA else published_name(cfg),
        features=trainer.features,
        clip=trainer.clip,
        template=trainer.template,
        text_cache=trainer.text_cache,
        views=args.views,
        half=args.half,
        states=args.states,
        provenance={
            "dataset": cfg.DATASET.NAME,
            "num_shots": cfg.DATASET.NUM_SHOTS,
            "seed": cfg.SEED,
            "subsample_classes": cfg.DATASET.SUBSAMPLE_CLASSES,
        },
    )
    return export.file()


def convert(args: argparse.Namespace) -> FeatureFile:
    """The features of another file."""
    if args.first < 0:
        raise UserError(f"--first is {args.first}; it must be 1 or more")
    file = convert_features(args.convert, args.dataset_name)
    return first_of_each_class(file, args.first) if args.first else file


def show(file: FeatureFile, path: Path) -> None:
    """Log what was written."""
    rows = [[name, *part.views.shape[:2], str(part.views.dtype)] for name, part in file.parts.items()]
    logger.info(tabulate(rows, headers=["split", "views", "images", "type"]))
    classes = f"{len(file.classnames)} classes, {len(file.templates)} templates"
    logger.info(f"{file.backbone or 'unknown backbone'}, {file.width} dimensions, {classes}: {path}")


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    setup_logger()
    load_plugins(args.plugin)
    if not args.output.endswith(".npz"):
        raise UserError(f"--output '{args.output}' must name an .npz file")
    path = Path(args.output)
    if path.exists() and not args.overwrite:
        raise UserError(f"--output {path} already exists; choose another, or add --overwrite to replace it")
    file = convert(args) if args.convert else extract(args)
    if distributed.rank():  # the first process writes
        return 0
    try:
        write_feature_file(file, path)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror or error}") from None
    show(file, path)
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
