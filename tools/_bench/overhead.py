"""What a run on a feature file costs on top of its bare arithmetic.

TaskRes on random features, from its config to its results, against a plain script: it reads the same file, classifies
the test images, trains with the same optimiser and batches of the same size, and classifies them again. Rounds
alternate between the two, each in this process, so importing is left out; the median of their ratios is reported.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl_lite.config import get_cfg_default
from dassl_lite.data.feature_files import FeatureFile, write_feature_file
from dassl_lite.data.feature_files.file import FeaturePart
from dassl_lite.engine.build import default_recipe, make_config
from dassl_lite.engine.commands import run as engine
from dassl_lite.engine.commands.arguments import ToolParser, check_at_least
from dassl_lite.engine.contract.threads import threads_for
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.optim import build_optimizer
from dassl_lite.startup import keep_for_good
from dassl_lite.tools._bench import seconds_of, write_rows
from dassl_lite.utils import setup_logger

NAME = "overhead"
TRAINER = "TaskRes"


def add_parser(subparsers: argparse._SubParsersAction[ToolParser]) -> None:
    """Declare the flags of ``bench.py overhead``."""
    parser = subparsers.add_parser(NAME, help="a run on features against its bare arithmetic", description=__doc__)
    add = parser.add_argument
    add("--classes", type=int, nargs="+", default=[10, 100, 1000], metavar="N", help="numbers of classes")
    add("--shots", type=int, default=16, metavar="N", help="training images per class")
    add("--images", type=int, default=50_000, metavar="N", help="test images")
    add("--width", type=int, default=1024, metavar="D", help="width of the features")
    add("--epochs", type=int, default=200, metavar="N", help="epochs")
    add("--rounds", type=int, default=5, metavar="N", help="repetitions; the median of their ratios is reported")
    add("--cpu-time", action="store_true", help="measure CPU time instead of wall time, for a shared machine")
    add("--json", metavar="FILE", help="also write the rows to FILE")


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and print a table; returns its rows."""
    check_at_least(args, 1, ["classes", "shots", "images", "width", "epochs", "rounds"], at_most=10_000_000)
    load_plugins()
    keep_for_good()
    try:
        rows = [_compare(args, classes) for classes in args.classes]
    finally:
        setup_logger()
    print(
        f"{TRAINER}, {args.shots} shots, {args.images} test images, D = {args.width}, {args.epochs} epochs, "
        f"{'CPU' if args.cpu_time else 'wall'} seconds, {torch.get_num_threads()} threads"
    )
    print(tabulate(rows, headers="keys", floatfmt=".3g"))
    write_rows(args.json, rows)
    return rows


def _compare(args: argparse.Namespace, classes: int) -> dict[str, Any]:
    clock = time.process_time if args.cpu_time else time.perf_counter
    bare, whole = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_feature_file(_features(args, classes), folder / "features.npz")
        build_optimizer([nn.Parameter(torch.zeros(1))], get_cfg_default().OPTIM)  # torch's first imports its compiler
        for number in range(args.rounds):
            cfg = _config(args, folder / "features.npz", folder / f"run-{number}")
            bare.append(seconds_of(partial(_bare, cfg), clock))
            whole.append(seconds_of(partial(engine.train, cfg), clock))
    ratio = statistics.median(a / b for a, b in zip(whole, bare, strict=True))
    seconds = {"bare s": statistics.median(bare), "run s": statistics.median(whole)}
    return {"classes": classes, **seconds, "ratio": ratio}


def _features(args: argparse.Namespace, classes: int) -> FeatureFile:
    rng = np.random.default_rng(0)
    prototypes = rng.standard_normal((classes, args.width), dtype=np.float32)

    def part(labels: Any) -> FeaturePart:
        noise = rng.standard_normal((len(labels), args.width), dtype=np.float32)
        return FeaturePart((prototypes[labels] + 4 * noise)[None], labels)

    parts = {"train": part(np.arange(classes).repeat(args.shots)), "test": part(rng.integers(0, classes, args.images))}
    text = prototypes + rng.standard_normal(prototypes.shape, dtype=np.float32)
    return FeatureFile(parts, tuple(f"thing {label}" for label in range(classes)), text[None])


def _config(args: argparse.Namespace, file: Path, output: Path) -> CfgNode:
    flags = {
        "DATASET": {"FILE": str(file), "NUM_SHOTS": args.shots},
        "OPTIM": {"MAX_EPOCH": args.epochs},
        "OUTPUT_DIR": str(output),
        "SEED": 1,
        "VERBOSE": False,
    }
    return make_config(trainer=TRAINER, dataset_file="features", method_file=default_recipe(TRAINER), flags=flags)


def _bare(cfg: CfgNode) -> float:
    """The sum of the accuracies of a plain script that does the same as the run."""
    with np.load(cfg.DATASET.FILE) as arrays:
        names = ("train_features", "train_labels", "test_features", "test_labels", "text_weights")
        features, labels, *test, base = (torch.from_numpy(arrays[name]) for name in names)
    alpha, size = cfg.TRAINER[TRAINER].RESIDUAL_SCALE, cfg.DATALOADER.TRAIN_X.BATCH_SIZE
    scale, residual = torch.tensor(100.0), nn.Parameter(torch.zeros_like(base))
    optimiser = build_optimizer([residual], cfg.OPTIM)

    def logits(images: Tensor) -> Tensor:
        return scale * F.normalize(images, dim=-1) @ F.normalize(base + alpha * residual, dim=-1).t()

    @torch.no_grad()
    def accuracy() -> float:
        parts = zip(*(part.split(cfg.DATALOADER.TEST.BATCH_SIZE) for part in test), strict=True)
        return sum(int((logits(images).argmax(dim=-1) == label).sum()) for images, label in parts) / len(test[1])

    before = accuracy()
    with threads_for(2 * size * base.numel()):
        for _ in range(cfg.OPTIM.MAX_EPOCH):
            for index in torch.randperm(len(labels)).split(size):
                loss = F.cross_entropy(logits(features[index]), labels[index])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return before + accuracy()
