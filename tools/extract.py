"""Save a dataset's CLIP features to a file, or a folder of shards, that methods can train on.

    python tools/extract.py --dataset-config-file caltech101 --root DATA --backbone ViT-B/16 --output caltech101.npz
    python tools/extract.py --convert other.npz --output features.npz
    python tools/train.py --trainer TaskRes --data caltech101.npz
    python tools/extract.py --data my_images --backbone ViT-B/16 --output features --jobs 4
    python tools/train.py --trainer TaskRes --data features

The file contains features of images and prompts; datasets/README.md describes it. Cached features are reused, and new
ones are added to the cache. --convert reads the layouts listed in dassl_lite/data/feature_files/convert.py.

An --output without an extension is a folder of shards, for datasets that do not fit in memory. The --jobs processes,
--ray tasks or torchrun processes extract one shard each at a time and bypass the cache. Repeat the command to resume;
the result is bit-identical.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm
from yacs.config import CfgNode

from dassl_lite.data import published_name
from dassl_lite.data.feature_files import (
    FeatureFile,
    convert_features,
    first_of_each_class,
    read_feature_file,
    write_feature_file,
    write_feature_folder,
)
from dassl_lite.data.feature_files.folder import is_folder
from dassl_lite.data.feature_files.pieces import UNDER_WAY
from dassl_lite.data.images import count_images
from dassl_lite.engine.build import TRAINER_REGISTRY, build_trainer, make_config
from dassl_lite.engine.commands.arguments import (
    OWN_DATA,
    ToolParser,
    add_backbone_flag,
    add_config_flags,
    add_dataset_flags,
    add_ray_flags,
    config_arguments,
    refuse_keys,
    refuse_without_effect,
    tool_parser,
)
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.feature_export import Encoding, ExportInPieces, FeatureExport, encode_piece
from dassl_lite.engine.commands.on_ray import cluster_of, ray_workers
from dassl_lite.engine.commands.workers import Workers, local_workers, this_process
from dassl_lite.engine.parallel import distributed
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, get_logger, set_random_seed, setup_logger
from dassl_lite.utils.env import usable_cores

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
    add("--output", default="", metavar="PATH", help="file (.npz) or folder to write")
    add("--overwrite", action="store_true", help="replace the file or folder if it exists")
    add_backbone_flag(parser)
    add("--precision", default="auto", metavar="NAME", help="auto (fp16 on a GPU, else fp32), fp32, fp16, bf16 or amp")
    add("--views", type=int, default=10, metavar="N", help="augmented views per training image; 0 for none")
    add("--shots", type=int, default=-1, metavar="N", help="training images per class (default: all)")
    add("--seed", type=int, default=1, metavar="N", help="seed of the few-shot draw")
    add("--states", action="store_true", help="also store the states before the image encoder's projection (ProLIP)")
    add("--half", action="store_true", help="store features as float16, at half the size")
    add("--jobs", type=int, default=1, metavar="N", help="processes that extract shards on this machine")
    add(
        "--shard-rows",
        type=int,
        default=0,
        metavar="N",
        help="images per shard, rounded up to whole batches (default: about 1/64 of a split)",
    )
    add("--convert", default="", metavar="FILE.npz", help="convert a feature file instead of encoding images")
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
        help="with --convert: the dataset, such as ImageNet, whose recipes, template and tables apply",
    )
    add_dataset_flags(parser)
    add_config_flags(parser)
    add_ray_flags(parser, "shard")
    parser.ignores("--convert", but=("--output", "--overwrite", "--first"))
    parser.ignores("--ray", "--jobs")
    return parser


def config_of(args: argparse.Namespace) -> CfgNode:
    """The config of a frozen CLIP on the dataset."""
    flags = {"DATASET.FEATURES.VIEWS": max(args.views, 1), f"TRAINER.{FROZEN_CLIP}.PREC": args.precision}
    return make_config(**config_arguments(args, trainer=FROZEN_CLIP, flags=flags))


def export_of(args: argparse.Namespace) -> tuple[FeatureExport, CfgNode]:
    """A dataset and a CLIP, ready to be extracted, and their config."""
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
    return export, cfg


def extract_in_pieces(args: argparse.Namespace, folder: Path) -> None:
    """Make a folder of shards, by as many processes as the flags say."""
    export, cfg = export_of(args)
    extraction = export.features.extraction
    workers = extraction["num_workers"]
    if workers == -1:  # the processes share the cores
        workers = usable_cores() // args.jobs if usable_cores() >= 2 * args.jobs else 0
    encoding = Encoding(
        folder=folder.absolute(),
        backbone=cfg.MODEL.BACKBONE.NAME,
        digest=export.clip.digest,
        precision=export.clip.precision,
        use_cuda=cfg.USE_CUDA,
        states=args.states,
        half=args.half,
        batch_size=extraction["batch_size"],
        num_workers=workers,
        skip=extraction["on_error"] == "skip",
    )
    work = ExportInPieces(export, encoding, args.shard_rows)
    distributed.on_first(lambda: work.prepare(overwrite=args.overwrite), "the folder of an extraction")
    pieces = work.pieces[distributed.rank() :: distributed.world_size()]
    start, encoded = time.perf_counter(), 0
    total = sum(len(piece.paths) for piece in pieces)
    by_name = {piece.name: len(piece.paths) for piece in pieces}
    results = []
    bar = tqdm(total=total, desc="features", unit="image", leave=False, disable=True if distributed.rank() else None)
    with workers_of(args) as each, bar:
        for done in each(functools.partial(encode_piece, encoding=encoding), pieces):
            results.append(done)
            encoded += done.encoded
            bar.update(by_name[done.piece])
    results = [done for found in distributed.process_group().gather(results) for done in found]
    seconds = time.perf_counter() - start
    logger.info(f"{count_images(encoded)} of {total:,} encoded in {seconds:.1f} s, in {len(pieces)} pieces")
    if not distributed.rank():
        try:
            work.finish(results)
        except OSError as error:
            raise UserError(f"--output {folder} cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def workers_of(args: argparse.Namespace) -> Iterator[Workers]:
    """The processes that the flags ask for."""
    cluster = cluster_of(args)
    if cluster is not None:
        with ray_workers(cluster, args.plugin) as nodes:
            yield nodes
    elif args.jobs > 1:
        with local_workers(args.jobs, args.plugin) as local:
            yield local
    else:
        with this_process() as here:
            yield here


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
    path = Path(args.output)
    is_file = args.output.endswith(".npz")
    check(args, path, is_file=is_file)
    in_pieces = not args.convert and (not is_file or args.jobs > 1 or bool(args.ray))
    if in_pieces:
        folder = path.with_name(f"{path.name}.parts") if is_file else path
        extract_in_pieces(args, folder)
        if distributed.rank():  # the first process writes
            return 0
        file = read_feature_file(folder)
    else:
        file = convert(args) if args.convert else export_of(args)[0].file()
        if distributed.rank():
            return 0
    try:
        if is_file:
            write_feature_file(file, path)
        elif not in_pieces:
            write_feature_folder(file, path)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror or error}") from None
    if in_pieces and is_file:
        shutil.rmtree(folder)
    show(file, path)
    return 0


def check(args: argparse.Namespace, path: Path, *, is_file: bool) -> None:
    """Raise a UserError for flags that make no sense, before anything is loaded."""
    if not args.output or (path.suffix and not is_file and not args.output.endswith("/")):
        raise UserError(f"--output '{args.output}' must name an .npz file, or a folder (no ending, or a / at its end)")
    if args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs}; it must be 1 or more")
    if args.shard_rows < 0:
        raise UserError(f"--shard-rows is {args.shard_rows}; it must be 1 or more")
    if distributed.world_size() > 1 and (args.jobs > 1 or args.ray):
        raise UserError("--jobs and --ray start their own processes; use either them or torchrun")
    if args.overwrite:
        return
    there = path.exists() if is_file else is_folder(path) and not (path / UNDER_WAY).is_dir()
    if there or (not is_file and path.exists() and not path.is_dir()):
        raise UserError(f"--output {path} already exists; choose another, or add --overwrite to replace it")


if __name__ == "__main__":
    sys.exit(run_tool(main))
