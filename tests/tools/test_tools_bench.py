"""`tools/bench.py`: finds its subjects; the text tower's rows have what a reader of the JSON relies on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dassl_lite.tools import bench


def test_every_subject_has_a_name_a_parser_and_a_run() -> None:
    modules = bench.subjects()
    assert {"text-tower", "extract", "search"} <= {module.NAME for module in modules}
    assert all(callable(module.add_parser) and callable(module.run) for module in modules)


@pytest.mark.slow
def test_text_tower_measures_both_ways_and_writes_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    flags = ["--classes", "3", "6", "--context", "2", "--rounds", "1", "--plain-classes", "4", "--no-memory"]
    flags += ["--cocoop-batch", "2", "--architecture", "ViT-S-32-alt", "--json", str(file)]
    assert bench.main(["text-tower", *flags]) == 0
    rows = json.loads(file.read_text())
    assert [(row["method"], row["classes"], row["context"]) for row in rows] == [
        ("CoOp", 3, 2),
        ("CoOp", 6, 2),
        ("CoCoOp", 6, 4),
    ]
    assert all(row["speedup"] > 0 for row in rows)
    assert [row["plain_measured"] for row in rows[:2]] == [3, 4]
    assert all(row["difference"] < 1e-4 for row in rows[:2])
    assert "speedup" in capsys.readouterr().out


@pytest.mark.slow
def test_text_tower_measures_memory_in_processes_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    flags = ["--classes", "6", "--context", "2", "--rounds", "1", "--plain-classes", "4", "--cocoop-batch", "0"]
    bench.main(["text-tower", *flags, "--architecture", "ViT-S-32-alt", "--json", str(file)])
    (row,) = json.loads(file.read_text())
    assert 0 < row["memory_ratio"] < 1.1
    assert row["plain_memory_measured"] in (4, 6)


@pytest.mark.slow
def test_search_finds_the_accuracies_of_the_plain_products(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    flags = ["--classes", "3", "70", "--images", "40", "--width", "8", "--betas", "4", "--rounds", "1"]
    assert bench.main(["search", *flags, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [(row["classes"], row["entries"]) for row in rows] == [(3, 48), (70, 1120)]
    assert all(row["speedup"] > 0 and row["largest difference %"] == 0 for row in rows)
