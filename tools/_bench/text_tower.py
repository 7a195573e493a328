"""The text tower against the plain computation: all 77 tokens through open_clip.

Learned context vectors before ImageNet's class names (CoOp), random weights, forward and backward; then with deep
prompts in every block (MaPLe, PromptSRC), and with those of each class in the block at two thirds (TCP). Rounds
alternate between the two ways, so that a busy machine slows both; the medians are compared. Memory is the peak of a
separate process for each way. The plain way's cost grows linearly with the number of prompts: beyond --plain-classes
its time is extrapolated, and so is its memory if this machine has too little (plain_measured is the number that was
run).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from tabulate import tabulate
from torch import Tensor

from dassl_lite.engine.commands.arguments import ToolParser, check_at_least
from dassl_lite.models.text_layers import DeepRows
from dassl_lite.models.text_tower import TextTower
from dassl_lite.models.tokenizer import Tokenizer
from dassl_lite.tools._bench import Row, seconds_of, write_rows

NAME = "text-tower"
_HEADERS = {"plain_seconds": "plain s", "seconds": "tower s", "plain_mb": "plain MB", "mb": "tower MB"}


@dataclass
class Prompts:
    """K prompts ``[start] context name. [end]`` with a learned context, as in CoOp.

    Attributes:
        model: open_clip's model, frozen; only its text encoder is used.
        context: (C, W), or (B, C, W) with one per image as in CoCoOp; a leaf with gradient.
        tokens: (K, 77); tokens at the positions of the context are ignored.
        target: (K, D), the gradient of the loss with respect to the features, the same for both ways.
        deep: block number -> (C, W) or (K, C, W), leaves with gradient that replace the context in that block's input.
    """

    model: open_clip.CLIP
    context: Tensor
    tokens: Tensor
    target: Tensor
    deep: dict[int, Tensor] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """Position of the class name's first token."""
        return 1 + self.context.shape[-2]

    def plain(self) -> Tensor:
        """Features (K, D), or (B, K, D) one image at a time: all 77 tokens through open_clip's modules."""
        if self.context.dim() == 3:
            return torch.stack([self._plain(context) for context in self.context])
        return self._plain(self.context)

    def _plain(self, context: Tensor) -> Tensor:
        model, rows = self.model, torch.arange(len(self.tokens))
        embedded = model.token_embedding(self.tokens)
        start, rest = embedded[:, :1], embedded[:, self.first :]
        x = torch.cat([start, context.expand(len(rows), -1, -1), rest], dim=1) + model.positional_embedding
        with DeepRows(self.deep).inside(model.transformer):
            x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
        return x[rows, self.tokens.argmax(dim=-1)] @ model.text_projection

    def tower(self, chunk: int = 0, checkpoint: bool = False) -> Tensor:
        """The same features through ``TextTower``."""
        tower = TextTower(self.model)
        embedded = tower.embed(self.tokens)
        start = embedded[0, :1].expand(*self.context.shape[:-2], -1, -1)
        lengths = (tower.ends(self.tokens) + 1 - self.first).tolist()
        prefix = torch.cat([start, self.context], dim=-2)
        options: dict[str, Any] = {"deep": self.deep, "chunk": chunk, "checkpoint": checkpoint}
        return tower.encode_prompts(prefix, embedded[:, self.first :], lengths, **options)

    def step(self, encode: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Forward and backward: the features and the gradient on the context."""
        self.context.grad = None
        features = encode()
        features.backward(self.target.expand_as(features))
        assert self.context.grad is not None
        return features.detach(), self.context.grad


def make_prompts(classes: int, context: int, images: int = 0, architecture: str = "ViT-B-16") -> Prompts:
    """Prompts with evenly spaced class names of ImageNet, and a text encoder of real size with random weights."""
    config = open_clip.get_model_config(architecture)
    config["vision_cfg"]["layers"] = 1  # the image encoder is not used
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


def with_deep(prompts: Prompts, per_class: bool) -> Prompts:
    """The same prompts, with deep rows for every block after the first, or with rows per class for a single block."""
    depth, shape = len(prompts.model.transformer.resblocks), prompts.context.shape
    classes = (len(prompts.tokens),) if per_class else ()
    blocks = [depth * 2 // 3] if per_class else range(1, depth)
    return replace(prompts, deep={i: (0.02 * torch.randn(*classes, *shape)).requires_grad_() for i in blocks})


def add_parser(subparsers: argparse._SubParsersAction[ToolParser]) -> None:
    """Declare the flags of ``bench.py text-tower``."""
    parser = subparsers.add_parser(NAME, help="text tower against open_clip's text encoder", description=__doc__)
    add = parser.add_argument
    classes, context = [10, 100, 1000], [4, 16]
    add("--classes", type=int, nargs="+", default=classes, metavar="N", help="number of prompts")
    add("--context", type=int, nargs="+", default=context, metavar="N", help="learned tokens per prompt")
    add("--architecture", default="ViT-B-16", metavar="NAME", help="open_clip architecture")
    add("--cocoop-batch", type=int, default=8, metavar="N", help="images per CoCoOp batch; 0 skips CoCoOp")
    add("--plain-classes", type=int, default=100, metavar="N", help="most prompts to run the plain way")
    add("--rounds", type=int, default=3, metavar="N", help="repetitions; the median is reported")
    add("--cpu-time", action="store_true", help="measure CPU time instead of wall time, for a shared machine")
    add("--no-memory", action="store_true", help="measure time only")
    add("--json", metavar="FILE", help="also write the rows to FILE")


def run(args: argparse.Namespace) -> list[Row]:
    """Measure and print a table; returns its rows."""
    check_at_least(args, 1, ["classes", "context", "rounds", "plain_classes"], at_most=1_000_000)
    check_at_least(args, 0, ["cocoop_batch"], at_most=1_000_000)
    rows = [_coop(args, classes, context) for context in args.context for classes in args.classes]
    rows += [_deep(args, per_class) for per_class in (False, True)]
    if args.cocoop_batch:
        rows.append(_cocoop(args))
    print(f"text encoder of {args.architecture}, {torch.get_num_threads()} threads, forward and backward")
    print(tabulate([{_HEADERS.get(k, k): v for k, v in row.items()} for row in rows], headers="keys", floatfmt=".3g"))
    write_rows(args.json, rows)
    return rows


def _coop(args: argparse.Namespace, classes: int, context: int) -> Row:
    prompts = make_prompts(classes, context, architecture=args.architecture)
    row: Row = {"method": "CoOp", "classes": classes, "context": context, "images": 1}
    row |= _times(args, prompts, min(classes, args.plain_classes))
    if not args.no_memory:
        plain, measured = _plain_peak(args, classes, context)
        tower = _peak(args, "tower", classes, context)
        row |= {"plain_mb": plain, "mb": tower, "memory_ratio": tower / plain, "plain_memory_measured": measured}
    return row


def _deep(args: argparse.Namespace, per_class: bool) -> Row:
    classes, context = min(100, max(args.classes)), 4
    prompts = with_deep(make_prompts(classes, context, architecture=args.architecture), per_class)
    row: Row = {
        "method": "deep, per class" if per_class else "deep",
        "classes": classes,
        "context": context,
        "images": 1,
    }
    return row | _times(args, prompts, min(classes, args.plain_classes))


def _cocoop(args: argparse.Namespace) -> Row:
    """Seconds per image for a batch in which each image has its own context; the plain way runs one at a time."""
    classes, context, images = min(100, max(args.classes)), 4, args.cocoop_batch
    one, all_images = (make_prompts(classes, context, number, args.architecture) for number in (1, images))
    plain, tower = [], []
    for _ in range(args.rounds):
        plain.append(_timed(args, one, "plain"))
        tower.append(_timed(args, all_images, "tower") / images)
    seconds = statistics.median(plain), statistics.median(tower)
    row: Row = {"method": "CoCoOp", "classes": classes, "context": context, "images": images}
    return row | {"plain_seconds": seconds[0], "seconds": seconds[1], "speedup": seconds[0] / seconds[1]}


def _times(args: argparse.Namespace, prompts: Prompts, plain_classes: int) -> Row:
    """Seconds of both ways, the plain way's scaled to all classes, and the largest relative difference of results."""
    classes = len(prompts.tokens)
    tokens, target = prompts.tokens[:plain_classes], prompts.target[:plain_classes]
    rows = {i: rows if rows.dim() == 2 else rows[:plain_classes] for i, rows in prompts.deep.items()}
    few = Prompts(prompts.model, prompts.context, tokens, target, rows)
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
    return seconds_of(lambda: prompts.step(getattr(prompts, way)), clock)


def _plain_peak(args: argparse.Namespace, classes: int, context: int) -> tuple[float, int]:
    """Peak memory of the plain way in MB, and the number of classes it was measured with. Where all classes would not
    fit, it is extrapolated from two smaller numbers."""
    few = args.plain_classes
    if classes <= few:
        return _peak(args, "plain", classes, context), classes
    half, whole = (_peak(args, "plain", number, context) for number in (few // 2, few))
    expected = whole + (whole - half) / (few - few // 2) * (classes - few)
    if expected > 0.7 * _available_mb():
        return expected, few
    return _peak(args, "plain", classes, context), classes


def _peak(args: argparse.Namespace, way: str, classes: int, context: int) -> float:
    """Peak memory in MB of a process that runs one step."""
    command = [
        sys.executable,
        "-c",
        "import sys; from dassl_lite.tools._bench.text_tower import print_peak; print_peak(*sys.argv[1:])",
    ]
    command += [way, args.architecture, str(classes), str(context)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    answer = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(answer.stdout)


def print_peak(way: str, architecture: str, classes: str, context: str) -> None:
    """Run one step of the way, "plain" or "tower", and print this process's peak memory in MB."""
    prompts = make_prompts(int(classes), int(context), architecture=architecture)
    prompts.step(getattr(prompts, way))
    print(_peak_mb())


def _peak_mb() -> float:
    """Peak memory of this process in MB, on Linux without that of the parent before the fork."""
    status = Path("/proc/self/status")
    if status.exists():
        return _kilobytes(status, "VmHWM") / 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _available_mb() -> float:
    memory = Path("/proc/meminfo")
    return _kilobytes(memory, "MemAvailable") / 1024 if memory.exists() else 0.0


def _kilobytes(file: Path, key: str) -> int:
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(f"{key}:"))
