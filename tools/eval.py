"""Evaluate a trained run, on its own dataset or on others.

    python tools/eval.py --model-dir output/TaskRes/ShapesNet-16shots-seed1
    python tools/eval.py --model-dir RUN --dataset-config-file shapesnetv2 shapesneta
    python tools/eval.py --model-dir RUN --suite demo

    python tools/eval.py --model-dir DASSL_RUN --trainer TaskRes --backbone RN50 --dataset-config-file imagenet_a
    python tools/eval.py --model-dir lora_weights.pt --trainer CLIPLoRA --backbone ViT-B/16 --dataset-config-file dtd

Trainer, backbone and method come from the run, where it says them. Classes are matched by id, else by name.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dassl_lite.engine.commands.cli import ToolParser, add_common_flags, run_tool
from dassl_lite.engine.commands.evaluate import Evaluation, config_for, config_given, evaluate_row, stored_config, suite
from dassl_lite.engine.parallel import distributed
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, atomic_path, get_logger, setup_logger, write_json

logger = get_logger(__name__)

FORMATS = (".json", ".csv", ".md")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ToolParser(prog="eval.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model-dir", default="", help="the run to evaluate; with --trainer, another program's run or file")
    add("--load-epoch", type=int, help="which of its checkpoints (default: the best, else the last)")
    add("--dataset-config-file", nargs="+", default=[], help="yaml files or names of other datasets")
    add("--trainer", default="", help="method of a run that does not say it: files of Dassl and its forks")
    add("--config-file", default="", help="its yaml (default: the method's default)")
    add("--backbone", default="", help="its CLIP backbone")
    add("--suite", default="", help="demo, cross-dataset, domain-generalization, base-to-new or all")
    add("--output-dir", default="", help="where log.txt and evaluation.json go")
    add("--output", default="", metavar="FILE", help="write the table as .json, .csv or .md")
    add("--strict", action="store_true", help="a dataset that is not there is an error")
    add("--strict-classes", action="store_true", help="a class that the run does not know is an error")
    add_common_flags(parser)
    args = parser.parse_args(argv)
    if not args.model_dir:
        raise UserError("--model-dir is missing: the folder of the run to evaluate")
    if args.output and Path(args.output).suffix not in FORMATS:
        raise UserError(f"--output {args.output} must end in one of {', '.join(FORMATS)}")
    return args


def table_of(rows: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table, with the average where there are several."""
    table = []
    for row in rows:
        if row.missing:
            table.append([row.dataset, row.status, "", "", "", ""])
            continue
        matched = "" if row.matched is None else f"{row.matched} of {row.classes}"
        found = [f"{row.accuracy:.2f}", f"{row.macro_f1:.2f}", matched, f"{row.images:,}", f"{row.seconds:.1f}"]
        table.append([row.dataset, *found])
    there = [row for row in rows if not row.missing]
    if len(there) > 1:
        means = [sum(getattr(row, metric) for row in there) / len(there) for metric in ("accuracy", "macro_f1")]
        table.append(["average", *(f"{mean:.2f}" for mean in means), "", "", f"{sum(r.seconds for r in there):.1f}"])
    return ["dataset", "accuracy %", "macro-F1 %", "classes matched", "images", "seconds"], table


def write(rows: Sequence[Evaluation], model_dir: str, path: Path) -> None:
    """Write the rows, in full precision but for Markdown."""
    if path.suffix == ".json":
        write_json({"model_dir": model_dir, "rows": [asdict(row) for row in rows]}, path)
        return
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".md":
            headers, table = table_of(rows)
            file.write(tabulate(table, headers, tablefmt="github", disable_numparse=True) + "\n")
        else:
            writer = csv.DictWriter(file, [field.name for field in fields(Evaluation)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)


def _config_of_run(args: argparse.Namespace) -> dict[str, Any]:
    """What the run says of itself, or with --trainer what the command line says."""
    if not args.trainer:
        return stored_config(args.model_dir)
    if not (args.dataset_config_file or args.suite or "DATASET.NAME" in args.options[::2]):
        raise UserError("--trainer needs --dataset-config-file or --suite too: what to evaluate on")
    return config_given(args.trainer, args.config_file, args.backbone)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    setup_logger(args.output_dir or None)
    load_plugins(args.plugin)
    stored = _config_of_run(args)
    flags: dict[str, Any] = {"DATASET": {"ROOT": args.root}} if args.root else {}
    if args.output_dir:
        flags["OUTPUT_DIR"] = args.output_dir
    targets = [*args.dataset_config_file, *(suite(args.suite) if args.suite else [])] or [None]
    configs = [config_for(stored, target, flags, args.options) for target in targets]
    strict = {"strict_classes": args.strict_classes, "strict": args.strict or len(targets) == 1}
    rows = [evaluate_row(cfg, args.model_dir, args.load_epoch, **strict) for cfg in configs]
    headers, table = table_of(rows)
    columns = ("left", *["right"] * 5)
    logger.info("\n" + tabulate(table, headers=headers, disable_numparse=True, colalign=columns))
    for path in (args.output, args.output_dir and Path(args.output_dir) / "evaluation.json"):
        if path and not distributed.rank():
            write(rows, args.model_dir, Path(path))
            logger.info(f"\nResults: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
