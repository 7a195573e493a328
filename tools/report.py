"""Print the tables of a sweep: by method and number of shots, averages and ranks over datasets, costs.

    python tools/report.py output/sweep
    python tools/report.py output/sweep --versus TaskRes
    python tools/report.py output/sweep --published
    python tools/report.py output/sweep --plots figures
    python tools/report.py RUN --html run.html
    python tools/report.py RUN OTHER_RUN --html changes.html

Values are means over seeds with 95 % confidence intervals (Student's t). The tables are also written to report.md and
report.tex in the folder, every value in full precision to report.csv. Of a benchmark's folder, the tables of its other
protocols follow.

Of a run's own folder, --html writes a page: curves, confusions, accuracy per class, calibration, mistakes, features in
the plane. Of two runs on the same images, it shows which images the second one answers in another way.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dassl_lite.engine.commands.arguments import ToolParser, tool_parser
from dassl_lite.engine.commands.benchmark import has_runs, notes_in, runs_of_shots
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.figures import figures, require_cells
from dassl_lite.engine.commands.plots import draw
from dassl_lite.engine.commands.published import Published, read_sources
from dassl_lite.engine.commands.summary import (
    Cell,
    as_table,
    average_table,
    cost_table,
    gaps,
    gather,
    provenance,
    rank_table,
    versus_tables,
)
from dassl_lite.engine.commands.tables import Table, escape_latex
from dassl_lite.engine.commands.transfers import transfer_tables, write_transfers
from dassl_lite.engine.files.run_folder import holds_run
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, atomic_path
from dassl_lite.utils.lazy import optional_module
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
    parser = tool_parser("report", __doc__, "%(prog)s [options] FOLDER [OTHER_RUN]")
    add = parser.add_argument
    about = "of a sweep or benchmark, whose finished runs at any depth are included; with --html also of a single run"
    add("folder", metavar="FOLDER", help=about)
    add("other", nargs="?", default="", metavar="OTHER_RUN", help="with --html: a run to compare that in FOLDER with")
    about = "accuracy, error_rate, macro_f1 or ece; of multi-label data mAP, micro_f1 or macro_f1 (default: the first)"
    add("--metric", default="", metavar="NAME", help=about)
    add("--split", default="test", metavar="NAME", help="test (default) or val")
    add("--versus", default="", metavar="METHOD", help="also the differences of all methods from this one, with tests")
    about = "also others' published numbers for the same dataset, method, shots and backbone, with their source"
    add("--published", action="store_true", help=about)
    about = "also figures for a paper, as PNG, SVG and PDF, and figures.tex with their captions (needs the extra plots)"
    add("--plots", metavar="DIR", help=about)
    about = "number of shots that figures show which are of one: heat map, ranks, time (default: the largest)"
    add("--shots", type=int, metavar="N", help=about)
    about = "write a page to look at, one file that opens without a network (needs the extra html)"
    add("--html", default="", metavar="FILE", help=about)
    return parser


def write_run_page(args: argparse.Namespace) -> None:
    """The page of the run in ``args.folder`` or, if there is another, of what the two answer differently.

    Raises:
        UserError: a folder holds no run, or the page cannot be made.
    """
    folders = [Path(one) for one in (args.folder, args.other) if one]
    for folder in folders:
        if not holds_run(folder):
            raise UserError(f"'{folder}' is not the folder of a run; --html takes one of a run, or two")
    if of_tables := [
        name for name in args.given if name in ("metric", "split", "versus", "published", "plots", "shots")
    ]:
        raise UserError(f"--{of_tables[0]} has no effect on the page of a run, which is about all its answers")
    optional_module("jinja2", "html", "--html")  # said before anything is done
    optional_module("plotly", "html", "--html")
    from dassl_lite.pages.base import write_page
    from dassl_lite.pages.pair import pair_page
    from dassl_lite.pages.run import run_page

    page = pair_page(*folders) if len(folders) > 1 else run_page(*folders)
    write_page(page, Path(args.html))
    say(f"Written to {args.html}")


@dataclass(frozen=True)
class Report:
    """What is told of a folder: tables, notes below them, and the cells of few-shot runs that figures are made of."""

    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    cells: tuple[Cell, ...]


def report(
    folder: Path, metric: str = "", split: str = "test", reference: str = "", *, compare: bool = False
) -> Report:
    """Print the tables of a sweep's or a benchmark's folder, and write them there.

    Args:
        folder: of the sweep or benchmark.
        metric: "" for each run's main one.
        split: test or val.
        reference: a method that the others are compared with; "" for none.
        compare: show published numbers too.

    Raises:
        UserError: there is no finished run in it, or nothing can be written to it.
    """
    tables, notes = transfer_tables(folder)
    of_shots = runs_of_shots(folder)
    cells = [] if tables and not has_runs(of_shots) else gather(of_shots, metric, split)
    load_plugins()  # to tell methods that use no shots from runs on all images
    if cells:
        published = Published(read_sources()) if compare and split == "test" else None
        more = [
            average_table(cells, published),
            rank_table(cells),
            *(versus_tables(cells, reference) if reference else []),
            cost_table(cells),
        ]
        tables = [as_table(cells, published), *(table for table in more if table is not None), *tables]
        notes = [*_what(cells, split), *provenance(cells), *(published.notes() if published else []), *notes]
    notes += gaps(cells, of_shots)
    notes += notes_in(folder)
    say("\n\n".join(table.as_text() for table in tables))
    say("\n" + "\n".join(notes))
    try:
        write_csv(cells, folder / "report.csv")
        write_text("\n\n".join([*(table.as_markdown() for table in tables), *notes]), folder / "report.md")
        write_text(as_latex(tables, notes), folder / "report.tex")
        of_transfers = write_transfers(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    written = [folder / "report.md", *([of_transfers] if of_transfers else []), folder / "report.csv"]
    say(f"Written to {', '.join(map(str, written))} and {folder / 'report.tex'}")
    return Report(tuple(tables), tuple(notes), tuple(cells))


def _what(cells: Sequence[Cell], split: str) -> list[str]:
    """What the values are, in a line."""
    counts = sorted({len(cell.values) for cell in cells if cell.shots})
    if max(counts, default=1) > 1:
        what = f"mean ± 95 % confidence interval over {' or '.join(map(str, counts))} seeds"
    else:
        what = "one seed"
    metrics = " or ".join(sorted({cell.metric for cell in cells}))
    return [f"{split} {metrics} in %, {what}"]


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    setup_logger()
    if args.other and not args.html:
        raise UserError("two runs are compared on a page: add --html FILE")
    if args.html:
        write_run_page(args)
        return 0
    if args.shots is not None and not args.plots:
        raise UserError("--shots has no effect without --plots")
    if args.plots:
        optional_module("matplotlib", "plots", "--plots")  # said before anything is done
    made = report(Path(args.folder), args.metric, args.split, args.versus, compare=args.published)
    if args.plots:
        require_cells(made.cells, "--plots")
        drawn = draw(figures(made.cells, args.shots, args.split), Path(args.plots))
        names = ", ".join(path.name for path in drawn)
        say(f"Figures {names} (.png, .svg, .pdf) and {Path(args.plots) / 'figures.tex'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
