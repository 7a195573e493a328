"""`bench.py text-tower`: the text tower against the plain computation of 77 tokens through open_clip.

Learned context vectors before class names of ImageNet (CoOp), drawn weights, forward and backward. Rounds of both ways
alternate, so that a busy machine slows both; the medians are compared. Memory is the peak of a process of its
own for each way. The plain way's cost is a sum over prompts: beyond `--plain-classes` its time is scaled up from
there, and its memory too where this machine has too little (`plain_measured` tells what was run).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from tabulate import tabulate
from torch import Tensor

from dassl_lite.models.text_tower import TextTower
from dassl_lite.models.tokenizer import Tokenizer

NAME = "text-tower"
_HEADERS = {"plain_seconds": "plain s", "seconds": "tower s", "plain_mb": "plain MB", "mb": "tower MB"}


@dataclass
class Prompts:
    """K prompts `[start] context name. [end]` with a context that is learned, as in CoOp.

    Attributes:
        model: open_clip's, frozen; only its text side is used.
        context: (C, W), or (B, C, W) with one per image as in CoCoOp; a leaf with gradient.
        tokens: (K, 77) with any token in the context's place.
        target: the gradient (K, D) on the features, the same for both ways.
    """

    model: open_clip.CLIP
    context: Tensor
    tokens: Tensor
    target: Tensor

    @property
    def first(self) -> int:
        """P: where the class name starts."""
        return 1 + self.context.shape[-2]

    def plain(self) -> Tensor:
        """Features (K, D), or (B, K, D) image after image: all 77 tokens through open_clip's modules."""
        if self.context.dim() == 3:
            return torch.stack([self._plain(context) for context in self.context])
        return self._plain(self.context)

    def _plain(self, context: Tensor) -> Tensor:
        model, rows = self.model, torch.arange(len(self.tokens))
        embedded = model.token_embedding(self.tokens)
        start, rest = embedded[:, :1], embedded[:, self.first :]
        x = torch.cat([start, context.expand(len(rows), -1, -1), rest], dim=1) + model.positional_embedding
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
        return x[rows, self.tokens.argmax(dim=-1)] @ model.text_projection

    def tower(self, chunk: int = 0, checkpoint: bool = False) -> Tensor:
        """The same features through `TextTower`."""
        tower = TextTower(self.model)
        embedded = tower.embed(self.tokens)
        start = embedded[0, :1].expand(*self.context.shape[:-2], -1, -1)
        lengths = (tower.ends(self.tokens) + 1 - self.first).tolist()
        prefix = torch.cat([start, self.context], dim=-2)
        return tower.encode_prompts(prefix, embedded[:, self.first :], lengths, chunk=chunk, checkpoint=checkpoint)

    def step(self, encode: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Forward and backward: the features and the gradient on the context."""
        self.context.grad = None
        features = encode()
        features.backward(self.target.expand_as(features))
        assert self.context.grad is not None
        return features.detach(), self.context.grad


def make_prompts(classes: int, context: int, images: int = 0, architecture: str = "ViT-B-16") -> Prompts:
    """Prompts over ImageNet's class names, taken evenly from its list, and drawn weights of a real text encoder."""
    config = open_clip.get_model_config(architecture)
    config["vision_cfg"]["layers"] = 1  # the images' side is not used
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**config, quick_gelu=True).eval().requires_grad_(False)
        width, features = model.text_projection.shape
        shape = (images, context, width) if images else (context, width)
        learned = (0.02 * torch.randn(shape)).requires_grad_()
        target = torch.randn(classes, features)
    every = open_clip.IMAGENET_CLASSNAMES
    names = [every[number * len(every) // classes] for number in range(classes)]
    tokens = Tokenizer()([f"{' '.join(['X'] * context)} {name}." for name in names])
    return Prompts(model, learned, tokens, target)


def add_parser(subparsers: Any) -> None:
    """Declare the flags of `bench.py text-tower`."""
    parser = subparsers.add_parser(NAME, help="the text tower against the plain way", description=__doc__)
    add = parser.add_argument
    add("--classes", type=int, nargs="+", default=[10, 100, 1000])
    add("--context", type=int, nargs="+", default=[4, 16], help="learned tokens before the class name")
    add("--architecture", default="ViT-B-16", help="open_clip's name; its text encoder is used")
    add("--cocoop-batch", type=int, default=8, help="images with a context each (100 classes at most); 0: leave it out")
    add("--plain-classes", type=int, default=100, help="the most prompts that the plain way runs at once")
    add("--rounds", type=int, default=3, help="the median counts")
    add("--cpu-time", action="store_true", help="compare seconds of CPU time: for a machine that others use too")
    add("--no-memory", action="store_true", help="measure time only")
    add("--json", metavar="FILE", help="write the rows there")
    add("--peak-of", choices=["plain", "tower"], help=argparse.SUPPRESS)  # what the processes for memory are told


def run(args: argparse.Namespace) -> list[dict[str, Any]] | None:
    """Measure, print a table, and give back its rows."""
    if args.peak_of:
        prompts = make_prompts(args.classes[0], args.context[0], architecture=args.architecture)
        prompts.step(getattr(prompts, args.peak_of))
        print(_peak_mb())
        return None
    rows = [_coop(args, classes, context) for context in args.context for classes in args.classes]
    if args.cocoop_batch:
        rows.append(_cocoop(args))
    print(f"text encoder of {args.architecture}, {torch.get_num_threads()} threads, forward and backward")
    print(tabulate([{_HEADERS.get(k, k): v for k, v in row.items()} for row in rows], headers="keys", floatfmt=".3g"))
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return rows


def _coop(args: argparse.Namespace, classes: int, context: int) -> dict[str, Any]:
    prompts = make_prompts(classes, context, architecture=args.architecture)
    row = {"method": "CoOp", "classes": classes, "context": context, "images": 1}
    row |= _times(args, prompts, min(classes, args.plain_classes))
    if not args.no_memory:
        plain, measured = _plain_peak(args, classes, context)
        tower = _peak(args, "tower", classes, context)
        row |= {"plain_mb": plain, "mb": tower, "memory_ratio": tower / plain, "plain_memory_measured": measured}
    return row


def _cocoop(args: argparse.Namespace) -> dict[str, Any]:
    """A batch of images, each with its own context: seconds per image, the plain way image by image."""
    classes, context, images = min(100, max(args.classes)), 4, args.cocoop_batch
    one, all_images = (make_prompts(classes, context, number, args.architecture) for number in (1, images))
    plain, tower = [], []
    for _ in range(args.rounds):
        plain.append(_timed(args, one, "plain"))
        tower.append(_timed(args, all_images, "tower") / images)
    seconds = statistics.median(plain), statistics.median(tower)
    row = {"method": "CoCoOp", "classes": classes, "context": context, "images": images}
    return row | {"plain_seconds": seconds[0], "seconds": seconds[1], "speedup": seconds[0] / seconds[1]}


def _times(args: argparse.Namespace, prompts: Prompts, plain_classes: int) -> dict[str, Any]:
    """Seconds of both ways, the plain one's scaled to all classes, and how far their results differ."""
    classes = len(prompts.tokens)
    few = Prompts(prompts.model, prompts.context, prompts.tokens[:plain_classes], prompts.target[:plain_classes])
    plain_result, tower_result = few.step(few.plain), few.step(few.tower)  # warm-up
    pairs = zip(plain_result, tower_result, strict=True)
    difference = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
    plain, tower = [], []
    for _ in range(args.rounds):
        plain.append(_timed(args, few, "plain") * classes / plain_classes)
        tower.append(_timed(args, prompts, "tower"))
    seconds = statistics.median(plain), statistics.median(tower)
    return {
        "plain_seconds": seconds[0],
        "seconds": seconds[1],
        "speedup": seconds[0] / seconds[1],
        "plain_measured": plain_classes,
        "difference": difference,
    }


def _timed(args: argparse.Namespace, prompts: Prompts, way: str) -> float:
    clock = time.process_time if args.cpu_time else time.perf_counter
    start = clock()
    prompts.step(getattr(prompts, way))
    return clock() - start


def _plain_peak(args: argparse.Namespace, classes: int, context: int) -> tuple[float, int]:
    """Peak of the plain way in MB, and for how many classes it was measured: for fewer where it would not fit,
    and then extended along the line through two measurements."""
    few = args.plain_classes
    if classes <= few:
        return _peak(args, "plain", classes, context), classes
    half, whole = (_peak(args, "plain", number, context) for number in (few // 2, few))
    expected = whole + (whole - half) / (few - few // 2) * (classes - few)
    if expected > 0.7 * _available_mb():
        return expected, few
    return _peak(args, "plain", classes, context), classes


def _peak(args: argparse.Namespace, way: str, classes: int, context: int) -> float:
    """Peak memory in MB of a process that takes one step."""
    command = [
        sys.executable,
        "-c",
        "import sys; from dassl_lite.tools.bench import main; sys.exit(main(sys.argv[1:]))",
    ]
    command += [NAME, "--peak-of", way, "--architecture", args.architecture]
    command += ["--classes", str(classes), "--context", str(context)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    answer = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(answer.stdout)


def _peak_mb() -> float:
    """Of this process. Linux' own count, where it has one, leaves out what the parent held before the start."""
    status = Path("/proc/self/status")
    if status.exists():
        return _kilobytes(status, "VmHWM") / 1024
    import resource  # not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _available_mb() -> float:
    memory = Path("/proc/meminfo")
    return _kilobytes(memory, "MemAvailable") / 1024 if memory.exists() else 0.0


def _kilobytes(file: Path, key: str) -> int:
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(f"{key}:"))
