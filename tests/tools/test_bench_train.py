"""A small `bench.py train`: both variants and the overhead are measured, and the JSON agrees with the table."""

from __future__ import annotations

import json

import pytest

from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.tools import bench

SMALL = ("train", "--epochs", "2", "--shots", "2", "--views", "2", "--workers", "0")


@pytest.mark.slow
def test_both_variants_train_the_same_method_on_the_same_shots(tmp_path, capsys):
    flags = ("--dataset", "gadgets", "--seeds", "1", "2", "--real-backbone", "")
    assert bench.main([*SMALL, *flags, "--json", str(tmp_path / "x.json")]) == 0
    found = json.loads((tmp_path / "x.json").read_text())
    ways = [(row["way"], row["seed"]) for row in found["runs"]]
    assert ways == [("encoded anew", 1), ("cached", 1), ("encoded anew", 2), ("cached", 2)]
    seconds = {way: sum(row["seconds"] for row in found["runs"] if row["way"] == way) for way, _ in ways}
    assert found["speedup"] == pytest.approx(seconds["encoded anew"] / seconds["cached"])
    assert all(0 <= row["accuracy"] <= 100 for row in found["runs"])
    assert f"cached is {found['speedup']:.1f} times as fast" in capsys.readouterr().out


@pytest.mark.slow
def test_the_overhead_counts_every_forward_pass(tmp_path, capsys):
    flags = ("--seeds", "--classes", "3", "--bare-inputs", "4", "--real-backbone", "random:ViT-S-32-alt")
    assert bench.main([*SMALL, *flags, "--json", str(tmp_path / "x.json")]) == 0
    overhead = json.loads((tmp_path / "x.json").read_text())["overhead"]
    assert overhead["passes"] == 3 * (2 * 2 + 1)  # views of the training images, and one test image each
    assert overhead["ratio"] == pytest.approx(overhead["seconds"] / sum(overhead["bare"].values()))
    assert set(overhead["bare"]) == {"image encoder", "text encoder", "head"}
    assert "4 of 15 passes timed" in capsys.readouterr().out


def test_a_number_out_of_range_prints_one_line(capsys):
    assert run_tool(bench.main, ["train", "--views", "0"]) == 2
    assert "--views must be at least 1, not 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--seeds", "--dataset", "gadgets"), "--dataset has no effect without --seeds"),
        (("--real-backbone", "", "--classes", "3"), "--classes has no effect without --real-backbone"),
        (("--seeds", "--real-backbone", ""), "nothing to measure"),
    ],
)
def test_a_flag_for_a_skipped_part_is_an_error(argv, message, capsys):
    assert run_tool(bench.main, ["train", *argv]) == 2
    assert message in capsys.readouterr().err
