"""Look at a dataset: a contact sheet with class names, as a PNG file.

    python tools/show.py ShapesNet
    python tools/show.py Caltech101 --root data --split train --out caltech.png

Classes are spread evenly over the labels; trailing KEY VALUE pairs set config keys.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from dassl_lite.data import DatasetBase, Datum, build_dataset
from dassl_lite.data.images import read_image
from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils.errors import UserError

NAME_HEIGHT, GAP, MARGIN = 16, 2, 8  # pixels
COLUMNS = 4  # classes beside each other


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_intermixed_args(argv)
    flags = {"DATASET": {"NAME": args.dataset, "ROOT": args.root}}
    load_plugins(args.plugin)
    cfg = make_config(flags=flags, options=args.options)
    dataset = build_dataset(cfg)
    groups = choose(dataset, args.split, args.classes, args.per_class)
    out = Path(args.out or f"{args.dataset.lower()}-{args.split}.png")
    sheet = contact_sheet(groups, args.tile)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out, format="PNG", optimize=True)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    print(f"{out}: {len(groups)} of {dataset.num_classes} classes of {args.dataset}, {args.split} images")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Write a contact sheet of a dataset.")
    parser.add_argument("dataset", help="registered name, such as ShapesNet")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--out", default="", metavar="FILE.png", help="default: <dataset>-<split>.png")
    parser.add_argument("--classes", type=_positive, default=24, help="at most so many classes, evenly spread")
    parser.add_argument("--per-class", type=_positive, default=4, help="images of each class")
    parser.add_argument("--tile", type=_positive, default=96, help="side of an image on the sheet, in pixels")
    parser.add_argument("--root", default="", help="folder that holds the datasets' folders")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE", help="import this first")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("options", nargs="*", metavar="KEY VALUE", help="config keys to set")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def choose(dataset: DatasetBase, split: str, max_classes: int, per_class: int) -> dict[str, list[Datum]]:
    """The first `per_class` items of evenly spread classes, by class name, in label order.

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
    """All groups on one white page, each with its name above its images."""
    most = max(map(len, groups.values()))
    width, height = most * (tile + GAP) + MARGIN, NAME_HEIGHT + tile + MARGIN
    columns = min(COLUMNS, len(groups))
    rows = -(-len(groups) // columns)
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for position, (name, items) in enumerate(groups.items()):
        left, top = MARGIN + position % columns * width, MARGIN // 2 + position // columns * height
        pen.text((left, top), _fitting(name, width - MARGIN, font), fill="black", font=font)
        for number, item in enumerate(items):
            image = ImageOps.fit(read_image(item.impath), (tile, tile), Image.Resampling.BICUBIC)
            sheet.paste(image, (left + number * (tile + GAP), top + NAME_HEIGHT))
    return sheet


def _fitting(name: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The name, cut with dots where it is wider than `width` pixels."""
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(name + "...") > width:
        name = name[:-1]
    return name + "..."


if __name__ == "__main__":
    sys.exit(run_tool(main))
