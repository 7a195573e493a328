"""Evaluate a trained run, on its own dataset or on others.

    python tools/eval.py --model-dir output/TaskRes/ShapesNet-16shots-seed1
    python tools/eval.py --model-dir DIR --dataset-config-file shapesnet_v2 shapesnet_a

Trainer, backbone and method come from the run. Classes are matched by id, else by name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from dassl_lite.engine.cli import add_common_flags, run_tool
from dassl_lite.engine.evaluate import Evaluation, as_dict, config_for, evaluate, row_of, stored_config
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, get_logger, setup_logger, write_json

logger = get_logger(__name__)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="eval.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-dir", default="", help="the run to evaluate")
    add("--load-epoch", type=int, help="which of its checkpoints (default: the best, else the last)")
    add("--dataset-config-file", nargs="+", default=[], help="yaml files or names of other datasets")
    add("--output-dir", default="", help="where log.txt and evaluation.json go")
    add("--strict-classes", action="store_true", help="a class that the run does not know is an error")
    add_common_flags(parser)
    return parser.parse_args(argv)


def show(rows: Sequence[Evaluation]) -> None:
    """The table, with the mean where there are several rows."""
    table = [[r.dataset, r.images, r.classes, r.accuracy, r.macro_f1, r.seconds] for r in rows]
    if len(rows) > 1:
        means = [sum(getattr(row, metric) for row in rows) / len(rows) for metric in ("accuracy", "macro_f1")]
        table.append(["mean", "", "", *means])
    headers = ["dataset", "images", "classes", "accuracy %", "macro-F1 %", "seconds"]
    logger.info("\n" + tabulate(table, headers=headers, floatfmt=("", "d", "d", ".2f", ".2f", ".1f")))


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if not args.model_dir:
        raise UserError("--model-dir is missing: the folder of the run to evaluate")
    setup_logger(args.output_dir or None)
    load_plugins(args.plugin)
    stored = stored_config(args.model_dir)
    flags = {"DATASET": {"ROOT": args.root}} if args.root else {}
    if args.output_dir:
        flags["OUTPUT_DIR"] = args.output_dir
    rows = []
    for dataset in args.dataset_config_file or [None]:
        cfg = config_for(stored, dataset, flags, args.options)
        rows.append(row_of(evaluate(cfg, args.model_dir, args.load_epoch, strict_classes=args.strict_classes)))
    show(rows)
    if args.output_dir:
        path = Path(args.output_dir) / "evaluation.json"
        write_json({"model_dir": str(args.model_dir), "rows": [as_dict(row) for row in rows]}, path)
        logger.info(f"\nResults: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
