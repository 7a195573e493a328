"""Print the tables of a sweep: results by method and number of shots, averages and ranks over datasets, costs.

    python tools/report.py output/sweep
    python tools/report.py output/sweep --versus TaskRes
    python tools/report.py output/sweep --published
    python tools/report.py output/sweep --plots figures
    python tools/report.py output/sweep --html report.html
    python tools/report.py output/sweep --residuals
    python tools/report.py RUN --html run.html
    python tools/report.py RUN OTHER_RUN --html changes.html
    python tools/report.py SEARCH --html search.html

Values are means over seeds with 95 % confidence intervals (Student's t). The tables are also written to report.md and
report.tex in the folder, and every value in full precision to report.csv. For a benchmark's folder, the tables of its
other protocols follow.

For a single run, --html writes a page with curves, confusions, accuracy per class, calibration, mistakes and a plot of
the features. For two runs on the same images, it shows which predictions differ. For a search by tools/tune.py, it
shows the trials, the effect of each key and the best settings.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from dassl_lite.engine.commands.arguments import ToolParser, tool_parser
from dassl_lite.engine.commands.cells import Cell
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.figures import Figures, figures
from dassl_lite.engine.commands.plots import draw
from dassl_lite.engine.commands.report import Report, make_report
from dassl_lite.engine.commands.residuals import as_plain
from dassl_lite.engine.commands.tables import Table, escape_latex, escape_markdown
from dassl_lite.engine.commands.transfers import write_transfers
from dassl_lite.engine.commands.tune import holds_search, read_search
from dassl_lite.engine.files.run_folder import holds_run
from dassl_lite.pages.base import write_page
from dassl_lite.pages.sweep import sweep_page
from dassl_lite.utils import UserError, atomic_path, write_json
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
    about = "sweep or benchmark, with finished runs at any depth; with --html also a run or a search"
    add("folder", metavar="FOLDER", help=about)
    add("other", nargs="?", default="", metavar="OTHER_RUN", help="with --html: another run to compare it with")
    about = "accuracy, error_rate, macro_f1 or ece; for multi-label data mAP, micro_f1 or macro_f1 (default: the first)"
    add("--metric", default="", metavar="NAME", help=about)
    add("--split", default="test", metavar="NAME", help="test (default) or val")
    add(
        "--versus",
        default="",
        metavar="METHOD",
        help="also compare all methods with this one, with significance tests",
    )
    about = "also show published numbers for the same dataset, method, shots and backbone, with their source"
    add("--published", action="store_true", help=about)
    about = "also write figures as PNG, SVG and PDF, and figures.tex with captions (needs the extra plots)"
    add("--plots", metavar="DIR", help=about)
    about = "also write a self-contained page for the browser (needs the extra html)"
    add("--html", default="", metavar="FILE", help=about)
    about = "also relate the size of TaskRes' residual to how hard a dataset or a class is for zero-shot CLIP"
    add("--residuals", action="store_true", help=about)
    about = "shots to show in figures for one number of shots (default: the largest) and in --residuals (default: 16)"
    add("--shots", type=int, metavar="N", help=about)
    return parser


def refuse_of_tables(args: argparse.Namespace, what: str) -> None:
    """Raise a UserError if a flag was given that has an effect on the tables of a sweep alone."""
    of_tables = ("metric", "split", "versus", "published", "plots", "shots", "residuals")
    if given := [name for name in args.given if name in of_tables]:
        raise UserError(f"--{given[0]} has no effect on the page of {what}")


def write_search_page(args: argparse.Namespace) -> None:
    """The page of the search in ``args.folder``.

    Raises:
        UserError: it cannot be read, or the page cannot be made.
    """
    refuse_of_tables(args, "a search")
    from dassl_lite.pages.search import search_page

    write_page(search_page(read_search(Path(args.folder))), Path(args.html))
    say(f"Written to {args.html}")


def write_run_page(args: argparse.Namespace) -> None:
    """The page of the run in ``args.folder`` or, if there is another, of what the two answer differently.

    Raises:
        UserError: a folder holds no run, or the page cannot be made.
    """
    folders = [Path(one) for one in (args.folder, args.other) if one]
    for folder in folders:
        if not holds_run(folder):
            raise UserError(f"'{folder}' is not the folder of a run; --html takes one of a run, or two")
    refuse_of_tables(args, "a run, which is about all its answers")
    from dassl_lite.pages.pair import pair_page
    from dassl_lite.pages.run import run_page

    page = pair_page(*folders) if len(folders) > 1 else run_page(*folders)
    write_page(page, Path(args.html))
    say(f"Written to {args.html}")


def report(made: Report) -> None:
    """Print the tables of a sweep's or a benchmark's folder, and write them there.

    Raises:
        UserError: nothing can be written to it.
    """
    folder, notes = made.folder, [*made.notes, *made.gaps]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    say("\n\n".join(table.as_text(width) for table in made.tables))
    say("\n" + "\n".join(notes))
    try:
        write_csv(made.cells, folder / "report.csv")
        write_text(
            "\n\n".join([*(table.as_markdown() for table in made.tables), *map(escape_markdown, notes)]),
            folder / "report.md",
        )
        write_text(as_latex(made.tables, notes), folder / "report.tex")
        of_transfers = write_transfers(folder)
        if made.residuals:
            write_json(as_plain(made.residuals), folder / "residuals.json")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    written = [folder / "report.md", *([of_transfers] if of_transfers else []), folder / "report.csv"]
    written += [folder / "residuals.json"] if made.residuals else []
    say(f"Written to {', '.join(map(str, written))} and {folder / 'report.tex'}")


def figures_of(made: Report, shots: int | None) -> Figures | None:
    """The figures of the few-shot runs; None if there are other runs only.

    ``shots`` may be of the residuals alone, while the other figures show the largest number.
    """
    there = {cell.shots for cell in made.cells}
    return (
        figures(made.cells, shots if not made.residuals or shots in there else None, made.split) if made.cells else None
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    setup_logger()
    if args.other and not args.html:
        raise UserError("two runs are compared on a page: add --html FILE")
    if args.shots is not None and not (args.plots or args.html or args.residuals):
        raise UserError("--shots has no effect without --plots, --html or --residuals")
    for flag, wanted, module, extra in (
        ("--plots", args.plots, "matplotlib", "plots"),
        ("--html", args.html, "plotly", "html"),
        ("--html", args.html, "jinja2", "html"),
    ):
        if wanted:
            optional_module(module, extra, flag)  # said before anything is done
    if "html" in args.given and (not args.html or Path(args.html).is_dir()):
        raise UserError(f"--html '{args.html}' is not a file to write")
    if args.html and not args.other and holds_search(Path(args.folder)):
        write_search_page(args)
        return 0
    if args.html and (args.other or holds_run(args.folder)):
        write_run_page(args)
        return 0
    made = make_report(
        Path(args.folder),
        args.metric,
        args.split,
        args.versus,
        compare=args.published,
        residuals=args.residuals,
        shots=args.shots,
    )
    shown = figures_of(made, args.shots) if args.plots or args.html else None
    if args.plots and not (shown or made.residuals):
        raise UserError("--plots has nothing to show: no run of the protocol few-shot has finished in this folder")
    report(made)
    if args.plots:
        drawn = draw(shown, Path(args.plots), made.residuals)
        names = ", ".join(path.name for path in drawn)
        say(f"Figures {names} (.png, .svg, .pdf) and {Path(args.plots) / 'figures.tex'}")
    if args.html:
        write_page(sweep_page(made, shown), Path(args.html))
        say(f"Page: {args.html}")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
