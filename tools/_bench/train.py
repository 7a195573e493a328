"""What cached features save, and what a run costs on top of its bare arithmetic.

1. One method on one dataset, both ways: every batch encoded again (VIEWS 0, as the reference does), and on V cached
   views. Each run starts with an empty feature cache and is timed from its config to its results.
2. A cached run with a backbone of real size (random weights) on drawn pictures, against the bare cost of what it must
   compute: encoder passes over tensors in memory, and the head's steps. The encoder's rate is the median over the
   batches of --bare-inputs inputs, half before and half after the run, scaled to all passes of the run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tabulate import tabulate
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl_lite.engine.build import default_recipe, make_config
from dassl_lite.engine.commands import run as engine
from dassl_lite.engine.commands.arguments import (
    ToolParser,
    add_data_flag,
    add_root_flag,
    check_at_least,
    nested,
    own_data,
)
from dassl_lite.engine.contract.threads import threads_for
from dassl_lite.engine.files.results import read_results
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.models.clip import CLIPBackbone, load_clip
from dassl_lite.models.prompts import fill_templates
from dassl_lite.tools._bench import draw_photos, seconds_of, write_rows
from dassl_lite.utils import UserError, setup_logger

NAME = "train"
ANEW, CACHED = "encoded anew", "cached"
TEMPLATE = "a photo of a {}."


def add_parser(subparsers: argparse._SubParsersAction[ToolParser]) -> None:
    """Declare the flags of ``bench.py train``."""
    parser = subparsers.add_parser(NAME, help="runs with and without the feature cache", description=__doc__)
    add = parser.add_argument
    add("--trainer", default="TaskRes", metavar="NAME", help="method")
    add("--shots", type=int, default=16, metavar="N", help="training images per class")
    add("--epochs", type=int, default=100, metavar="N", help="epochs")
    add("--views", type=int, default=10, metavar="V", help="cached views per training image")
    add("--workers", type=int, default=4, metavar="N", help="maximum number of decoding processes")
    add("--json", metavar="FILE", help="also write the results to FILE")
    group = parser.add_argument_group("part 1")
    add = group.add_argument
    add(
        "--dataset-config-file",
        "--dataset",
        dest="dataset_config_file",
        default="demo",
        metavar="FILE",
        help="dataset yaml, as a path or a name",
    )
    add_data_flag(group)
    add_root_flag(group)
    add("--backbone", default="demo", metavar="NAME", help="backbone; a real one takes hours on a CPU")
    add("--seeds", type=int, nargs="*", default=[1, 2, 3], metavar="N", help="seeds; none skips part 1")
    add = parser.add_argument_group("part 2").add_argument
    add("--real-backbone", default="random:ViT-B-32", metavar="NAME", help="backbone (empty: skip part 2)")
    add("--classes", type=int, default=100, metavar="N", help="number of classes")
    add("--bare-inputs", type=int, default=1024, metavar="N", help="encoder passes to time")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print two tables; returns their contents."""
    check_at_least(args, 1, ["shots", "epochs", "views", "classes", "bare_inputs"], at_most=1_000_000)
    check_parts(args)
    load_plugins()
    measured: dict[str, Any] = {"trainer": args.trainer, "epochs": args.epochs, "views": args.views}
    try:
        if args.seeds:
            measured |= _compare_ways(args)
        if args.real_backbone:
            measured["overhead"] = _measure_overhead(args)
    finally:
        setup_logger()
    write_rows(args.json, measured)
    return measured


PARTS = {
    "seeds": ("dataset_config_file", "data", "root", "backbone"),
    "real_backbone": ("classes", "bare_inputs"),
}


def check_parts(args: argparse.Namespace) -> None:
    """Raise a UserError if a flag belongs to a part that is skipped."""
    if not args.seeds and not args.real_backbone:
        raise UserError("both parts are skipped: there is nothing to measure")
    for attribute, flags in PARTS.items():
        for flag in flags:
            if not getattr(args, attribute) and flag in args.given:
                off = attribute.replace("_", "-")
                raise UserError(f"{args.given[flag]} has no effect without --{off}, which skips its part")


# ---- part 1: both ways ----------------------------------------------------------------------------------------------


def _compare_ways(args: argparse.Namespace) -> dict[str, Any]:
    """Run both ways, alternating, for every seed; ``speedup`` is the ratio of their total seconds."""
    if args.data and {"dataset_config_file", "root"} & args.given.keys():
        raise UserError("--data takes the place of --dataset-config-file and --root; leave them out")
    runs, dataset = [], args.dataset_config_file
    for seed in args.seeds:
        for way, views in ((ANEW, 0), (CACHED, args.views)):
            with tempfile.TemporaryDirectory() as folder:
                seconds, results = _timed_run(_config(args, Path(folder), views, seed, args.backbone, dataset))
            accuracy = results["metrics"]["test"]["accuracy"]
            runs.append({"way": way, "seed": seed, "seconds": seconds, "accuracy": accuracy})
    table = [_summary(way, [row for row in runs if row["way"] == way]) for way in (ANEW, CACHED)]
    speedup = table[0][1] / table[1][1]
    sizes = results["split_sizes"]
    print(
        f"{args.trainer}, {args.data or dataset}, {args.backbone}: "
        f"{sizes['train']} training and {sizes['test']} test images, {args.epochs} epochs, {args.views} views, "
        f"{torch.get_num_threads()} threads"
    )
    headers = ["way", "seconds per run", "accuracy %", "std", *(f"seed {seed}" for seed in args.seeds)]
    print(tabulate(table, headers=headers, floatfmt=".4g"))
    print(f"cached is {speedup:.1f} times as fast\n")
    return {"runs": runs, "speedup": speedup}


def _summary(way: str, runs: list[dict[str, Any]]) -> list[Any]:
    accuracies = [row["accuracy"] for row in runs]
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return [way, statistics.mean(row["seconds"] for row in runs), statistics.mean(accuracies), spread, *accuracies]


def _config(args: argparse.Namespace, folder: Path, views: int, seed: int, backbone: str, dataset: str) -> CfgNode:
    features = {"VIEWS": views, "DIR": str(folder / "features")}
    flags: dict[str, Any] = {
        "DATASET": {"NUM_SHOTS": args.shots, "FEATURES": features},
        "DATALOADER": {"NUM_WORKERS": args.workers},
        "MODEL": {"BACKBONE": {"NAME": backbone}},
        "OPTIM": {"MAX_EPOCH": args.epochs},
        "OUTPUT_DIR": str(folder / "run"),
        "SEED": seed,
        "VERBOSE": False,
    }
    if args.root:
        flags["DATASET"]["ROOT"] = args.root
    if args.data:
        flags, dataset = nested(own_data(args.data), flags), ""
    method = default_recipe(args.trainer)
    return make_config(trainer=args.trainer, dataset_file=dataset, method_file=method, flags=flags)


def _timed_run(cfg: CfgNode) -> tuple[float, dict[str, Any]]:
    """Seconds of a run, from config to results, and the results."""
    start = time.perf_counter()
    engine.train(cfg)
    seconds = time.perf_counter() - start
    results = read_results(cfg.OUTPUT_DIR)
    assert results is not None
    return seconds, results


# ---- part 2: overhead -----------------------------------------------------------------------------------------------


def _measure_overhead(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a cached run, divided by the seconds of its bare encoder passes and bare steps of the head."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, count in (("train", args.shots), ("test", 1)):
            for label in range(args.classes):
                draw_photos(folder / "photos" / part / f"thing {label}", count, seed=label)
        args = argparse.Namespace(**{**vars(args), "root": str(folder / "photos"), "data": ""})
        with mock.patch.dict(os.environ, DASSL_LITE_CACHE=str(folder / "cache")):  # no text features cached yet
            cfg = _config(args, folder, args.views, 1, args.real_backbone, "image_folder")
            clip = load_clip(args.real_backbone, "fp32", _device(cfg))
            passes = args.classes * (args.shots * args.views + 1)
            before = _bare_encoder(clip, cfg, args.bare_inputs // 2)
            wall, results = _timed_run(cfg)
            after = _bare_encoder(clip, cfg, args.bare_inputs - args.bare_inputs // 2)
            bare = {"image encoder": statistics.median(before + after) * passes}
            bare |= {"text encoder": _bare_text(clip, args.classes), "head": _bare_head(cfg)}
    total = sum(bare.values())
    rows = [[f"bare {what}", seconds] for what, seconds in bare.items()]
    rows += [[phase, seconds] for phase, seconds in (("all bare", total), ("the run", wall))]
    print(
        f"{args.trainer}, {args.real_backbone}: {args.classes} classes x {args.shots} shots x {args.views} views and "
        f"{args.classes} test images, {args.epochs} epochs\nbare image encoder: {args.bare_inputs} of {passes} passes "
        "timed"
    )
    print(tabulate(rows, headers=["", "seconds"], floatfmt=".4g"))
    print(f"a run takes {wall / total:.3f} times its bare arithmetic")
    phases = results["seconds"]
    return {"passes": passes, "bare_inputs": args.bare_inputs, "bare": bare, "seconds": wall, "phases": phases} | {
        "ratio": wall / total
    }


def _device(cfg: CfgNode) -> str:
    return "cuda" if cfg.USE_CUDA and torch.cuda.is_available() else "cpu"


@torch.no_grad()
def _bare_encoder(clip: CLIPBackbone, cfg: CfgNode, count: int) -> list[float]:
    """Seconds per input, for each batch of ``count`` inputs in batches of the feature store's size."""
    batch = torch.randn(min(cfg.DATASET.FEATURES.BATCH_SIZE, max(count, 1)), 3, *clip.image_size, device=clip.device)
    clip.encode_image(batch[:8])  # warm-up
    batches = max(1, count // len(batch))
    return [seconds_of(lambda: clip.encode_image(batch).cpu()) / len(batch) for _ in range(batches)]


@torch.no_grad()
def _bare_text(clip: CLIPBackbone, classes: int) -> float:
    tokens = clip.tokenize(fill_templates([f"thing {label}" for label in range(classes)], [TEMPLATE]))
    return seconds_of(lambda: clip.encode_text(tokens))


def _bare_head(cfg: CfgNode) -> float:
    """Seconds of the head's steps on tensors in memory, with the run's number of steps and threads."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = f"{cfg.OUTPUT_DIR}-bare"
    cfg.freeze()
    trainer = engine.build(cfg)
    loader = trainer.train_loader_x
    features, labels = loader.views[0].float(), loader.labels
    size, trains = min(loader.batch_size, len(labels)), trainer.optim is not None
    if not trains:
        return 0.0

    def steps() -> None:
        for _ in range(cfg.OPTIM.MAX_EPOCH):
            order = torch.randperm(len(labels), device=labels.device)
            for number in range(len(loader)):
                index = order[number * size : (number + 1) * size]
                loss = F.cross_entropy(trainer.head(features[index]), labels[index])
                trainer.optim.zero_grad()
                loss.backward()
                trainer.optim.step()

    with threads_for(trainer.step_cost()):
        return seconds_of(steps)
