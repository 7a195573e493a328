"""Write a contact sheet of a dataset as a PNG file: some images of each class under its name.

    python tools/show.py ShapesNet
    python tools/show.py Caltech101 --root DATA --split train --out caltech.png
    python tools/show.py --data FOLDER

Without a dataset it shows the embedded one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps
from yacs.config import CfgNode

from dassl_lite.data import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from dassl_lite.data.feature_files.dataset import FeatureDataset
from dassl_lite.data.images import read_image
from dassl_lite.engine.build import find_yaml, make_config
from dassl_lite.engine.commands.arguments import (
    DatasetChoice,
    ToolParser,
    add_config_flags,
    add_dataset_flags,
    check_at_least,
    config_arguments,
    data_label,
    dataset_choice,
    refuse_keys,
    refuse_without_effect,
    tool_parser,
)
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import say

NAME_HEIGHT, GAP, MARGIN = 16, 2, 8  # pixels
MOST_PIXELS = 200_000_000  # of a sheet, 600 MB
COLUMNS = 4  # classes side by side
# Config keys without effect -> what to use in their place.
IGNORED = {
    **dict.fromkeys(("DATALOADER", "DATASET.FEATURES", "DATASET.TEMPLATE", "INPUT", "MODEL", "OPTIM", "RESUME"), ""),
    **dict.fromkeys(("DATASET.DESCRIPTIONS", "TEST", "TRAIN", "TRAINER", "USE_CUDA"), ""),
    "OUTPUT_DIR": "--output",
}


def make_parser() -> ToolParser:
    """The flags of show.py."""
    parser = tool_parser("show", __doc__)
    add = parser.add_argument
    add("dataset", nargs="?", default="", metavar="DATASET", help="registered name or dataset yaml")
    add("--split", choices=("train", "val", "test"), default="test", help="images to show")
    add(
        "--output",
        "--out",
        dest="out",
        default="",
        metavar="FILE.png",
        help="file to write (default: DATASET-SPLIT.png)",
    )
    add("--classes", type=int, default=24, metavar="N", help="show at most N classes, evenly spread")
    add("--per-class", type=int, default=4, metavar="N", help="images of each class")
    add("--tile", type=int, default=96, metavar="PIXELS", help="side of an image on the sheet")
    add_dataset_flags(parser)
    add_config_flags(parser)
    parser.usage = "%(prog)s [options] [DATASET] [KEY VALUE ...]"
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    check_at_least(args, 1, ["classes", "per_class", "tile"])
    load_plugins(args.plugin)
    refuse_keys(args.options, IGNORED, "on the pictures of a dataset")
    cfg = config_of(args)
    refuse_without_effect(args, [], cfg)
    dataset = build_dataset(cfg)
    if isinstance(dataset, FeatureDataset):
        raise UserError(f"{cfg.DATASET.FILE} has features and no images to show")
    name = data_label(args.data) if args.data else cfg.DATASET.NAME
    groups = choose(dataset, args.split, args.classes, args.per_class)
    out = Path(args.out or f"{name.lower()}-{args.split}.png")
    sheet = contact_sheet(groups, args.tile)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out, format="PNG", optimize=True)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    say(f"{out}: {len(groups)} of {dataset.num_classes} classes of {name}, {args.split} images")
    return 0


def config_of(args: argparse.Namespace) -> CfgNode:
    """The config of the dataset: DATASET, which is a registered name or that of a yaml, or what the flags choose."""
    given = [args.dataset, args.data, args.dataset_config_file]
    if args.dataset and len(list(filter(None, given))) > 1:
        raise UserError(f"{args.dataset}, {args.data or args.dataset_config_file}: name one dataset")
    flags = {}
    if args.dataset in DATASET_REGISTRY or (args.dataset and not _is_yaml(args.dataset)):
        flags = {"DATASET.NAME": args.dataset}  # a misspelt one is reported by the registry
    elif args.dataset:
        args.dataset_config_file = args.dataset
    choice = DatasetChoice() if flags else dataset_choice(args)
    return make_config(**config_arguments(args, choice, trainer="", flags=flags))


def _is_yaml(name: str) -> bool:
    try:
        find_yaml(name, "datasets")
    except UserError:
        return False
    return True


def choose(dataset: DatasetBase, split: str, max_classes: int, per_class: int) -> dict[str, list[Datum]]:
    """The first ``per_class`` items of evenly spread classes, by class name, in label order.

    Raises:
        UserError: the dataset has no images in this split.
    """
    items = {"train": dataset.train_x, "val": dataset.val, "test": dataset.test}[split]
    if not items:
        raise UserError(f"dataset {type(dataset).__name__} has no {split} images")
    of_label = dataset.split_dataset_by_label(items)
    labels = sorted(of_label)
    shown = min(max_classes, len(labels))
    picked = [labels[position * len(labels) // shown] for position in range(shown)]
    return {dataset.lab2cname[label]: of_label[label][:per_class] for label in picked}


def contact_sheet(groups: dict[str, list[Datum]], tile: int = 96) -> Image.Image:
    """All groups on one white page, each under its name."""
    most = max(map(len, groups.values()))
    width, height = most * (tile + GAP) + MARGIN, NAME_HEIGHT + tile + MARGIN
    columns = min(COLUMNS, len(groups))
    rows = -(-len(groups) // columns)
    size = (columns * width + MARGIN, rows * height + MARGIN)
    if size[0] * size[1] > MOST_PIXELS:
        raise UserError(
            f"a sheet of {size[0]:,} x {size[1]:,} pixels is too large; lower --tile, --classes or --per-class"
        )
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for position, (name, items) in enumerate(groups.items()):
        left, top = MARGIN + position % columns * width, MARGIN // 2 + position // columns * height
        pen.text((left, top), _fitting(name, width - MARGIN, font), fill="black", font=font)
        for number, item in enumerate(items):
            image = ImageOps.fit(read_image(item.impath), (tile, tile), Image.Resampling.BICUBIC)
            sheet.paste(image, (left + number * (tile + GAP), top + NAME_HEIGHT))
    return sheet


def _fitting(name: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The name, shortened with dots if it is wider than ``width`` pixels."""
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(name + "...") > width:
        name = name[:-1]
    return name + "..."


if __name__ == "__main__":
    sys.exit(run_tool(main))
