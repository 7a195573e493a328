"""`tools/bench.py gpu`: every stage runs on the GPU stand-in; a stage that fails or times out stops no other."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image

from dassl_lite.tools import bench
from dassl_lite.tools._bench import gpu, photographs
from dassl_lite.utils import UserError


def check_in(folder: Path, limit: float = 100.0) -> gpu.Check:
    return gpu.Check(gpu.SIZES["small"], folder, limit)


def test_a_failing_stage_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = check_in(tmp_path)
    check.stage("bad", lambda: 1 / 0)
    check.stage("good", lambda: print("unseen") or 3)
    assert check.failures == ["bad: ZeroDivisionError: division by zero"]
    assert check.found == {"good": 3}
    assert set(check.seconds) == {"bad", "good"}
    assert "unseen" not in capsys.readouterr().out


def test_a_stage_over_its_time_limit_is_stopped_and_listed(tmp_path: Path) -> None:
    check = check_in(tmp_path)
    check.limit = time.monotonic() - check.start + 1.2
    check.stage("long", lambda: time.sleep(60), share=0.1)
    check.start -= 100
    check.stage("late", lambda: 3)
    assert check.left_out == ["long (stopped after 0 s)", "late"]
    assert not check.failures
    assert not check.found


def phases(train: float, features: float = 0.0) -> dict[str, float]:
    return {"train": train, "features": features}


def test_goals_compare_measurements_with_their_bounds(tmp_path: Path) -> None:
    check = check_in(tmp_path)
    check.found = {
        "extract": [
            {"what": "store, from image files", "views": 1, "of_reachable": 0.95},
            {"what": "store, from image files", "views": 10, "of_reachable": 0.5},
            {"what": "bare encoder", "views": 1, "of_reachable": 2.0},
        ],
        "cold TaskRes": {"seconds": 80.0, "phases": phases(20.0, 55.0)},
        "CoOp": {"seconds": 9.0, "phases": phases(5.0), "epochs": 1, "device_mib": 30_000.0},
        "warm TaskRes": {"seconds": 3.5},
    }
    goals = {goal["goal"]: (goal["measured"], goal["reached"]) for goal in gpu.goals_of(check)}
    assert goals["extraction, 1 views: of its slower half, at least"] == (0.95, True)
    assert goals["extraction, 10 views: of its slower half, at least"] == (0.5, False)
    assert goals["TaskRes from JPEG files, seconds"] == (80.0, True)
    assert goals["CoOp from JPEG files, seconds (its epochs scaled)"] == (55 + 4 + 50 * 5, False)
    assert goals["CoOp, memory of the GPU, GB"] == (pytest.approx(31.46, abs=0.01), False)
    assert goals["TaskRes on cached features, seconds"] == (3.5, False)
    assert goals["the whole check, seconds"] == (0, True)


def test_without_a_gpu_one_line_says_how_to_rehearse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU here; python tests/cuda_standin.py tools/bench.py gpu --size small"):
        bench.main(["gpu"])


def test_photographs_come_from_the_users_folder_if_given(tmp_path: Path) -> None:
    (tmp_path / "own" / "deeper").mkdir(parents=True)
    for name in ("a.jpg", "deeper/b.JPEG", "c.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / "own" / name)
    found = photographs(tmp_path / "links", 10, str(tmp_path / "own"))
    assert sorted(Path(path).resolve().name for path in found) == ["a.jpg", "b.JPEG"]
    assert len(photographs(tmp_path / "fewer", 1, str(tmp_path / "own"))) == 1
    with pytest.raises(UserError, match="holds no JPEG files"):
        photographs(tmp_path / "none", 10, str(tmp_path / "links" / "missing"))


WARM = ("TaskRes", "LinearProbe", "ProLIP")  # one stage each; ProLIP uses different features


def rehearse(file: str) -> int:
    with mock.patch.object(gpu, "feature_methods", return_value=list(WARM)):
        return bench.main(["gpu", "--size", "small", "--limit", "500", "--json", file])


@pytest.mark.slow
def test_every_stage_runs_on_the_gpu_stand_in(on_cuda: Any, tmp_path: Path) -> None:
    assert on_cuda(rehearse, str(tmp_path / "gpu.json")) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["failures"] == []
    assert report["left_out"] == []
    assert set(report["parity"]) == {
        f"{method} {precision}" for method in ("TaskRes", "CoOp") for precision in ("fp32", "fp16")
    }
    assert all(row["cuda"] == pytest.approx(row["cpu"], abs=1.5) for row in report["parity"].values())
    assert {row["what"] for row in report["extract"]} >= {"bare encoder", "loader alone", "store, from image files"}
    assert report["cold TaskRes"]["passes"] == 3 * (1 * 2 + 1)
    assert "passed" in report["tests"]["summary"]
    methods = gpu.feature_methods()
    assert {"GDA", "APE", "CLAP", "ProKeR", "LPPlusPlus"} < set(methods)
    assert not {"CoOp", "CLIPLoRA"} & set(methods)
    assert set(WARM) < set(methods)
    assert {f"warm {method}" for method in WARM} <= set(report)
    assert len(report["goals"]) == 6 + len(WARM)
