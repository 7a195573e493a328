"""A report's tables over datasets, paired differences, LaTeX, and what it says about the runs behind them."""

from __future__ import annotations

import csv
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dassl_lite.engine.commands.cells import Cell, Run, gather
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.figures import figures
from dassl_lite.engine.commands.summary import as_table, average_table, rank_table, versus_tables
from dassl_lite.engine.commands.tables import BEST, SECOND, Table, best_two
from dassl_lite.tools import report
from dassl_lite.utils import UserError
from dassl_lite.utils.files import write_json

# Accuracies by method, dataset and seed; zero-shot CLIP has 50 everywhere.
A_B: dict[str, dict[str, tuple[float, ...]]] = {
    "A_method": {"one": (60.0, 62.0, 64.0), "two": (70.0, 70.0, 73.0), "three": (40.0, 42.0, 44.0)},
    "B": {"one": (59.0, 60.5, 63.0), "two": (69.0, 70.5, 71.0), "three": (41.0, 43.5, 45.0)},
    "C": {"one": (55.0, 55.0, 55.0), "two": (56.0, 56.0, 56.0), "three": (30.0, 30.0, 30.0)},
}


def write_runs(root: Path, runs: dict[str, dict[str, tuple[float, ...]]], **more: Any) -> Path:
    for method, by_dataset in runs.items():
        for dataset, values in by_dataset.items():
            for seed, value in enumerate(values, start=1):
                results = {
                    **{"trainer": method, "dataset": dataset, "backbone": "RN50", "num_shots": 4, "seed": seed},
                    **{"metrics": {"test": {"accuracy": value, "ece": 5.0}}, "zero_shot_accuracy": 50.0},
                    **{"fewshot_digest": f"{dataset}-{seed}", "tuned_on": "val", "trainable_parameters": 1200},
                    **{"seconds": {"features": 9.0, "train": 1.5, "evaluate test": 0.5}, **more},
                }
                write_json(results, root / dataset / method / f"seed{seed}" / "results.json")
    return root


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return write_runs(tmp_path, A_B)


def line_of(table: Table | None, *start: str) -> list[str]:
    assert table is not None
    return next(list(row) for row in table.rows if tuple(row[: len(start)]) == start)


def test_averages_use_datasets_as_the_unit_and_count_those_below_zero_shot(sweep: Path) -> None:
    table = average_table(gather(sweep))
    # Means of 62, 71 and 42: standard deviation 14.84, t(2) 4.3027.
    assert line_of(table, "A_method") == ["A_method", "4 shots", "58.33 ± 36.87", "+8.33", "1 of 3"]
    assert average_table(gather(sweep / "one")) is None


def test_methods_are_ranked_across_datasets(sweep: Path) -> None:
    table = rank_table(gather(sweep))
    assert line_of(table, "A_method") == ["A_method", "1.33"]
    assert line_of(table, "C") == ["C", "3.00"]
    assert line_of(table, "datasets") == ["datasets", "3"]
    assert rank_table(gather(sweep / "one")) is None


def test_a_method_without_runs_on_every_dataset_is_not_ranked(sweep: Path) -> None:
    shutil.rmtree(sweep / "three" / "C")
    table = rank_table(gather(sweep))
    assert table is not None
    assert [row[0] for row in table.rows][:2] == ["A_method", "B"]


def test_differences_are_paired_by_draw(sweep: Path) -> None:
    by_draw, over_datasets = versus_tables(gather(sweep), "B")
    # 1, 1.5, 1: mean 1.17, standard deviation 0.2887.
    assert line_of(by_draw, "one", "A_method")[3:] == ["+1.17 ± 0.72", "0.020", "3"]
    assert line_of(over_datasets, "A_method")[2:4] == ["+0.28 ± 3.13", "2 / 1"]
    with pytest.raises(UserError, match="unknown method 'Bee'"):
        versus_tables(gather(sweep), "Bee")


def test_runs_on_other_draws_are_not_paired(sweep: Path) -> None:
    write_runs(sweep, {"A_method": {"one": A_B["A_method"]["one"]}}, fewshot_digest="another")
    by_draw, _ = versus_tables(gather(sweep), "B")
    assert not [row for row in by_draw.rows if row[:2] == ["one", "A_method"]]
    assert [row for row in by_draw.rows if row[:2] == ["two", "A_method"]]


def test_the_report_shows_costs_draws_and_methods_tuned_on_test(sweep: Path, capsys: Any) -> None:
    write_runs(sweep, {"C": A_B["C"]}, tuned_on="test")
    assert run_tool(report.main, [str(sweep), "--versus", "B"]) == 0
    out = capsys.readouterr().out
    assert ["B", "5.00", "2.0", "1,200", "val"] in [line.split() for line in out.splitlines()]
    assert "tuned on test images, so not comparable: C" in out
    assert "draws of one, 4 shots: seed 1 one-1, seed 2 one-2, seed 3 one-3" in out
    with (sweep / "report.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["method"] == "B")
    assert row["draw"].split() == [f"{row['dataset']}-{seed}" for seed in (1, 2, 3)]
    assert row["tuned_on"] == "val val val"


def test_incomplete_results_are_reported_as_far_as_possible(sweep: Path, capsys: Any) -> None:
    odd = {"seconds": ["x"], "zero_shot_accuracy": "high", "tuned_on": None, "fewshot_digest": 3}
    write_runs(sweep, {"C": A_B["C"]}, **odd)
    assert run_tool(report.main, [str(sweep)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["C", "4", "shots", "47.00", "±", "36.59"] in lines  # no gain, since no run records zero-shot accuracy


def test_runs_on_a_feature_file_without_a_backbone_name_are_reported(sweep: Path, capsys: Any) -> None:
    write_runs(sweep, A_B, backbone=None)
    assert run_tool(report.main, [str(sweep)]) == 0
    assert "backbone: unnamed" in capsys.readouterr().out


def test_a_method_with_two_backbones_has_a_row_for_each(sweep: Path) -> None:
    write_runs(sweep / "more", {"B": {"one": (80.0, 81.0, 82.0)}}, backbone="ViT-B/16")
    cells = gather(sweep)
    assert [row[1:] for row in as_table(cells).rows if row[0] == "one" and row[1].startswith("B")] == [
        ["B (RN50)", "60.83 ± 5.02"],
        ["B (ViT-B/16)", "81.00 ± 2.48"],
    ]
    assert line_of(average_table(cells), "B (RN50)")[2] == "58.06 ± 34.06"
    by_draw, _ = versus_tables(cells, "B (RN50)")
    assert line_of(by_draw, "one", "B (ViT-B/16)")[3].startswith("+20.17")
    assert [panel.title for panel in figures(cells).panels] == ["Average", "one", "three", "two"]


@pytest.mark.parametrize(
    ("metrics", "flags", "message"),
    [
        ({"test": {"accuracy": float("nan")}}, [], "is nan; delete the file and run again"),
        ({"test": {"accuracy": "x"}}, [], "is 'x'; delete the file and run again"),
        ({"test": {"accuracy": 1.0}}, ["--metric", "ece"], "unknown metric 'ece'"),
        ({"test": {"accuracy": 1.0}}, ["--split", "val"], "has no results for the split 'val'"),
        (None, [], "does not hold the results of a run"),
    ],
)
def test_a_run_that_cannot_be_shown_is_named(
    sweep: Path, capsys: Any, metrics: Any, flags: list[str], message: str
) -> None:
    write_runs(sweep, {"C": A_B["C"]}, metrics=metrics)
    if "val" in flags:
        write_runs(sweep, {name: A_B[name] for name in ("A_method", "B")}, metrics={"val": {"accuracy": 1.0}})
    assert run_tool(report.main, [str(sweep), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(sweep / "one" / "C" / "seed1" / "results.json") in error
    assert error.count("\n") == 1


def test_published_numbers_are_refused_for_results_they_do_not_cover(sweep: Path, capsys: Any) -> None:
    assert run_tool(report.main, [str(sweep), "--published", "--metric", "ece"]) == 2
    assert "--published compares accuracy on test images" in capsys.readouterr().err


def test_an_output_that_is_not_a_file_is_refused_before_anything_is_read(tmp_path: Path, capsys: Any) -> None:
    for name in ("", str(tmp_path)):
        assert run_tool(report.main, [str(tmp_path / "none"), "--html", name]) == 2
        assert "is not a file to write" in capsys.readouterr().err


def test_markdown_escapes_markup_in_names() -> None:
    table = Table(
        "a|b", ["method"], [["<script>x</script>"], ["a|b"], ["*b*\n`c`"], ["[l](x)"], ["< 0.001"], ["CLIP_Adapter"]]
    )
    text = table.as_markdown()
    shown = [r"**a\|b**", "&lt;script>x&lt;/script>", r"a\|b", r"\*b\*\\n\`c\`", r"[l]\(x)", "< 0.001", "CLIP_Adapter"]
    assert [
        line.strip("| ") for line in text.splitlines() if line[:3] not in ("", "|--") and "method" not in line
    ] == shown
    assert "*b*\\n`c`" in table.as_text()


def test_a_table_too_wide_to_read_is_split_by_columns() -> None:
    own = Table("t", ["dataset", "method", *"abcde"], [["d", "m", *(["70.00 ± 1.00"] * 5)]], {(0, 4): BEST})
    wide = own.with_columns(
        ["published", "difference"], {column: {0: ("70.12 [A source of numbers]", "+0.12")} for column in range(2, 7)}
    )
    text = wide.as_latex()
    headers = [line for line in text.splitlines() if line.startswith("dataset")]
    assert [line.count("&") for line in headers] == [4] * 5
    assert all(f"published, {letter}" in line for letter, line in zip("abcde", headers, strict=True))
    assert text.count(r"\textbf{70.00 $\pm$ 1.00}") == 1
    assert r"\textbf" in text.split(r"\clearpage")[2]
    assert own.as_latex().count(r"\toprule") == 1
    lines = wide.as_text(80).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[:3] for line in lines if line.startswith("dataset")] == [
        ["dataset", "method", c] for c in "abcde"
    ]
    assert own.as_text(100) == own.as_text()
    assert max(map(len, wide.as_text().splitlines())) > 200, "without a terminal, the table is not split"


def test_best_and_second_best_are_marked_after_rounding() -> None:
    assert best_two({0: 70.001, 1: 70.002, 2: 69.0, 3: 10.0}) == {0: BEST, 1: BEST, 2: SECOND}
    assert best_two({0: 1.0, 1: 3.0}, lowest=True) == {0: BEST, 1: SECOND}
    assert best_two({0: 1.0}) == {}


def test_latex_marks_the_best_and_escapes_names(sweep: Path) -> None:
    assert run_tool(report.main, [str(sweep), "--versus", "B"]) == 0
    text = (sweep / "report.tex").read_text(encoding="utf-8")
    assert r"one & A\_method & \textbf{62.00 $\pm$ 4.97} \\" in text
    assert r"one & B & \underline{60.83 $\pm$ 5.02} \\" in text
    assert r"one & C & 4 shots & $-$5.83 $\pm$ 5.02" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 6


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_the_latex_compiles(sweep: Path) -> None:
    write_runs(sweep, {r"_%&$#{}~^\<>|±": A_B["C"], "Ünïcödé 花 → ą\n": A_B["C"]})
    assert run_tool(report.main, [str(sweep), "--versus", "B"]) == 0
    lines = [
        r"\documentclass{article}",
        r"\usepackage{booktabs}",
        r"\begin{document}",
        r"\input{report}",
        r"\end{document}",
    ]
    (sweep / "paper.tex").write_text("\n".join(lines), encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    done = subprocess.run(command, cwd=sweep, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


@pytest.mark.parametrize(
    ("classes", "expected"), [(("base", "base"), "base"), (("base", "new"), ""), (("", ""), ""), ((), "")]
)
def test_a_cell_names_its_classes_only_if_all_its_runs_agree(classes: tuple[str, ...], expected: str) -> None:
    runs = tuple(Run(seed=number, value=50.0, classes=said) for number, said in enumerate(classes))
    assert Cell("one", "A", "RN50", 4, (50.0,) * len(runs), runs=runs).classes == expected
