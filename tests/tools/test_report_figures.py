"""`report.py --plots`: the figures agree with the tables, and the files are fit for a paper."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from dassl_lite.engine.commands import plots
from dassl_lite.engine.commands.cells import gather
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.figures import COLOURS, RankDiagram, figures, limits, positions_of, styles_of
from dassl_lite.engine.commands.plots import label, write
from dassl_lite.engine.commands.summary import rank_table
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.tools import report
from dassl_lite.utils import UserError
from dassl_lite.utils.files import write_json

pytest.importorskip("matplotlib")

BASE = {"TaskRes": 60.0, "CoOp": 57.0, "TipAdapter": 58.5}
DATASETS = {"One": 0.0, "Two": 10.0, "Three": -20.0}


def write_run(root: Path, method: str, dataset: str, shots: int, seed: int, value: float, **more: Any) -> None:
    results = {
        **{"trainer": method, "dataset": dataset, "backbone": "RN50", "num_shots": shots, "seed": seed},
        **{"metrics": {"test": {"accuracy": value, "ece": value / 10}}, "seconds": {"train": float(seed)}},
        **{"fewshot_digest": f"{dataset}{seed}", **more},
    }
    write_json(results, root / dataset / method / f"{shots}shots-seed{seed}" / "results.json")


def accuracy(method: str, dataset: str, shots: int, seed: int) -> float:
    return BASE[method] + DATASETS[dataset] + math.log2(shots) * (1.5 if method == "CoOp" else 1.0) + (seed - 2) * 0.5


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    load_plugins()  # to know which methods use no shots
    root = tmp_path_factory.mktemp("written") / "sweep"
    for dataset, level in DATASETS.items():
        write_run(root, "ZeroshotCLIP", dataset, -1, 1, 50.0 + level)
        for method in BASE:
            for shots in (1, 4, 16):
                for seed in (1, 2, 3):
                    write_run(root, method, dataset, shots, seed, accuracy(method, dataset, shots, seed))
    return root


@pytest.fixture
def sweep(written: Path, tmp_path: Path) -> Path:
    """A copy that the test may change; writing the files again would wait for the disk."""
    return shutil.copytree(written, tmp_path / "sweep")


def test_curves_show_the_means_and_intervals_of_the_tables(sweep: Path) -> None:
    cells = gather(sweep)
    average, one, *_ = figures(cells).panels
    assert [panel.title for panel in figures(cells).panels] == ["Average", "One", "Three", "Two"]
    curve = next(curve for curve in one.curves if curve.method == "CoOp")
    assert list(curve.shown) == [1, 4, 16]
    assert curve.points[4].mean == pytest.approx(60.0)
    # 59.5, 60, 60.5: t(2) = 4.3027, standard error 0.2887.
    assert curve.points[4].half == pytest.approx(4.302653 * 0.5 / math.sqrt(3))
    over = next(curve for curve in average.curves if curve.method == "CoOp").points[4]
    assert over.mean == pytest.approx(60.0 - 10.0 / 3)
    assert over.half == pytest.approx(
        curve.points[4].half
    )  # draws agree across datasets, so the interval is over draws


def test_the_average_has_no_band_if_datasets_have_different_seeds(sweep: Path) -> None:
    shutil.rmtree(sweep / "One" / "CoOp" / "4shots-seed3")
    average = figures(gather(sweep)).panels[0]
    points = next(curve for curve in average.curves if curve.method == "CoOp").points
    assert points[4].half is None
    assert points[16].half is not None


def test_the_average_includes_a_method_only_with_all_datasets(sweep: Path) -> None:
    shutil.rmtree(sweep / "One" / "CoOp")
    found = figures(gather(sweep))
    assert "CoOp" not in [curve.method for curve in found.panels[0].curves]
    assert "CoOp" not in [cost.method for cost in found.costs]
    assert math.isnan(found.heat.averages[found.heat.methods.index("CoOp")])
    assert found.heat.methods[-1] == "CoOp"
    assert "Not run on every dataset, so not in each average: CoOp." in found.captions["accuracy"]


def test_the_heat_map_shows_means_and_colours_them_by_the_datasets_median(sweep: Path) -> None:
    heat = figures(gather(sweep)).heat
    assert heat.methods == ("TaskRes", "CoOp", "TipAdapter", "ZeroshotCLIP")
    column = heat.datasets.index("Two")
    assert heat.values[:, column] == pytest.approx([74.0, 73.0, 72.5, 60.0])
    assert heat.contrast[:, column] == pytest.approx(
        np.array([74.0, 73.0, 72.5, 60.0]) - median([74.0, 73.0, 72.5, 60.0])
    )
    assert heat.averages[0] == pytest.approx(fmean([64.0, 74.0, 44.0]))


def test_the_rank_diagram_shows_the_ranks_of_the_table(sweep: Path) -> None:
    cells = gather(sweep)
    found, table = figures(cells, shots=4).ranks, rank_table(cells)
    assert found is not None
    assert table is not None
    column = table.headers.index("4 shots")
    rows = {row[0]: row[column] for row in table.rows}
    assert {
        method: f"{rank:.2f}" for method, rank in zip(found.methods, found.ranks, strict=True)
    }.items() <= rows.items()
    assert f"{found.critical_difference:.2f}" == rows["critical difference"]
    assert found.ranks == tuple(sorted(found.ranks))


def test_the_lower_error_has_the_better_rank(sweep: Path) -> None:
    found = figures(gather(sweep, "ece")).ranks  # a tenth of the accuracy: zero-shot CLIP has the lowest
    assert found is not None
    assert found.methods[0] == "ZeroshotCLIP"
    assert figures(gather(sweep, "ece")).heat.methods[0] == "ZeroshotCLIP"


def test_an_unknown_number_of_shots_is_an_error_that_lists_the_available_ones(sweep: Path) -> None:
    with pytest.raises(UserError, match="no run with --shots 8; there are runs with 1 shot, 4 shots, 16 shots"):
        figures(gather(sweep), shots=8)


def test_many_methods_look_different_from_each_other() -> None:
    styles = styles_of(["ZeroshotCLIP", *(f"method{i}" for i in range(28))])
    assert len({(style.colour, style.line) for style in styles.values()}) == 29
    assert len({(style.colour, style.marker) for style in styles.values()}) == 29
    assert all(style.colour in COLOURS for method, style in styles.items() if method != "ZeroshotCLIP")


@pytest.mark.parametrize(
    ("text", "shown"), [("a" * 26, "a" * 26), ("a" * 17 + "b" * 10, "a" * 17 + "…" + "b" * 8), ("_a", "\u200b_a")]
)
def test_a_long_name_is_shortened_in_the_middle(text: str, shown: str) -> None:
    assert label(text) == shown


def test_all_images_is_plotted_to_the_right_of_every_shot_count() -> None:
    assert positions_of((1, 4, 16, 0)) == {1: 0.0, 4: 2.0, 16: 4.0, 0: 5.0}
    assert positions_of((0,)) == {0: 0.0}


def test_wide_bands_leave_the_curves_legible(sweep: Path) -> None:
    for seed, value in ((1, 5.0), (2, 60.0), (3, 99.0)):
        write_run(sweep, "CoOp", "One", 4, seed, value)  # ± 118
    low, high = limits(next(panel for panel in figures(gather(sweep)).panels if panel.title == "One"))
    assert (low, high) == (pytest.approx(50.0 - 3.5), pytest.approx(64.0 + 3.5))


def rank_diagram(count: int, critical_difference: float) -> Figure:
    figure, methods = Figure(), tuple(f"method {number}" for number in range(count))
    ranks = tuple(float(number) for number in range(1, count + 1))
    plots._ranks(RankDiagram(methods, ranks, critical_difference, ((0, 1),), 0.01, 9), figure)
    return figure


def test_a_rank_diagram_shows_the_critical_difference_to_scale_if_it_fits() -> None:
    axis = rank_diagram(6, 1.5).axes[0]
    assert "critical difference 1.50" in [text.get_text() for text in axis.texts]
    bars = [line for line in axis.lines if tuple(line.get_xdata()) == (1.0, 2.5)]
    assert len(bars) == 1
    assert len(set(bars[0].get_ydata())) == 1
    assert not any("critical" in text.get_text() for text in rank_diagram(6, 5.5).axes[0].texts)


def test_a_rank_diagram_has_one_row_of_labels_per_two_methods() -> None:
    heights = [rank_diagram(count, 1.5).get_size_inches()[1] for count in (2, 4, 8)]
    assert heights[1] - heights[0] == pytest.approx(0.15)
    assert heights[2] - heights[1] == pytest.approx(0.3)


@pytest.mark.slow
def test_panels_leave_a_small_margin_around_the_numbers_of_shots(sweep: Path) -> None:
    found, figure = figures(gather(sweep)), Figure()
    plots._field(found, figure)
    positions = positions_of(found.numbers).values()
    margin = 0.3 if len(found.numbers) > 1 else 0.6
    for axis in figure.axes[: len(found.panels)]:
        assert axis.get_xlim() == pytest.approx((min(positions) - margin, max(positions) + margin))


@pytest.mark.slow
def test_plots_are_written_in_three_formats_with_text_as_text(sweep: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.rmtree(sweep / "Three")
    for seed in (1, 2, 3):
        write_run(sweep, r"_we$ird$ & <b>", "One", 4, seed, 61.0)
    import matplotlib

    before = dict(matplotlib.rcParams)
    folder = tmp_path / "made" / "figures"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_tool(report.main, [str(sweep), "--plots", str(folder)]) == 0
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or matplotlib.get_backend()
    names = {path.name for path in folder.iterdir()}
    figures_of = ("accuracy", "heatmap", "ranks", "time")
    assert names == {f"{name}.{kind}" for name in figures_of for kind in ("png", "svg", "pdf")} | {"figures.tex"}
    svg = (folder / "accuracy.svg").read_text(encoding="utf-8")
    for text in ("Average", "TaskRes", "we$ird$ &amp; &lt;b&gt;", "Training images per class"):
        assert text in svg
    pdf = (folder / "ranks.pdf").read_bytes()
    assert b"/TrueType" in pdf or b"/CIDFontType2" in pdf
    assert b"/Type3" not in pdf
    assert "95 \\% t-intervals over the draws" in (folder / "figures.tex").read_text(encoding="utf-8")
    if shutil.which("pdflatex"):
        paper = r"\documentclass{article}\usepackage{graphicx}\begin{document}\input{figures}\end{document}"
        (folder / "paper.tex").write_text(paper, encoding="utf-8")
        command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.slow
def test_one_dataset_with_one_number_of_shots_is_plotted(sweep: Path, tmp_path: Path) -> None:
    for dataset in ("Two", "Three"):
        shutil.rmtree(sweep / dataset)
    for shots in (1, 4):
        for path in list(sweep.rglob(f"{shots}shots-*")):
            shutil.rmtree(path)
    assert run_tool(report.main, [str(sweep), "--plots", str(tmp_path / "figures")]) == 0
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"accuracy", "heatmap", "time", "figures"}


@pytest.mark.slow
def test_equal_figures_give_identical_files(tmp_path: Path) -> None:
    for name in ("first", "again"):
        write({"line": lambda figure: figure.subplots().plot([1, 2], [3, 5])}, {"line": "A line."}, tmp_path / name)
    files = sorted((tmp_path / "first").iterdir())
    assert [path.name for path in files] == ["figures.tex", "line.pdf", "line.png", "line.svg"]
    assert all(path.read_bytes() == (tmp_path / "again" / path.name).read_bytes() for path in files)


@pytest.mark.slow
def test_user_errors_about_plots_print_one_line(sweep: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    cases = {
        ("--shots", "4"): "--shots has no effect without --plots",
        ("--plots", str(tmp_path / "new"), "--shots", "8"): "there is no run with --shots 8",
        ("--plots", str(tmp_path / "file")): f"{tmp_path / 'file'} cannot be written",
    }
    for flags, message in cases.items():
        assert run_tool(report.main, [str(sweep), *flags]) == 2
        assert message in capsys.readouterr().err


def test_missing_runs_are_named(sweep: Path, capsys: Any) -> None:
    shutil.rmtree(sweep / "One" / "CoOp" / "4shots-seed3")
    shutil.rmtree(sweep / "Two" / "TipAdapter")
    shutil.rmtree(sweep / "Three" / "ZeroshotCLIP")
    failed = sweep / "Two" / "TipAdapter" / "1shots-seed1"
    failed.mkdir(parents=True)
    (failed / "log.txt").write_text("", encoding="utf-8")
    assert run_tool(report.main, [str(sweep)]) == 0
    out = capsys.readouterr().out
    assert "not finished (failed, stopped or still running): Two/TipAdapter/1shots-seed1" in out
    missing = ("CoOp on One, 4 shots (seed 3)", "TipAdapter on Two, 1 shot", "TipAdapter on Two, 4 shots")
    missing += ("TipAdapter on Two, 16 shots", "ZeroshotCLIP on Three")
    assert f"no result: {'; '.join(missing)}" in out
