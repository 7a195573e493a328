"""Write a file of features: what a CLIP gives for a dataset's images and class names, to train on without either.

    python tools/extract.py --dataset-config-file caltech101 --root DATA --backbone ViT-B/16 --output caltech101.npz
    python tools/extract.py --convert other.npz --output features.npz
    python tools/train.py --trainer TaskRes --dataset-config-file features DATASET.FILE caltech101.npz

datasets/README.md describes the file. Features are taken from the cache where it has them, and kept there. --convert
reads the layouts that dassl_lite/data/feature_files/convert.py lists.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate
from yacs.config import CfgNode

from dassl_lite.data.feature_files.convert import convert_features, first_of_each_class
from dassl_lite.data.feature_files.file import FeatureFile, write_feature_file
from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.engine.commands.cli import ToolParser, add_common_flags, run_tool
from dassl_lite.engine.commands.feature_export import feature_file_of
from dassl_lite.engine.parallel import distributed
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, get_logger, set_random_seed, setup_logger

logger = get_logger(__name__)

FROZEN_CLIP = "ZeroshotCLIP"  # the method that is nothing else


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ToolParser(prog="extract.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", default="", metavar="FILE.npz", help="the file to write")
    add("--overwrite", action="store_true", help="replace it if it is there")
    add("--dataset-config-file", default="", help="the dataset's yaml or its name (default: the embedded dataset)")
    add("--data", default="", metavar="FOLDER", help="a folder of your own images, one sub-folder per class")
    add("--backbone", default="", help="CLIP backbone: ViT-B/16, ViT-B-16:laion2b_s34b_b88k, a file, demo ...")
    add("--precision", default="fp32", help="fp32, fp16, bf16 or amp")
    add("--views", type=int, default=10, help="augmented views per training image; 0: only the one without")
    add("--shots", type=int, default=-1, help="training images per class, drawn with --seed (default: all)")
    add("--seed", type=int, default=1, help="of that draw")
    add("--half", action="store_true", help="store float16, half the size")
    add("--convert", default="", metavar="FILE", help="take the features of another .npz instead")
    add("--first", type=int, default=0, metavar="N", help="with --convert: only the first N training rows per class")
    add_common_flags(parser)
    return parser.parse_args(argv)


def config_of(args: argparse.Namespace) -> CfgNode:
    """The config of a frozen CLIP on the dataset."""
    named = "DATASET.NAME" in args.options[::2]
    dataset = {"ROOT": args.data or args.root, "NAME": "ImageFolder" if args.data else "", "NUM_SHOTS": args.shots}
    flags = {
        "DATASET": {key: value for key, value in dataset.items() if value}
        | {"FEATURES": {"VIEWS": max(args.views, 1)}},
        "MODEL": {"BACKBONE": {"NAME": args.backbone}} if args.backbone else {},
        "TRAINER": {FROZEN_CLIP: {"PREC": args.precision}},
        "SEED": args.seed,
    }
    return make_config(
        trainer=FROZEN_CLIP,
        dataset_file=args.dataset_config_file or ("" if named or args.data else "demo"),
        flags=flags,
        options=args.options,
        allow_new_keys=args.allow_new_keys,
    )


def extract(args: argparse.Namespace) -> FeatureFile:
    """The features of a dataset's images."""
    if args.first:
        raise UserError("--first goes with --convert; use --shots for a dataset of images")
    if args.views < 0:
        raise UserError(f"--views is {args.views}; it must be 0 or more")
    cfg = config_of(args)
    distributed.start()  # several processes encode a share each
    set_random_seed(cfg.SEED)
    return feature_file_of(build_trainer(cfg), args.views, half=args.half)


def convert(args: argparse.Namespace) -> FeatureFile:
    """The features of another file."""
    if args.first < 0:
        raise UserError(f"--first is {args.first}; it must be 1 or more")
    file = convert_features(args.convert)
    return first_of_each_class(file, args.first) if args.first else file


def show(file: FeatureFile, path: Path) -> None:
    """Log what was written."""
    rows = [[name, *part.views.shape[:2], str(part.views.dtype)] for name, part in file.parts.items()]
    logger.info(tabulate(rows, headers=["split", "views", "images", "type"]))
    classes = f"{len(file.classnames)} classes, {len(file.templates)} templates"
    logger.info(f"{file.backbone or 'backbone unknown'}, {file.width} wide, {classes}: {path}")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    setup_logger()
    load_plugins(args.plugin)
    if not args.output.endswith(".npz"):
        raise UserError(f"--output '{args.output}' must name an .npz file")
    path = Path(args.output)
    if path.exists() and not args.overwrite:
        raise UserError(f"--output {path} is there already; choose another, or give --overwrite to replace it")
    file = convert(args) if args.convert else extract(args)
    if distributed.rank():  # the first one writes
        return 0
    try:
        write_feature_file(file, path)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror or error}") from None
    show(file, path)
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
