"""Evaluate a trained run, on its own dataset or on others.

    python tools/eval.py --model-dir output/TaskRes/ShapesNet-16shots-seed1
    python tools/eval.py --model-dir RUN --dataset-config-file shapesnetv2 shapesneta
    python tools/eval.py --model-dir RUN --data FOLDER TABLE.csv
    python tools/eval.py --model-dir RUN --suite demo

    python tools/eval.py --model-dir DASSL_RUN --trainer TaskRes --backbone RN50 --dataset-config-file imagenet_a
    python tools/eval.py --model-dir lora_weights.pt --trainer CLIPLoRA --backbone ViT-B/16 --dataset-config-file dtd

The run's own config says which trainer and backbone to use; runs of other programs need --trainer and --backbone.
Classes of another dataset are matched by id where both have ids, otherwise by name.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from tabulate import tabulate

from dassl_lite.engine.build import TRAINER_REGISTRY
from dassl_lite.engine.commands.arguments import (
    DatasetChoice,
    ToolParser,
    add_config_flags,
    add_dataset_flags,
    add_model_flags,
    config_arguments,
    dataset_choices,
    refuse_keys,
    refuse_without_effect,
    tool_parser,
)
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.evaluate import (
    Evaluation,
    Target,
    config_for,
    config_given,
    evaluate_row,
    stored_config,
    suite,
)
from dassl_lite.engine.files.results import MAIN_METRICS
from dassl_lite.engine.parallel import distributed
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, atomic_path, get_logger, setup_logger, write_json

logger = get_logger(__name__)

COLUMNS = ("classes matched", "images", "seconds")  # of the table, behind the metrics
FORMATS = (".json", ".csv", ".md")
# Config keys without effect -> what to use in their place.
IGNORED = {
    **dict.fromkeys(("MODEL.INIT_WEIGHTS", "OPTIM", "RESUME", "TRAIN", "TEST.FINAL_MODEL", "TEST.NO_TEST"), ""),
    **{"OUTPUT_DIR": "--output-dir", "TRAINER.NAME": "--trainer"},
}


def make_parser() -> ToolParser:
    """The flags of eval.py."""
    parser = tool_parser("eval", __doc__)
    add = parser.add_argument
    add("--model-dir", default="", metavar="DIR", help="run to evaluate; with --trainer also a file of weights")
    add("--load-epoch", type=int, metavar="N", help="checkpoint epoch to load (default: the best, else the last)")
    add("--trainer", default="", metavar="NAME", help="method of a run that does not say it, such as one of Dassl's")
    add_model_flags(parser)
    add("--suite", default="", metavar="NAME", help="demo, cross-dataset, domain-generalization, base-to-new or all")
    add("--output-dir", default="", metavar="DIR", help="folder for log.txt and evaluation.json")
    add("--output", default="", metavar="FILE", help="write the table to a .json, .csv or .md file")
    add("--strict", action="store_true", help="fail if a dataset is not found, instead of skipping it")
    add("--strict-classes", action="store_true", help="fail if the run does not know a class of the dataset")
    add_dataset_flags(parser, several=True, default="the run's own")
    add_config_flags(parser)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    args = make_parser().parse_args(argv)
    if not args.model_dir:
        raise UserError("--model-dir is missing: the folder of the run to evaluate")
    if args.output and Path(args.output).suffix not in FORMATS:
        raise UserError(f"--output {args.output} must end in one of {', '.join(FORMATS)}")
    return args


def table_of(rows: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table; an average is over the datasets that were evaluated and have the metric.

    The method is named where it is transductive. Multi-label datasets have mAP in the place of accuracy, in a column of
    its own if there are others.
    """
    evaluated = [row for row in rows if not row.missing]
    used = {"accuracy" if math.isnan(row.mAP) else "mAP" for row in evaluated} or {"accuracy"}
    metrics = [*(name for name in MAIN_METRICS if name in used), "macro_f1"]
    named = any(row.transductive for row in evaluated)  # then a column says so
    table = []
    for row in rows:
        method = [row.method] * named
        if row.missing:
            table.append([row.dataset, *method, row.status, *[""] * (len(metrics) + 2)])
            continue
        matched = "" if row.matched is None else f"{row.matched} of {row.classes}"
        values = [_average([row], name) for name in metrics]
        table.append([row.dataset, *method, *values, matched, f"{row.images:,}", f"{row.seconds:.1f}"])
    if len(evaluated) > 1:
        means = [_average(evaluated, name) for name in metrics]
        table.append(["average", *[""] * named, *means, "", "", f"{sum(row.seconds for row in evaluated):.1f}"])
    return ["dataset", *["method"] * named, *(f"{name.replace('_f1', '-F1')} %" for name in metrics), *COLUMNS], table


def _average(rows: Sequence[Evaluation], metric: str) -> str:
    """The mean of a metric over the rows that have it, as the table shows it."""
    known = [value for row in rows if not math.isnan(value := getattr(row, metric))]
    return f"{fmean(known):.2f}" if known else ""


def write(rows: Sequence[Evaluation], model_dir: str, path: Path) -> None:
    """Write the rows: as .json and .csv in full precision, as .md like the table on the console."""
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


def targets_of(args: argparse.Namespace) -> list[tuple[Target | None, str]]:
    """What to evaluate on, each with the name of its row ("": the dataset's own name)."""
    choices = dataset_choices(args, default="")
    labels = Counter(choice.label for choice in choices)
    targets: list[tuple[Target | None, str]] = []
    for choice in choices:
        name = choice.label if labels[choice.label] == 1 else choice.data
        targets.append((choice.flags, name) if choice.data else (choice.file, ""))
    targets += [(target, "") for target in (suite(args.suite) if args.suite else [])]
    return targets or [(None, "")]


def _config_of_run(args: argparse.Namespace) -> dict[str, Any]:
    """What the run says about itself or, with --trainer, what the command line says."""
    if not args.trainer:
        return stored_config(args.model_dir)
    if not (args.dataset_config_file or args.data or args.suite or "DATASET.NAME" in args.options[::2]):
        raise UserError("--trainer also needs a dataset: --dataset-config-file, --data or --suite")
    return config_given(args.trainer, args.config_file, args.backbone)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    setup_logger(args.output_dir or None)
    load_plugins(args.plugin)
    refuse_keys(args.options, IGNORED, "on an evaluation")
    stored = _config_of_run(args)
    flags = config_arguments(args, DatasetChoice())["flags"]
    targets = targets_of(args)
    new = {"allow_new_keys": args.allow_new_keys}
    configs = [config_for(stored, target, flags, args.options, args.config_file, **new) for target, _ in targets]
    for cfg in configs[:1] if len({cfg.DATASET.NAME for cfg in configs}) == 1 else []:
        refuse_without_effect(args, [TRAINER_REGISTRY.get(cfg.TRAINER.NAME)], cfg)
    strict = {"strict_classes": args.strict_classes, "strict": args.strict or len(targets) == 1}
    rows = [
        evaluate_row(cfg, args.model_dir, args.load_epoch, name=name, **strict)
        for cfg, (_, name) in zip(configs, targets, strict=True)
    ]
    headers, table = table_of(rows)
    columns = ("left", *["right"] * (len(headers) - 1))
    logger.info("\n" + tabulate(table, headers=headers, disable_numparse=True, colalign=columns))
    for path in (args.output, args.output_dir and Path(args.output_dir) / "evaluation.json"):
        if path and not distributed.rank():
            write(rows, args.model_dir, Path(path))
            logger.info(f"\nResults: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
