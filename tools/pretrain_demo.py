"""Pre-train the demo model from scratch and compare it with the weights in the package.

    python tools/pretrain_demo.py --out demo.safetensors
    python tools/pretrain_demo.py --choose-tilt

The tool draws its own pictures, writes their captions and trains on them; the recipe is in tools/_demo/. The result is
bit-identical for the same number of threads, kind of processor and versions of torch and numpy. Other processors may
round differently: the digests then differ, and the accuracies printed during training show how close the result is.

--choose-tilt prints the table of validation accuracies from which the tilt of the suite's photographs was chosen.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import dassl_lite  # isort: skip  # noqa: F401  ready for signals that come while torch loads
import numpy as np
import torch
from tabulate import tabulate

from dassl_lite.datasets._drawn.looks import TILT
from dassl_lite.engine.commands.arguments import ToolParser, check_at_least, tool_parser
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.models import __path__ as models_path
from dassl_lite.tools._demo import tilt
from dassl_lite.tools._demo.model import digest, export
from dassl_lite.tools._demo.pretraining import Recipe, pretrain
from dassl_lite.utils import UserError, get_logger, setup_logger

logger = get_logger(__name__)

SHIPPED = Path(models_path[0]) / "weights" / "demo.safetensors"
THREADS = 1  # that the weights in the package were trained with
ANGLES = (0, 15, 22, 26, 28, 30, 32, 34, 40)  # degrees


def make_parser() -> ToolParser:
    """The flags of pretrain_demo.py."""
    parser = tool_parser("pretrain_demo", __doc__)
    add = parser.add_argument
    add(
        "--output",
        "--out",
        dest="out",
        type=Path,
        default=Path("demo.safetensors"),
        metavar="FILE",
        help="file to write",
    )
    add("--threads", type=int, default=THREADS, metavar="N", help="CPU threads; the weights in the package used 1")
    add("--steps", type=int, default=Recipe.steps, metavar="N", help="training steps")
    add("--pictures", type=int, default=Recipe.pictures, metavar="N", help="number of pictures to draw, at least 200")
    add("--seed", type=int, default=Recipe.seed, metavar="N", help="seed of the pictures and of training")
    add("--choose-tilt", action="store_true", help="print validation accuracies by angle, and exit")
    add("--angles", type=float, nargs="+", default=ANGLES, metavar="DEGREES", help="angles for --choose-tilt")
    add("--weights", default="demo", metavar="NAME", help="weights for --choose-tilt")
    parser.ignores("--choose-tilt", "--output", "--steps", "--pictures", "--seed")
    parser.needs("--choose-tilt", "--angles", "--weights")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    check_at_least(args, 1, ["threads"], at_most=1024)
    check_at_least(args, 1, ["steps"], at_most=10_000_000)
    check_at_least(args, 200, ["pictures"], at_most=10_000_000)
    check_at_least(args, 0, ["seed"], at_most=2**32 - 1)
    setup_logger()
    torch.set_num_threads(args.threads)
    if args.choose_tilt:
        choose_tilt(args.weights, args.angles)
        return 0
    return remake(args)


def remake(args: argparse.Namespace) -> int:
    """Pre-train, write the file and compare it with the one in the package."""
    started, cpu = time.perf_counter(), time.process_time()
    recipe = replace(Recipe(), steps=args.steps, pictures=args.pictures, seed=args.seed)
    model, vocabulary = pretrain(recipe)
    try:
        export(model, vocabulary, recipe.as_json(), args.out)
    except OSError as error:
        raise UserError(f"cannot write {args.out}: {error.strerror or error}") from None
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    logger.info(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, {elapsed:.0f} s ({cpu:.0f} s of CPU time)")
    compare(args.out, SHIPPED)
    return 0


def compare(made: Path, shipped: Path) -> bool:
    """Log both digests and whether they are equal."""
    digests = digest(made), digest(shipped)
    logger.info(f"this run  {digests[0]}\npackage   {digests[1]}")
    if digests[0] == digests[1]:
        logger.info("equal: this recipe produces the weights in the package")
        return True
    logger.info(
        f"not equal; the bits depend on the flags, the number of threads (here {torch.get_num_threads()}), the "
        f"processor ({platform.processor() or platform.machine()}) and the versions (torch {torch.__version__}, "
        f"numpy {np.__version__})"
    )
    return False


def choose_tilt(weights: str, angles: Sequence[float]) -> None:
    """Log the table of validation accuracies and the angle that the rule chooses."""
    trials = []
    for angle in angles:
        trials.append(tilt.try_tilt(weights, angle))
        logger.info(f"{angle:g} degrees done")
    rows = [[f"{t.tilt:g}", f"{t.zero_shot:.1f}", f"{t.taskres:.1f}", f"{t.gain:+.1f}"] for t in trials]
    headers = ["tilt", "zero-shot", f"TaskRes {tilt.SHOTS} shots", "gain"]
    logger.info(f"validation accuracy in percent\n{tabulate(rows, headers=headers, disable_numparse=True)}")
    logger.info(f"chosen: {tilt.best(trials).tilt:g} degrees (in use: {TILT:g})")


if __name__ == "__main__":
    sys.exit(run_tool(main))
