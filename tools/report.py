"""One table of a sweep: mean over seeds and 95 % confidence interval (Student's t), by method and shots.

    python tools/report.py output/sweep

Also written into the folder as report.md and report.csv.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from dassl_lite.engine.commands.cli import ToolParser, run_tool
from dassl_lite.engine.commands.summary import Cell, as_table, gather
from dassl_lite.utils import UserError, atomic_path


def write_csv(cells: Sequence[Cell], path: Path) -> None:
    """One line per cell, with every value in full precision."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["dataset", "method", "backbone", "shots", "seeds", "mean", "ci95", "values"])
        for cell in cells:
            values = " ".join(map(repr, cell.values))
            writer.writerow(
                [
                    cell.dataset,
                    cell.trainer,
                    cell.backbone,
                    cell.shots,
                    len(cell.values),
                    cell.mean,
                    cell.interval,
                    values,
                ]
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(prog="report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="runs are looked for in it and below")
    parser.add_argument("--metric", default="accuracy", help="accuracy, error_rate, macro_f1 or ece, in percent")
    parser.add_argument("--split", default="test", help="test or val")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    cells = gather(args.folder, args.metric, args.split)
    headers, rows = as_table(cells)
    print(tabulate(rows, headers=headers, disable_numparse=True))
    counts = sorted({len(cell.values) for cell in cells if cell.shots})
    over = f" over {' or '.join(map(str, counts))} seeds" if counts else ""
    print(f"\n{args.split} {args.metric} in %, mean ± 95 % interval{over}")
    folder = Path(args.folder)
    try:
        write_csv(cells, folder / "report.csv")
        with atomic_path(folder / "report.md") as temporary:
            temporary.write_text(
                tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n", encoding="utf-8"
            )
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    print(f"Also in {folder / 'report.md'} and {folder / 'report.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
