"""Print the tables of a sweep: by method and number of shots, averages and ranks over datasets, costs.

    python tools/report.py output/sweep
    python tools/report.py output/sweep --versus TaskRes
    python tools/report.py output/sweep --published

Values are means over seeds with 95 % confidence intervals (Student's t). The tables are also written to report.md and
report.tex in the folder, every value in full precision to report.csv.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from dassl_lite.engine.commands.arguments import ToolParser, tool_parser
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.published import Published, read_sources
from dassl_lite.engine.commands.summary import (
    Cell,
    as_table,
    average_table,
    cost_table,
    gather,
    provenance,
    rank_table,
    versus_tables,
)
from dassl_lite.engine.commands.tables import Table, escape_latex
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, atomic_path
from dassl_lite.utils.logger import say, setup_logger

OF_RUNS = ("seed", "draw", "tuned_on", "zero_shot", "ece", "seconds", "parameters", "memory")  # columns of report.csv


def write_csv(cells: Sequence[Cell], path: Path) -> None:
    """One line per cell, with every value in full precision."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        header = ["dataset", "method", "backbone", "shots", "seeds", "mean", "ci95", "values", "metric"]
        writer.writerow([*header, *OF_RUNS])
        for cell in cells:
            run = [cell.dataset, cell.trainer, cell.backbone, cell.shots, len(cell.values)]
            of_runs = [" ".join(str(getattr(run, name)) for run in cell.runs) for name in OF_RUNS]
            writer.writerow([*run, cell.mean, cell.interval, " ".join(map(repr, cell.values)), cell.metric, *of_runs])


def write_text(text: str, path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def as_latex(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """All tables, to be included in a document with the packages named first; what a reader must know as comments."""
    packages = "booktabs,graphicx" if any(table.shrinks for table in tables) else "booktabs"
    comments = [rf"% \usepackage{{{packages}}}", *(f"% {escape_latex(note)}" for note in notes)]
    return "\n".join([*comments, *(table.as_latex() for table in tables)])


def make_parser() -> ToolParser:
    """The flags of report.py."""
    parser = tool_parser("report", __doc__, "%(prog)s [options] FOLDER")
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="folder of the sweep; its finished runs at any depth are included")
    about = "accuracy, error_rate, macro_f1 or ece; of multi-label data mAP, micro_f1 or macro_f1 (default: the first)"
    add("--metric", default="", metavar="NAME", help=about)
    add("--split", default="test", metavar="NAME", help="test (default) or val")
    add("--versus", default="", metavar="METHOD", help="also the differences of all methods from this one, with tests")
    about = "also others' published numbers for the same dataset, method, shots and backbone, with their source"
    add("--published", action="store_true", help=about)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    setup_logger()
    cells = gather(args.folder, args.metric, args.split)
    load_plugins()  # to tell methods that use no shots from runs on all images
    published = Published(read_sources()) if args.published and args.split == "test" else None
    main_table = as_table(cells, published)
    more = [
        average_table(cells, published),
        rank_table(cells),
        *(versus_tables(cells, args.versus) if args.versus else []),
    ]
    tables = [main_table, *(table for table in (*more, cost_table(cells)) if table is not None)]
    say("\n\n".join(table.as_text() for table in tables))
    counts = sorted({len(cell.values) for cell in cells if cell.shots})
    if max(counts, default=1) > 1:
        what = f"mean ± 95 % confidence interval over {' or '.join(map(str, counts))} seeds"
    else:
        what = "one seed"
    metrics = " or ".join(sorted({cell.metric for cell in cells}))
    notes = [f"{args.split} {metrics} in %, {what}", *provenance(cells)]
    notes += published.notes() if published else []
    say("\n" + "\n".join(notes))
    folder = Path(args.folder)
    try:
        write_csv(cells, folder / "report.csv")
        write_text("\n\n".join([*(table.as_markdown() for table in tables), *notes]), folder / "report.md")
        write_text(as_latex(tables, notes), folder / "report.tex")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    say(f"Written to {folder / 'report.md'}, {folder / 'report.csv'} and {folder / 'report.tex'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
