"""Print a table of a sweep's results by method and number of shots.

    python tools/report.py output/sweep

Values are means over seeds with 95 % confidence intervals (Student's t). The table is also written to report.md and
report.csv in the folder.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from dassl_lite.engine.commands.arguments import ToolParser, tool_parser
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.summary import Cell, as_table, gather
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, atomic_path
from dassl_lite.utils.logger import say, setup_logger


def write_csv(cells: Sequence[Cell], path: Path) -> None:
    """One line per cell, with every value in full precision."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["dataset", "method", "backbone", "shots", "seeds", "mean", "ci95", "values", "metric"])
        for cell in cells:
            run = [cell.dataset, cell.trainer, cell.backbone, cell.shots, len(cell.values)]
            writer.writerow([*run, cell.mean, cell.interval, " ".join(map(repr, cell.values)), cell.metric])


def make_parser() -> ToolParser:
    """The flags of report.py."""
    parser = tool_parser("report", __doc__, "%(prog)s [options] FOLDER")
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="folder of the sweep; its finished runs at any depth are included")
    about = "accuracy, error_rate, macro_f1 or ece; of multi-label data mAP, micro_f1 or macro_f1 (default: the first)"
    add("--metric", default="", metavar="NAME", help=about)
    add("--split", default="test", metavar="NAME", help="test (default) or val")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    setup_logger()
    cells = gather(args.folder, args.metric, args.split)
    load_plugins()  # to tell methods that use no shots from runs on all images
    headers, rows = as_table(cells)
    say(tabulate(rows, headers=headers, disable_numparse=True))
    counts = sorted({len(cell.values) for cell in cells if cell.shots})
    if max(counts, default=1) > 1:
        what = f"mean ± 95 % confidence interval over {' or '.join(map(str, counts))} seeds"
    else:
        what = "one seed"
    metrics = " or ".join(sorted({cell.metric for cell in cells}))
    say(f"\n{args.split} {metrics} in %, {what}")
    folder = Path(args.folder)
    try:
        write_csv(cells, folder / "report.csv")
        with atomic_path(folder / "report.md") as temporary:
            temporary.write_text(
                tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n", encoding="utf-8"
            )
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    say(f"Written to {folder / 'report.md'} and {folder / 'report.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
