"""Pre-train the demo model from nothing, and compare it with the weights that are shipped.

    python tools/pretrain_demo.py --out demo.safetensors

It draws its own pictures, writes its own captions and trains on them; `tools/_demo/` is the whole recipe. The result
is the same to the last bit for the same number of threads, kind of processor and versions of torch and numpy. Another
processor may round differently: the digests then differ, and the accuracies printed on the way tell how close it is.

    python tools/pretrain_demo.py --choose-tilt

prints the table by which the lean of the suite's photographs was chosen, on validation pictures.
"""

from __future__ import annotations

import argparse
import logging
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from dassl_lite.datasets._drawn.looks import TILT
from dassl_lite.engine.commands.cli import ToolParser, run_tool
from dassl_lite.models import __path__ as models_path
from dassl_lite.tools._demo import tilt
from dassl_lite.tools._demo.model import digest, export
from dassl_lite.tools._demo.pretraining import Recipe, pretrain
from dassl_lite.utils import UserError, setup_logger

logger = logging.getLogger("dassl_lite.tools.pretrain_demo")

SHIPPED = Path(models_path[0]) / "weights" / "demo.safetensors"
THREADS = 1  # of the shipped weights
ANGLES = (0, 15, 22, 26, 28, 30, 32, 34, 40)  # degrees


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    setup_logger()
    torch.set_num_threads(args.threads)
    if args.choose_tilt:
        choose_tilt(args.weights, args.angles)
        return 0
    return remake(args)


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo.safetensors"), help="file to write")
    parser.add_argument("--threads", type=int, default=THREADS, help="the shipped weights took 1")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="fewer for a trial")
    parser.add_argument("--pictures", type=int, default=Recipe.pictures, help="fewer for a trial")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--choose-tilt", action="store_true", help="print validation accuracies by angle and stop")
    parser.add_argument("--angles", type=float, nargs="+", default=ANGLES, help="for --choose-tilt, in degrees")
    parser.add_argument("--weights", default="demo", help="for --choose-tilt: weights to use")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def remake(args: argparse.Namespace) -> int:
    """Pre-train, write the file, and say whether it is the shipped one."""
    if args.steps < 1 or args.pictures < 200 or args.threads < 1:
        raise UserError("--steps and --threads must be 1 or more, --pictures 200 or more")
    started, cpu = time.perf_counter(), time.process_time()
    recipe = replace(Recipe(), steps=args.steps, pictures=args.pictures, seed=args.seed)
    model, vocabulary = pretrain(recipe)
    try:
        export(model, vocabulary, recipe.as_json(), args.out)
    except OSError as error:
        raise UserError(f"cannot write {args.out}: {error.strerror or error}") from None
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    logger.info("%s: %.1f MB, %.0f s (%.0f s of processor)", args.out, args.out.stat().st_size / 1e6, elapsed, cpu)
    compare(args.out, SHIPPED)
    return 0


def compare(made: Path, shipped: Path) -> bool:
    """Log both digests and whether they are equal."""
    digests = digest(made), digest(shipped)
    logger.info("made     %s\nshipped  %s", *digests)
    if digests[0] == digests[1]:
        logger.info("equal: the shipped weights are what this recipe makes")
        return True
    logger.info(
        "not equal; bits depend on the recipe's settings, the number of threads (%d here), the processor (%s) and the "
        "versions (torch %s, numpy %s)",
        torch.get_num_threads(),
        platform.processor() or platform.machine(),
        torch.__version__,
        np.__version__,
    )
    return False


def choose_tilt(weights: str, angles: Sequence[float]) -> None:
    """Log the table of validation accuracies, and the angle that the rule takes."""
    trials = []
    for angle in angles:
        trials.append(tilt.try_tilt(weights, angle))
        logger.info("%g degrees done", angle)
    rows = [[f"{t.tilt:g}", f"{t.zero_shot:.1f}", f"{t.taskres:.1f}", f"{t.gain:+.1f}"] for t in trials]
    headers = ["tilt", "zero-shot", f"TaskRes {tilt.SHOTS} shots", "gain"]
    logger.info("validation accuracy in per cent\n%s", tabulate(rows, headers=headers, disable_numparse=True))
    logger.info("chosen: %g degrees (in use: %g)", tilt.best(trials).tilt, TILT)


if __name__ == "__main__":
    sys.exit(run_tool(main))
