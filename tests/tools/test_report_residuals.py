"""`report.py --residuals`: the size of a learned residual against the difficulty of a dataset and of its classes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats

from dassl_lite.data.feature_files import FeatureFile, write_feature_file
from dassl_lite.data.feature_files.file import FeaturePart
from dassl_lite.engine.commands import plots
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.residuals import (
    ClassResidual,
    Correlation,
    Residual,
    Residuals,
    captions_of,
    gather_residuals,
    residual_tables,
)
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.tools import report, sweep
from dassl_lite.utils import UserError
from dassl_lite.utils.files import write_json

NODES = ("INPUT", "DATASET", "MODEL", "OPTIM", "TEST", "TRAINER")


def write_run(
    root: Path, dataset: str, zero_shot: float | None, residual: torch.Tensor, seed: int = 1, **more: Any
) -> Path:
    """Write a finished TaskRes run with this residual."""
    folder = root / dataset / "TaskRes" / f"16shots-seed{seed}"
    config: dict[str, Any] = {node: {} for node in NODES}
    config["DATASET"] = {"NAME": dataset}
    config["TRAINER"] = {"NAME": "TaskRes", "TaskRes": {"RESIDUAL_SCALE": 0.5}}
    results = {
        **{"trainer": "TaskRes", "dataset": dataset, "backbone": "RN50", "num_shots": 16, "seed": seed},
        **{"metrics": {"test": {"accuracy": 70.0}}, "zero_shot_accuracy": zero_shot, "config": config, **more},
    }
    write_json(results, folder / "results.json")
    (folder / "prompt_learner").mkdir(exist_ok=True)
    names = [f"class {k}" for k in range(len(residual))]
    state = {"state_dict": {"text_feature_residuals": residual}, "epoch": 1, "meta": {"classnames": names}}
    torch.save(state, folder / "prompt_learner" / "model.pth.tar-1")
    return folder


def residual_of(classes: int, magnitude: float) -> torch.Tensor:
    """(K, 8) with this mean absolute value; signs alternate."""
    return magnitude * torch.tensor([1.0, -1.0]).repeat(classes, 4)


def gather_one(root: Path) -> Residuals:
    (found,), _ = gather_residuals(root, by_class=False)
    return found


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    load_plugins()
    for dataset, classes, zero_shot, magnitude in (("a", 10, 80.0, 0.1), ("b", 20, 40.0, 0.1), ("c", 5, 50.0, 0.3)):
        for seed in (1, 2):
            write_run(tmp_path, dataset, zero_shot, residual_of(classes, magnitude + 0.01 * (2 * seed - 3)), seed)
    return tmp_path


def test_difficulty_and_magnitude_follow_the_paper(runs: Path) -> None:
    found = gather_one(runs)
    # 0.1 / 0.8, 0.05 / 0.4 and 0.2 / 0.5: two are tied in difficulty, and in magnitude.
    assert [(row.dataset, row.difficulty) for row in found.rows] == [("a", 0.125), ("b", 0.125), ("c", 0.4)]
    assert [row.magnitude.mean for row in found.rows] == pytest.approx([0.1, 0.1, 0.3])
    assert found.rows[0].magnitudes == pytest.approx((0.09, 0.11))
    assert [row.seeds for row in found.rows] == [(1, 2)] * 3
    assert found.over_datasets.r == pytest.approx(1.0)


def test_the_rank_correlation_over_datasets_equals_scipys(tmp_path: Path) -> None:
    load_plugins()
    rng = np.random.default_rng(3)
    classes, zero_shot, magnitude = rng.integers(5, 40, 9), rng.uniform(10, 90, 9), rng.uniform(0.1, 0.9, 9)
    for i in range(9):
        write_run(tmp_path, f"set{i}", zero_shot[i], residual_of(int(classes[i]), float(magnitude[i])))
    found = gather_one(tmp_path).over_datasets
    wanted = stats.spearmanr(1 / classes / (zero_shot / 100), magnitude)
    assert found.r == pytest.approx(wanted.statistic)
    assert found.p == pytest.approx(wanted.pvalue, abs=0.03)
    assert found.low < found.r < found.high


def test_a_single_dataset_has_a_row_but_no_correlation(tmp_path: Path) -> None:
    load_plugins()
    write_run(tmp_path, "a", 80.0, residual_of(10, 0.1))
    found = gather_one(tmp_path)
    (table,), notes = residual_tables([found])
    assert table.rows == [["a", "10", "80.00", "0.1250", "0.10000", "0.5", "1"]]
    assert notes[0] == "TaskRes with 16 shots, RN50: one dataset (a), so no rank correlation over datasets"
    assert math.isnan(found.over_datasets.r)
    assert "no rank correlation" in captions_of(found)["residuals"]


def test_excluded_runs_are_named_with_the_reason(runs: Path) -> None:
    write_run(runs, "image", 50.0, residual_of(1, 0.1))
    state = torch.load(path := runs / "image/TaskRes/16shots-seed1/prompt_learner/model.pth.tar-1", weights_only=True)
    torch.save({**state, "meta": {"classnames": ["x", "y"]}}, path)
    write_run(runs, "unknown", None, residual_of(3, 0.1))
    write_run(runs, "never", 0.0, residual_of(3, 0.1))
    write_run(runs, "endless", 10.0, residual_of(3, math.inf))
    (write_run(runs, "gone", 50.0, residual_of(3, 0.1)) / "prompt_learner" / "model.pth.tar-1").unlink()
    (found,), notes = gather_residuals(runs, by_class=False)
    assert [row.dataset for row in found.rows] == ["a", "b", "c"]
    reasons = dict(note.split(" is left out: ") for note in notes)
    assert reasons["TaskRes on image"] == "its residual does not have one row per class"
    assert reasons["TaskRes on unknown"] == "its results do not contain zero-shot CLIP's accuracy"
    assert reasons["TaskRes on never"].startswith("zero-shot CLIP's accuracy is zero")
    assert reasons["TaskRes on endless"] == "its residual is not finite"
    assert reasons["TaskRes on gone"].startswith("no checkpoint at ")


def test_a_folder_without_residuals_is_an_error(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run with 4 shots below .* has a residual per class"):
        gather_residuals(runs, 4)


def test_missing_data_leaves_the_dataset_table_intact(runs: Path, capsys: Any) -> None:
    found, notes = gather_residuals(runs)
    assert len(found[0].rows) == 3
    assert all(not row.by_class for row in found[0].rows)
    assert any(note.startswith("TaskRes on a: no results per class, since ") for note in notes)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TaskRes on two feature files, two seeds each, with 4 shots."""
    root = tmp_path_factory.mktemp("residuals")
    for number, (name, noise) in enumerate((("easy", 0.6), ("<b>hard", 1.8))):
        draw = np.random.default_rng(number)
        means = draw.normal(size=(6, 16))
        labels = np.arange(6).repeat(12)
        parts = {
            split: FeaturePart((means[labels] + noise * draw.normal(size=(72, 16))).astype(np.float32)[None], labels)
            for split in ("train", "test")
        }
        text = (means + noise * draw.normal(size=means.shape)).astype(np.float32)[None]
        names = tuple(f"class {k}" for k in range(6))
        write_feature_file(FeatureFile(parts, names, text), root / f"{name}.npz")
    data = [str(root / "easy.npz"), str(root / "<b>hard.npz")]
    flags = ["--trainers", "TaskRes", "ZeroshotCLIP", "--data", *data, "--shots", "4", "--seeds", "1", "2"]
    assert (
        run_tool(sweep.main, [*flags, "--jobs", "1", "--output-dir", str(root / "sweep"), "OPTIM.MAX_EPOCH", "5"]) == 0
    )
    return root


@pytest.mark.slow
def test_classes_are_compared_with_zero_shot_clip_on_them(real: Path, capsys: Any) -> None:
    """Compare with NumPy on the arrays of the feature file and the checkpoints."""
    assert run_tool(report.main, [str(real / "sweep"), "--residuals", "--shots", "4"]) == 0
    out = capsys.readouterr().out
    (found,) = json.loads((real / "sweep" / "residuals.json").read_text(encoding="utf-8"))
    assert [row["dataset"] for row in found["datasets"]] == ["easy", "<b>hard"]
    for row in found["datasets"]:
        arrays = np.load(real / f"{row['dataset']}.npz")
        images = arrays["test_features"].reshape(-1, 16).astype(float)
        text = arrays["text_weights"].reshape(6, 16).astype(float)
        cosines = (
            images / np.linalg.norm(images, axis=1, keepdims=True) @ (text / np.linalg.norm(text, axis=1)[:, None]).T
        )
        right = (cosines.argmax(axis=1) == np.arange(6).repeat(12)).reshape(6, 12)
        residuals = [
            torch.load(path, weights_only=True)["state_dict"]["text_feature_residuals"].double().numpy()
            for path in sorted(
                (real / "sweep").glob(f"{row['dataset']}/TaskRes/4shots-seed*/prompt_learner/model.pth*")
            )
        ]
        assert len(residuals) == 2
        assert row["zero_shot"] == pytest.approx(100 * right.mean())
        assert row["difficulty"] == pytest.approx(1 / 6 / right.mean())
        assert row["magnitudes"] == pytest.approx([np.abs(x).mean() for x in residuals])
        assert [entry["zero_shot"] for entry in row["by_class"]] == pytest.approx(100 * right.mean(axis=1))
        norms = np.mean([np.linalg.norm(x, axis=1) for x in residuals], axis=0)
        assert [entry["norm"] for entry in row["by_class"]] == pytest.approx(norms)
        assert [entry["images"] for entry in row["by_class"]] == [12] * 6
        wanted = stats.spearmanr(right.mean(axis=1), norms).statistic
        assert row["within"]["r"] == pytest.approx(wanted) or math.isnan(wanted)
    assert "Residual against relative transfer difficulty, TaskRes with 4 shots, unnamed" in out


@pytest.mark.slow
def test_residuals_are_plotted(real: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from dassl_lite.engine.commands.plots import draw

    found, _ = gather_residuals(real / "sweep", 4)
    draw(None, tmp_path / "figures", found)
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names == {"residuals", "residuals-classes", "figures"}
    svg = (tmp_path / "figures" / "residuals.svg").read_text(encoding="utf-8")
    assert "easy" in svg
    assert "&lt;b&gt;hard" in svg


def test_an_interval_is_shown_only_if_there_is_one() -> None:
    assert Correlation(0.5, -0.25, 0.875, 0.01, 9).interval == "-0.25 to +0.88"
    assert Correlation(0.5, math.nan, math.nan, 0.01, 3).interval == ""


@pytest.mark.parametrize(("datasets", "lines", "columns"), [(1, 1, 1), (4, 1, 4), (5, 2, 3), (9, 3, 3)])
def test_panels_of_datasets_are_laid_out_in_few_even_rows(datasets: int, lines: int, columns: int) -> None:
    by_class = (ClassResidual("ant", 9, 50.0, 1.0), ClassResidual("bee", 9, 60.0, 0.5))
    row = Residual("TaskRes", "one", "RN50", 4, (1,), 2, 50.0, (0.1,), 0.5, by_class)
    rows = tuple(replace(row, dataset=f"dataset {number}") for number in range(datasets))
    figure = Figure()
    plots._residuals_by_class(Residuals("TaskRes", "RN50", 4, rows), figure)
    assert len(figure.axes) == datasets
    assert figure.axes[0].get_gridspec().get_geometry() == (lines, columns)
