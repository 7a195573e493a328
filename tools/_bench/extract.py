"""What extraction reaches of the slower of its two halves, decoding and encoding.

The bare encoder runs over pixels that are where it runs; the loader decodes the same pictures from files and encodes
nothing; the store does both and writes the features. Rounds alternate between them, so that a busy machine slows all.
The reference's way transforms every image with PIL to normalised floats and encodes whole batches with open_clip.

Rates count encoder inputs: images times views. The store should reach 0.9 of the slower half; on a CPU, where the two
share the cores, 0.9 of the rate at which they run one after the other.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from tabulate import tabulate
from torch import Tensor
from torchvision import transforms

from dassl_lite.data.feature_cache import FeatureSpec, FeatureStore
from dassl_lite.data.feature_cache.extract import CPU_BATCH, ViewDataset, load
from dassl_lite.data.feature_cache.shards import ImageFile
from dassl_lite.engine.commands.arguments import ToolParser, check_at_least
from dassl_lite.models.clip import CLIPBackbone, load_clip
from dassl_lite.tools._bench import Row, photographs, seconds_of, write_rows
from dassl_lite.utils.errors import UserError

NAME = "extract"
PLAIN = "reference's way, from image files"
BARE, LOADER, FILES = "bare encoder", "loader alone", "store, from image files"
READY, CACHED = "store, tensors ready", "store, cached"

_MOST = 65536  # a mark encodes its number in two bytes


def add_parser(subparsers: argparse._SubParsersAction[ToolParser]) -> None:
    """Declare the flags of ``bench.py extract``."""
    parser = subparsers.add_parser(
        NAME, help="feature extraction and cache against the bare encoder", description=__doc__
    )
    add = parser.add_argument
    add("--backbone", default="random:ViT-B-32", metavar="NAME", help="backbone; random:ARCHITECTURE needs no download")
    add("--precision", default="fp32", metavar="NAME", help="precision of the backbone")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, metavar="NAME", help="where the encoder runs (default: cuda if there is a GPU)")
    add("--images", type=int, default=256, metavar="N", help="pictures of 500 x 375 pixels")
    add("--views", type=int, default=1, metavar="N", help="augmented views of each")
    add("--batch-size", type=int, default=64, metavar="N", help="encoder inputs per batch")
    add(
        "--workers",
        type=int,
        default=-1,
        metavar="N",
        help="maximum number of decoding processes; -1: one for each core",
    )
    add("--photos", metavar="FOLDER", help="JPEG files to extract from (default: drawn)")
    add("--rounds", type=int, default=3, metavar="N", help="repetitions; the median is reported")
    add(
        "--cpu-time",
        action="store_true",
        help="count this process's CPU seconds, for a busy machine; needs --workers 0",
    )
    add("--json", metavar="FILE", help="also write the rows to FILE")


def run(args: argparse.Namespace) -> list[Row]:
    """Measure and print a table; returns its rows: what, inputs_per_second, seconds, of_bare, of_reachable."""
    check_at_least(args, 1, ["images", "views", "batch_size", "rounds"], at_most=1_000_000)
    if args.images > _MOST:
        raise UserError(f"--images must be at most {_MOST}, not {args.images}")
    if args.cpu_time and args.workers:
        raise UserError("--cpu-time counts this process only; add --workers 0")
    with tempfile.TemporaryDirectory() as folder:
        seconds = _measure(args, Path(folder))
    rows = table(seconds, args.images * args.views, on_cpu=torch.device(args.device).type == "cpu")
    size = f"{args.images} images x {args.views} views"
    print(f"{args.backbone} on {args.device}, {size}, {torch.get_num_threads()} threads")
    print(tabulate(rows, headers="keys", floatfmt=".3g"))
    write_rows(args.json, rows)
    return rows


def table(seconds: Mapping[str, Sequence[float]], inputs: int, *, on_cpu: bool) -> list[Row]:
    """The medians over the rounds, as rows.

    ``of_reachable`` compares with the slower of encoder and loader or, on a CPU, with one after the other.
    """
    medians = {what: statistics.median(values) for what, values in seconds.items()}
    halves = medians[BARE], medians[LOADER]
    reachable = sum(halves) if on_cpu else max(halves)
    return [
        {
            "what": what,
            "inputs_per_second": inputs / value,
            "seconds": value,
            "of_bare": medians[BARE] / value,
            "of_reachable": reachable / value,
        }
        for what, value in medians.items()
    ]


def _measure(args: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds per round of each thing measured."""
    clip = load_clip(args.backbone, args.precision, args.device)
    photos = _photos(folder, args)
    marks = _draw_marks(folder / "marks", args.images)
    transform = field_transform(clip, args.views)
    dataset = ViewDataset([ImageFile.of(photo) for photo in photos], transform, args.views, seed=1)
    finish = dataset.finish
    assert finish is not None, "its transform ends in ToTensor and Normalize"
    views = [dataset[number].views for number in range(args.images)]
    inputs = torch.stack([view for image_views in views for view in image_views]).to(args.device)

    def ready(mark: Image.Image) -> Tensor:
        red, green, _ = mark.getpixel((0, 0))  # type: ignore[misc]
        return finish(views[red + 256 * green][0])

    def fetch(root: str, paths: list[str], transform: Callable[[Image.Image], Tensor]) -> None:
        spec = FeatureSpec(args.backbone, clip.digest, transform, "bench", args.views, 1)
        encode = torch.no_grad()(clip.encode_image)
        options = {"device": args.device, "batch_size": args.batch_size, "num_workers": args.workers}
        FeatureStore(spec, folder / root).fetch(paths, encode, **options)

    def decode() -> None:
        batches = torch.arange(args.images).split(max(1, args.batch_size // args.views))
        for _ in load(dataset, [batch.tolist() for batch in batches], args.workers):
            pass

    size = args.batch_size if inputs.is_cuda else min(args.batch_size, CPU_BATCH)

    @torch.no_grad()
    def bare(inputs: Tensor = inputs) -> None:
        for batch in inputs.split(size):
            clip.encode_image(finish(batch)).cpu()

    @torch.no_grad()
    def plain() -> None:
        for first in range(0, args.images * args.views, args.batch_size):
            numbers = range(first, min(first + args.batch_size, args.images * args.views))
            batch = torch.stack([transform(_opened(photos[number // args.views])) for number in numbers])
            clip.model.encode_image(batch.to(clip.device, clip.dtype)).cpu()

    def clocked(work: Callable[[], object]) -> float:
        return seconds_of(work, time.process_time if args.cpu_time else time.perf_counter)

    bare(inputs[:size])  # warm-up
    seconds: dict[str, list[float]] = {BARE: [], LOADER: [], FILES: [], PLAIN: [], READY: [], CACHED: []}
    for number in range(args.rounds):
        seconds[BARE].append(clocked(bare))
        seconds[LOADER].append(clocked(decode))
        seconds[FILES].append(clocked(lambda: fetch(f"files{number}", photos, transform)))  # noqa: B023
        seconds[PLAIN].append(clocked(plain))
        seconds[READY].append(clocked(lambda: fetch(f"ready{number}", marks, ready)))  # noqa: B023
        seconds[CACHED].append(clocked(lambda: fetch(f"files{number}", photos, transform)))  # noqa: B023
    return seconds


def _opened(photo: str) -> Image.Image:
    with Image.open(photo) as image:
        return image.convert("RGB")


def _photos(folder: Path, args: argparse.Namespace) -> list[str]:
    """As many JPEG files as there are images; a few real files have many names."""
    files = photographs(folder / "photos", args.images, args.photos)
    names = [str(folder / f"{number}.jpg") for number in range(args.images)]
    for number, name in enumerate(names):
        os.symlink(files[number % len(files)], name)
    return names


def field_transform(clip: CLIPBackbone, views: int) -> Callable[[Image.Image], Tensor]:
    """The field's test transform or, for several views, its training transform."""
    bicubic = transforms.InterpolationMode.BICUBIC
    crop = (
        [transforms.RandomResizedCrop(clip.image_size, interpolation=bicubic), transforms.RandomHorizontalFlip()]
        if views > 1
        else [transforms.Resize(max(clip.image_size), bicubic), transforms.CenterCrop(clip.image_size)]
    )
    return transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(clip.mean, clip.std)])


def _draw_marks(folder: Path, count: int) -> list[str]:
    """Files of one pixel whose colour is their number: next to nothing to decode."""
    folder.mkdir()
    paths = [str(folder / f"{number}.png") for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("RGB", (1, 1), (number % 256, number // 256, 0)).save(path)
    return paths
