"""The report of a sweep or benchmark: its tables and notes, shared by terminal, files and pages."""

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
    """The report of a folder.

    Attributes:
        cells: cells of few-shot runs, from which figures are drawn; empty if there are only other runs.
        tables: the tables; if there are cells, the one of datasets and methods comes first.
        notes: what a reader must know, one line each.
        gaps: missing runs, one line each.
        residuals: residuals of the methods that have them, if requested.
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
    """Make the report of a sweep's or benchmark's folder.

    Args:
        folder: folder of the sweep or benchmark.
        metric: metric to report; "" for each run's main one.
        split: "test" or "val".
        reference: method to compare the others with; "" for none.
        compare: also show published numbers.
        residuals: compare residuals with the difficulty of the datasets.
        shots: number of shots for the residuals; None for the paper's.

    Raises:
        UserError: the folder contains no finished run, or none that an argument applies to.
    """
    if compare and (split != "test" or metric not in ("", MAIN_METRICS[0])):
        raise UserError("--published compares accuracy on test images: leave out --split and --metric")
    load_plugins()  # distinguishes methods that use no shots from runs on all images
    published = Published(read_sources()) if compare else None
    tables, notes = transfer_tables(folder, published)
    of_shots = runs_of_shots(folder)
    cells = [] if tables and not has_runs(of_shots) else gather(of_shots, metric, split)
    set_flags = {"--metric": metric, "--split": split != "test", "--versus": reference}
    if not cells and (idle := [flag for flag, value in set_flags.items() if value]):
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
        notes = [*_describe_values(cells, split), *provenance(cells), *notes]
    notes += published.notes() if published else []
    by_method: list[Residuals] = []
    if residuals:
        by_method, more_notes = gather_residuals(of_shots, SHOTS if shots is None else shots)
        of_residuals, what = residual_tables(by_method)
        tables, notes = [*tables, *of_residuals], [*notes, *what, *more_notes]
    notes += notes_in(folder)
    lacking = gaps(cells, of_shots)
    lines = tuple(map(printable, notes)), tuple(map(printable, lacking))
    return Report(folder, split, tuple(cells), tuple(tables), *lines, tuple(by_method))


def _describe_values(cells: Sequence[Cell], split: str) -> list[str]:
    """A line that says what the values are."""
    counts = sorted({len(cell.values) for cell in cells if cell.shots})
    if max(counts, default=1) > 1:
        what = f"mean ± 95 % confidence interval over {' or '.join(map(str, counts))} seeds"
    else:
        what = "one seed"
    metrics = " or ".join(sorted({cell.metric for cell in cells}))
    return [f"{split} {metrics} in %, {what}"]
