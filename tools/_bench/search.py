"""Tip-Adapter's search for alpha and beta against the plain products with one-hot values.

Random features in clusters, one per class. Rounds alternate between the two ways, one after the other on the same
images; both must find the same accuracies. The times of the parts that were run are scaled to all images and betas.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

from dassl_lite.engine.commands.arguments import ToolParser, check_at_least
from dassl_lite.models.key_value_cache import KeyValueCache
from dassl_lite.tools._bench import seconds_of, write_rows

NAME = "search"


def add_parser(subparsers: argparse._SubParsersAction[ToolParser]) -> None:
    """Declare the flags of ``bench.py search``."""
    parser = subparsers.add_parser(NAME, help="Tip-Adapter's search against one-hot products", description=__doc__)
    add = parser.add_argument
    add("--classes", type=int, nargs="+", default=[1000], metavar="N", help="number of classes")
    add("--shots", type=int, default=16, metavar="N", help="cache entries per class")
    add("--images", type=int, default=4000, metavar="N", help="validation images")
    add("--width", type=int, default=1024, metavar="D", help="width of the features")
    add("--alphas", type=int, default=20, metavar="N", help="number of alphas")
    add("--betas", type=int, default=200, metavar="N", help="number of betas")
    add("--run-images", type=int, default=256, metavar="N", help="images to run; the time of all is extrapolated")
    add("--run-betas", type=int, default=100, metavar="N", help="betas to run, likewise")
    add("--rounds", type=int, default=3, metavar="N", help="repetitions; the median of their ratios is reported")
    add("--cpu-time", action="store_true", help="measure CPU time instead of wall time, for a shared machine")
    add("--json", metavar="FILE", help="also write the rows to FILE")


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and print a table; returns its rows."""
    names = ["classes", "shots", "images", "width", "alphas", "betas", "run_images", "run_betas", "rounds"]
    check_at_least(args, 1, names, at_most=1_000_000)
    rows = [_compare(args, classes) for classes in args.classes]
    print(
        f"{args.images} images, {args.shots} shots, {args.betas} x {args.alphas} pairs, "
        f"{'CPU' if args.cpu_time else 'wall'} seconds, {torch.get_num_threads()} threads"
    )
    print(tabulate(rows, headers="keys", floatfmt=".3g"))
    write_rows(args.json, rows)
    return rows


def _compare(args: argparse.Namespace, classes: int) -> dict[str, Any]:
    torch.manual_seed(0)
    count, betas = min(args.run_images, args.images), min(args.run_betas, args.betas)
    prototypes = torch.randn(classes, args.width)
    entries, labels = torch.arange(classes).repeat_interleave(args.shots), torch.randint(0, classes, (count,))
    cache = KeyValueCache(F.normalize(prototypes + 4 * torch.randn(prototypes.shape), dim=-1), 100.0)
    cache.fill((prototypes[entries] + 4 * torch.randn(len(entries), args.width))[None], entries)
    images = prototypes[labels] + 4 * torch.randn(count, args.width)
    grid = torch.linspace(0.1, 7, betas), torch.linspace(0.1, 3, args.alphas)
    clock = time.process_time if args.cpu_time else time.perf_counter
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(args.rounds):
        found: list[Tensor] = []
        for way, search in enumerate((_plain, KeyValueCache.accuracies)):
            seconds[way].append(seconds_of(partial(_keep, found, search, cache, images, labels, *grid), clock))
        largest = (found[0] - found[1]).abs().max().item()
    scale = args.images / count * args.betas / betas
    plain, ours = (scale * statistics.median(one) for one in seconds)
    speedup = statistics.median(a / b for a, b in zip(*seconds, strict=True))
    return {
        "classes": classes,
        "entries": len(entries),
        "plain s": plain,
        "s": ours,
        "speedup": speedup,
        "largest difference %": largest,
    }


def _keep(found: list[Tensor], search: Callable[..., Tensor], *arguments: Any) -> None:
    found.append(search(*arguments))


@torch.no_grad()
def _plain(cache: KeyValueCache, images: Tensor, labels: Tensor, betas: Tensor, alphas: Tensor) -> Tensor:
    """The accuracies by the formula."""
    correct = torch.zeros(len(betas), len(alphas), dtype=torch.float64)
    for part, label in zip(images.split(256), labels.split(256), strict=True):
        features = F.normalize(part, dim=-1)
        zero_shot, affinity = cache.scale * features @ cache.text_features.t(), features @ cache.keys.t()
        for row, beta in enumerate(betas):
            logits = zero_shot + alphas[:, None, None] * (torch.exp(-beta * (1 - affinity)) @ cache.values)
            correct[row] += (logits.argmax(dim=-1) == label).sum(dim=-1)
    return 100 * correct / len(labels)
