"""Runs killed at random moments resume to the same results; `python tests/kill_runs.py` kills many more."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))  # as `python tests/kill_runs.py` does

from kill_runs import KINDS, comparable, difference, kill_runs, turns  # noqa: E402
from tints import draw_tints  # noqa: E402


@pytest.mark.slow
def test_a_run_killed_at_random_resumes_to_the_results_of_an_uninterrupted_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fork each run from this process, which has imported everything."""
    data = ("--data", str(draw_tints(tmp_path / "images", {"train": 4, "val": 2, "test": 4})))
    assert kill_runs(count=2, seed=3, folder=tmp_path / "runs", names=("train-images", "sweep"), data=data) == []
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["train-images,", "sweep,"]


def test_every_difference_is_found() -> None:
    def found() -> dict:
        return {
            "run/results.json": {"metrics": {"test": {"accuracy": 50.0, "ece": math.nan}}, "history": [{"epoch": 1}]},
            "run/model.pth.tar-1": {"weight": torch.zeros(2)},
            "features.npz": {"labels": np.arange(3)},
        }

    assert difference(found(), found()) == ""
    changed = [found() for _ in range(5)]
    changed[0]["run/results.json"]["metrics"]["test"]["accuracy"] = 50.000001
    changed[1]["run/results.json"]["history"].append({"epoch": 2})
    changed[2]["run/model.pth.tar-1"]["weight"][1] = 1e-7
    changed[3]["features.npz"]["labels"][0] = 9
    del changed[4]["run/model.pth.tar-1"]
    assert all(difference(found(), other) for other in changed)


def test_times_memory_environment_and_paths_are_not_compared() -> None:
    kept = {"metrics": {}, "seconds": {}, "peak_memory": {}, "finished": "", "environment": {}}
    results = comparable({**kept, "config": {"SEED": 1, "OUTPUT_DIR": "a", "RESUME": ""}})
    assert results == {"metrics": {}, "config": {"SEED": 1}}


def test_kinds_alternate_and_rare_ones_appear_every_fourth_round() -> None:
    chosen = list(turns(60, list(KINDS)))
    assert len(chosen) == 60
    assert chosen[:6] == list(KINDS)
    assert chosen.count("sweep-jobs") == 3
    assert min(chosen.count(name) for name in KINDS if name != "sweep-jobs") >= 11
