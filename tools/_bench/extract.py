"""What the feature store costs on top of the encoder.

The bare encoder runs over tensors in memory; the store decodes the same pictures from files, encodes them and writes
the features. Rounds alternate between the two, so that a busy machine slows both. Rates count encoder inputs: images
times views.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from tabulate import tabulate
from torch import Tensor
from torchvision import transforms

from dassl_lite.data.feature_cache import FeatureSpec, FeatureStore
from dassl_lite.data.feature_cache.extract import ViewDataset
from dassl_lite.data.feature_cache.shards import ImageFile
from dassl_lite.engine.commands.arguments import ToolParser, check_at_least
from dassl_lite.models.clip import CLIPBackbone, load_clip
from dassl_lite.tools._bench import Row, draw_photos, seconds_of, write_rows
from dassl_lite.utils.errors import UserError

NAME = "extract"
BARE, FILES, READY, CACHED = "bare encoder", "store, from image files", "store, tensors ready", "store, cached"

_MOST = 65536  # a mark has two bytes for its number


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
    add("--workers", type=int, default=4, metavar="N", help="maximum number of decoding processes")
    add("--rounds", type=int, default=3, metavar="N", help="repetitions; the median is reported")
    add("--json", metavar="FILE", help="also write the rows to FILE")


def run(args: argparse.Namespace) -> list[Row]:
    """Measure and print a table; returns its rows: what, inputs_per_second, seconds, of_bare."""
    check_at_least(args, 1, ["images", "views", "batch_size", "rounds"], at_most=1_000_000)
    if args.images > _MOST:
        raise UserError(f"--images must be at most {_MOST}, not {args.images}")
    with tempfile.TemporaryDirectory() as folder:
        seconds = _measure(args, Path(folder))
    inputs = args.images * args.views
    medians = {what: statistics.median(values) for what, values in seconds.items()}
    rows: list[Row] = [
        {"what": what, "inputs_per_second": inputs / value, "seconds": value, "of_bare": medians[BARE] / value}
        for what, value in medians.items()
    ]
    size = f"{args.images} images x {args.views} views"
    print(f"{args.backbone} on {args.device}, {size}, {torch.get_num_threads()} threads")
    print(tabulate(rows, headers="keys", floatfmt=".3g"))
    write_rows(args.json, rows)
    return rows


def _measure(args: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds per round of each thing measured."""
    clip = load_clip(args.backbone, args.precision, args.device)
    photos, marks = draw_photos(folder / "photos", args.images), _draw_marks(folder / "marks", args.images)
    transform = _transform(clip, args.views)
    dataset = ViewDataset([ImageFile.of(photo) for photo in photos], transform, args.views, seed=1)
    views = [dataset[number].views for number in range(args.images)]
    inputs = torch.stack([view for one in views for view in one])

    def ready(mark: Image.Image) -> Tensor:
        red, green, _ = mark.getpixel((0, 0))  # type: ignore[misc]
        return views[red + 256 * green][0]

    def fetch(root: str, paths: list[str], transform: Callable[[Image.Image], Tensor]) -> None:
        spec = FeatureSpec(args.backbone, clip.digest, transform, "bench", args.views, 1)
        encode = torch.no_grad()(clip.encode_image)
        options = {"device": args.device, "batch_size": args.batch_size, "num_workers": args.workers}
        FeatureStore(spec, folder / root).fetch(paths, encode, **options)

    _bare(clip, inputs[: args.batch_size], args)  # warm-up
    seconds: dict[str, list[float]] = {BARE: [], FILES: [], READY: [], CACHED: []}
    for number in range(args.rounds):
        seconds[BARE].append(seconds_of(lambda: _bare(clip, inputs, args)))
        seconds[FILES].append(seconds_of(lambda: fetch(f"files{number}", photos, transform)))  # noqa: B023
        seconds[READY].append(seconds_of(lambda: fetch(f"ready{number}", marks, ready)))  # noqa: B023
        seconds[CACHED].append(seconds_of(lambda: fetch(f"files{number}", photos, transform)))  # noqa: B023
    return seconds


@torch.no_grad()
def _bare(clip: CLIPBackbone, inputs: Tensor, args: argparse.Namespace) -> list[Tensor]:
    batches = inputs.split(args.batch_size)
    return [clip.encode_image(batch.to(args.device)).cpu() for batch in batches]


def _transform(clip: CLIPBackbone, views: int) -> Callable[[Image.Image], Tensor]:
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
