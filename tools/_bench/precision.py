"""What encoders in half precision cost: the error of their features, and the accuracy of methods on them.

Features of photographs and prompts, in each precision, are compared with those in fp32, on this machine's device. Then
methods whose encoders are only run are trained on the embedded dataset with their recipes, in each precision: the table
shows their accuracy, and in how many points it differs from fp32's. A CPU computes in float16 here too, slowly.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from tabulate import tabulate
from torch import Tensor
from torchvision import transforms

from dassl_lite.engine import TRAINER_REGISTRY
from dassl_lite.engine.build import default_recipe, make_config
from dassl_lite.engine.commands import run as engine
from dassl_lite.engine.commands.arguments import ToolParser, check_at_least
from dassl_lite.engine.files.results import read_results
from dassl_lite.engine.methods import backbone
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.models.clip import CLIPBackbone, load_clip
from dassl_lite.tools._bench import Row, photographs, write_rows
from dassl_lite.tools._bench.gpu import feature_methods
from dassl_lite.utils import devices, setup_logger

NAME = "precision"
HALVES = ("fp16", "bf16")
_WORDS = ("cat", "small red square", "tiger shark", "airport", "pizza", "stop sign", "fern", "violin")


def add_parser(subparsers: argparse._SubParsersAction[ToolParser]) -> None:
    """Declare the flags of ``bench.py precision``."""
    parser = subparsers.add_parser(NAME, help="encoders in half precision against fp32", description=__doc__)
    add = parser.add_argument
    backbones = ["demo", "random:ViT-B-32", "random:RN50"]
    add("--backbones", nargs="+", default=backbones, metavar="NAME", help="whose features are compared")
    add("--methods", nargs="*", metavar="NAME", help="to train; none: compare features only (default: all that apply)")
    add("--dataset", default="demo", metavar="NAME", help="dataset to train on (default: %(default)s)")
    add("--images", type=int, default=16, metavar="N", help="photographs whose features are compared")
    add("--photos", metavar="FOLDER", help="JPEG files to take (default: drawn)")
    add("--shots", type=int, default=4, metavar="N", help="training images per class")
    add("--seeds", type=int, default=3, metavar="N", help="runs of each method in each precision")
    add("--json", metavar="FILE", help="also write the rows to FILE")


def run(args: argparse.Namespace) -> dict[str, list[Row]]:
    """Measure and print two tables; returns their rows."""
    check_at_least(args, 1, ["images", "shots", "seeds"], at_most=10_000)
    load_plugins()
    methods = feature_methods() if args.methods is None else args.methods
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, DASSL_LITE_CACHE=f"{folder}/cache"):
        photos = photographs(Path(folder) / "photos", args.images, args.photos)[: args.images]
        errors = [row for name in args.backbones for row in _errors(name, photos)]
        print(tabulate(errors, headers="keys", floatfmt=".2g"), end="\n\n", flush=True)
        with _half_everywhere():
            accuracies = [_accuracies(args, name, Path(folder)) for name in methods]
    setup_logger()
    print(tabulate(accuracies, headers="keys", floatfmt=".2f"))
    write_rows(args.json, found := {"features": errors, "accuracy": accuracies})
    return found


@torch.no_grad()
def _errors(name: str, photos: list[str]) -> list[Row]:
    """Relative errors of a backbone's features: the mean and the maximum, for images and for texts."""
    device, expected, rows = devices.pick(True), {}, []
    for precision in ("fp32", *HALVES):
        clip = load_clip(name, precision, device)
        features = {"images": clip.encode_image(_inputs(clip, photos)), "texts": clip.encode_text(_tokens(clip))}
        found = {what: part.float().cpu() for what, part in features.items()}
        if precision == "fp32":
            expected = found
            continue
        row: Row = {"backbone": name, "precision": precision}
        for what, part in found.items():
            error = (part - expected[what]).norm(dim=-1) / expected[what].norm(dim=-1)
            row |= {f"{what}, mean": error.mean().item(), f"{what}, most": error.max().item()}
        rows.append(row)
    return rows


def _inputs(clip: CLIPBackbone, photos: list[str]) -> Tensor:
    transform = transforms.Compose(
        [
            transforms.Resize(max(clip.image_size), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(clip.image_size),
            transforms.ToTensor(),
            transforms.Normalize(clip.mean, clip.std),
        ]
    )
    return torch.stack([transform(Image.open(photo).convert("RGB")) for photo in photos]).to(clip.device)


def _tokens(clip: CLIPBackbone) -> Tensor:
    return clip.tokenize([f"a photo of a {word}." for word in _WORDS])


@contextmanager
def _half_everywhere() -> Iterator[None]:
    """A context in which runs compute in float16 on a CPU, too."""
    with mock.patch.object(backbone, "precision_on", lambda device, wanted, **_: wanted):
        yield


def _accuracies(args: argparse.Namespace, method: str, folder: Path) -> Row:
    """Mean accuracy in each precision, and the largest difference from the same run in fp32, in points."""
    accuracies = {
        precision: [_accuracy(args, method, precision, seed, folder) for seed in range(1, args.seeds + 1)]
        for precision in ("fp32", *HALVES)
    }
    row: Row = {"method": method, **{precision: statistics.fmean(values) for precision, values in accuracies.items()}}
    for half in HALVES:
        row[f"{half}, most"] = max(abs(a - b) for a, b in zip(accuracies[half], accuracies["fp32"], strict=True))
    return row


def _accuracy(args: argparse.Namespace, method: str, precision: str, seed: int, folder: Path) -> float:
    output = folder / f"{method}-{precision}-{seed}"
    flags: dict[str, Any] = {
        "DATASET": {"NUM_SHOTS": args.shots},
        "SEED": seed,
        "OUTPUT_DIR": str(output),
        "VERBOSE": False,
    }
    cfg = make_config(
        trainer=method,
        dataset_file=args.dataset,
        method_file=default_recipe(method),
        flags=flags,
        options=[f"TRAINER.{TRAINER_REGISTRY.get(method).node_name()}.PREC", precision],
    )
    engine.train(cfg)
    results = read_results(output)
    assert results is not None
    return float(results["metrics"]["test"]["accuracy"])
