"""What is told of a sweep or benchmark: its tables and the notes below them, for a terminal, files and pages alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dassl_lite.engine.commands.benchmark import has_runs, notes_in, runs_of_shots
from dassl_lite.engine.commands.cells import Cell, gather
from dassl_lite.engine.commands.published import Published, read_sources
from dassl_lite.engine.commands.residuals import SHOTS, Residuals, gather_residuals, residual_tables
from dassl_lite.engine.commands.summary import (
    as_table,
    average_table,
    cost_table,
    gaps,
    provenance,
    rank_table,
    versus_tables,
)
from dassl_lite.engine.commands.tables import Table
from dassl_lite.engine.commands.transfers import transfer_tables
from dassl_lite.engine.files.results import MAIN_METRICS
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils.errors import UserError, printable


@dataclass(frozen=True)
class Report:
    """What is told of a folder.

    Attributes:
        cells: of few-shot runs, which figures are made of; empty if there are other runs only.
        tables: that of datasets and methods first, if there are cells.
        notes: what a reader must know, a line each.
        gaps: runs that are not there, a line each.
        residuals: of methods that have some, if they were asked for.
    """

    folder: Path
    split: str
    cells: tuple[Cell, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    gaps: tuple[str, ...]
    residuals: tuple[Residuals, ...] = ()


def make_report(
    folder: Path,
    metric: str = "",
    split: str = "test",
    reference: str = "",
    *,
    compare: bool = False,
    residuals: bool = False,
    shots: int | None = None,
) -> Report:
    """The report of a sweep's or a benchmark's folder.

    Args:
        folder: of the sweep or benchmark.
        metric: "" for each run's main one.
        split: test or val.
        reference: a method that the others are compared with; "" for none.
        compare: show published numbers too.
        residuals: compare residuals with the difficulty of the datasets.
        shots: of the residuals; None for the paper's.

    Raises:
        UserError: there is no finished run in it, or none that one of the arguments is about.
    """
    if compare and (split != "test" or metric not in ("", MAIN_METRICS[0])):
        raise UserError("--published is about accuracy on test images: leave out --split and --metric")
    load_plugins()  # to tell methods that use no shots from runs on all images
    published = Published(read_sources()) if compare else None
    tables, notes = transfer_tables(folder, published)
    of_shots = runs_of_shots(folder)
    cells = [] if tables and not has_runs(of_shots) else gather(of_shots, metric, split)
    given = {"--metric": metric, "--split": split != "test", "--versus": reference}
    if not cells and (idle := [flag for flag, value in given.items() if value]):
        raise UserError(
            f"{idle[0]} has no effect: no run of the protocol few-shot has finished in {folder}, and the other tables "
            "show test accuracy"
        )
    if cells:
        more = [
            average_table(cells, published),
            rank_table(cells),
            *(versus_tables(cells, reference) if reference else []),
            cost_table(cells),
        ]
        tables = [as_table(cells, published), *(table for table in more if table is not None), *tables]
        notes = [*_what(cells, split), *provenance(cells), *notes]
    notes += published.notes() if published else []
    found: list[Residuals] = []
    if residuals:
        found, more_notes = gather_residuals(of_shots, SHOTS if shots is None else shots)
        of_residuals, what = residual_tables(found)
        tables, notes = [*tables, *of_residuals], [*notes, *what, *more_notes]
    notes += notes_in(folder)
    lacking = gaps(cells, of_shots)
    lines = tuple(map(printable, notes)), tuple(map(printable, lacking))
    return Report(folder, split, tuple(cells), tuple(tables), *lines, tuple(found))


def _what(cells: Sequence[Cell], split: str) -> list[str]:
    """What the values are, in a line."""
    counts = sorted({len(cell.values) for cell in cells if cell.shots})
    if max(counts, default=1) > 1:
        what = f"mean ± 95 % confidence interval over {' or '.join(map(str, counts))} seeds"
    else:
        what = "one seed"
    metrics = " or ".join(sorted({cell.metric for cell in cells}))
    return [f"{split} {metrics} in %, {what}"]
