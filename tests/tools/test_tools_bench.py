"""`tools/bench.py`: its subjects run in small, and their rows have the fields that readers of the JSON rely on."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from dassl_lite.data.feature_files import FeatureFile, FeaturePart, write_feature_file
from dassl_lite.engine.commands.arguments import ToolParser
from dassl_lite.engine.commands.workers import this_process
from dassl_lite.tools import bench
from dassl_lite.tools._bench import classifier, extract, processes, text_tower


def test_every_subject_has_a_name_a_parser_and_a_run_function() -> None:
    modules = bench.subjects()
    assert {"text-tower", "extract", "search"} <= {module.NAME for module in modules}
    assert all(callable(module.add_parser) and callable(module.run) for module in modules)


def test_listing_finds_the_files_that_it_created(tmp_path: Path) -> None:
    file, folder = tmp_path / "rows.json", tmp_path / "folder"
    folder.mkdir()
    flags = ["--classes", "2", "--images", "3", "--folder", str(folder), "--json", str(file)]
    assert bench.main(["listing", *flags]) == 0
    rows = json.loads(file.read_text())
    assert [(row["dataset"], row["images"], row["round"]) for row in rows] == [
        (dataset, 106, number) for dataset in ("ImageNet", "ImageFolder") for number in ("first", "again")
    ]
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_sweep_compares_sharing_everything_with_sharing_only_the_backbone(tmp_path: Path) -> None:
    file, path = tmp_path / "rows.json", tmp_path / "features.npz"
    rng = np.random.default_rng(0)
    part = FeaturePart(rng.standard_normal((1, 6, 8), dtype=np.float32), np.arange(6) % 2)
    write_feature_file(FeatureFile({"train": part, "test": part}, ("a", "b"), part.views[:, :2]), path)
    flags = ["--data", str(path), "--trainers", "TaskRes", "--shots", "1", "--seeds", "1", "2", "--epochs", "1"]
    assert bench.main(["sweep", *flags, "--rounds", "1", "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())
    assert (row["method"], row["runs"]) == ("TaskRes", 2)
    assert row["times as fast"] == row["backbone shared, s"] / row["all shared, s"]


@pytest.mark.slow
def test_processes_compares_one_process_with_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def workers(jobs: int, threads: int) -> Any:
        asked.append((jobs, threads))
        return this_process()

    monkeypatch.setattr(processes, "local_workers", workers)
    file = tmp_path / "rows.json"
    flags = ["--backbone", "demo", "--images", "4", "--jobs", "3", "--rounds", "1", "--json", str(file)]
    assert bench.main(["processes", *flags]) == 0
    assert asked == [(1, 1), (3, 1)]
    first, several = json.loads(file.read_text())
    assert (first["processes"], first["times as fast"], several["processes"]) == (1, 1.0, 3)


@pytest.mark.slow
def test_text_tower_measures_both_variants_and_writes_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    flags = ["--classes", "3", "6", "--context", "2", "--rounds", "1", "--plain-classes", "4", "--no-memory"]
    flags += ["--cocoop-batch", "2", "--architecture", "ViT-S-32-alt", "--json", str(file)]
    assert bench.main(["text-tower", *flags]) == 0
    rows = json.loads(file.read_text())
    assert [(row["method"], row["classes"], row["context"]) for row in rows] == [
        ("CoOp", 3, 2),
        ("CoOp", 6, 2),
        ("deep", 6, 4),
        ("deep, per class", 6, 4),
        ("CoCoOp", 6, 4),
    ]
    assert all(row["speedup"] > 0 for row in rows)
    assert [row["plain_measured"] for row in rows[:4]] == [3, 4, 4, 4]
    assert all(row["difference"] < 1e-4 for row in rows[:4])
    assert "speedup" in capsys.readouterr().out


@pytest.mark.slow
def test_text_tower_measures_memory_in_separate_processes() -> None:
    """Only CoOp's row has a memory field."""
    parser = ToolParser()
    text_tower.add_parser(parser.add_subparsers())
    flags = ["--plain-classes", "6", "--rounds", "1", "--architecture", "ViT-S-32-alt"]
    row = text_tower._coop(parser.parse_args([text_tower.NAME, *flags]), classes=6, context=2)
    assert 0 < row["memory_ratio"] < 1.1
    assert row["plain_memory_measured"] == 6


@pytest.mark.parametrize(("available", "expected"), [(1000, (90.0, 8)), (100, (90.0, 4))])
def test_memory_that_would_not_fit_is_extrapolated(
    monkeypatch: pytest.MonkeyPatch, available: float, expected: tuple[float, int]
) -> None:
    monkeypatch.setattr(text_tower, "_peak", lambda args, way, classes, context: 10.0 + 10 * classes)
    monkeypatch.setattr(text_tower, "_available_mb", lambda: available)
    assert text_tower._plain_peak(argparse.Namespace(plain_classes=4), 8, 2) == expected


@pytest.mark.slow
def test_search_finds_the_same_accuracies_as_plain_matrix_products(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    flags = ["--classes", "3", "70", "--images", "40", "--width", "8", "--betas", "4", "--rounds", "1"]
    assert bench.main(["search", *flags, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [(row["classes"], row["entries"]) for row in rows] == [(3, 48), (70, 1120)]
    assert all(row["speedup"] > 0 and row["largest difference %"] == 0 for row in rows)


@pytest.mark.slow
def test_precision_compares_features_and_accuracies_with_fp32(tmp_path: Path) -> None:
    file, rng = tmp_path / "rows.json", np.random.default_rng(0)
    for part, name in itertools.product(("train", "test"), ("red", "green", "blue")):
        (tmp_path / "images" / part / name).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / part / name / f"{number}.png")
    dataset = tmp_path / "noise.yaml"
    dataset.write_text(f"DATASET:\n  NAME: ImageFolder\n  ROOT: {tmp_path / 'images'}\n")
    flags = ["--backbones", "demo", "--methods", "ZeroshotCLIP", "--images", "2", "--shots", "1", "--seeds", "1"]
    flags += ["--dataset", str(dataset)]
    assert bench.main(["precision", *flags, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    half, brain = found["features"]
    assert (half["precision"], brain["precision"]) == ("fp16", "bf16")
    for what in ("images", "texts"):
        assert 0 < half[f"{what}, mean"] <= half[f"{what}, most"] < brain[f"{what}, mean"] < 0.05
    (row,) = found["accuracy"]
    assert row["fp16, most"] == pytest.approx(abs(row["fp16"] - row["fp32"]))
    assert row["fp16, most"] < 1.5


@pytest.mark.slow
def test_the_classifiers_stream_is_compared_with_extraction(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    flags = ["--backbone", "demo", "--images", "4", "--rounds", "1", "--workers", "0", "--cpu-time", "--no-start"]
    with mock.patch.object(classifier, "BROKEN", 4):
        assert bench.main(["classifier", *flags, "--files", "18", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [row["files"] for row in rows["files"]] == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert [row["unreadable"] for row in rows["files"]] == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert all(row["resident MB, at most"] > 0 for row in rows["files"])
    (row,) = rows["stream"]
    assert row["stream / extraction"] > 0
    assert row["memory, 4 x as many / as many"] > 0


def test_extraction_is_compared_with_the_slower_of_loader_and_encoder() -> None:
    seconds = {"bare encoder": [2.0, 9.0, 2.0], "loader alone": [1.0], "store, from image files": [2.5]}
    gpu = {row["what"]: row for row in extract.table(seconds, 10, on_cpu=False)}
    assert gpu["store, from image files"]["of_reachable"] == pytest.approx(0.8)
    assert gpu["bare encoder"]["inputs_per_second"] == pytest.approx(5)
    cpu = {row["what"]: row for row in extract.table(seconds, 10, on_cpu=True)}
    assert cpu["store, from image files"]["of_reachable"] == pytest.approx(1.2)


@pytest.mark.slow
@pytest.mark.parametrize("views", [1, 2])
def test_extract_reports_the_rates_of_loader_encoder_and_both(tmp_path: Path, views: int) -> None:
    file = tmp_path / "rows.json"
    flags = ["--images", "6", "--rounds", "1", "--backbone", "random:ViT-S-32-alt", "--batch-size", "4"]
    assert bench.main(["extract", *flags, "--views", str(views), "--workers", "0", "--json", str(file)]) == 0
    rows = {row["what"]: row for row in json.loads(file.read_text())}
    assert set(rows) == {
        "bare encoder",
        "loader alone",
        "store, from image files",
        "reference's way, from image files",
        "store, tensors ready",
        "store, cached",
    }
    assert all(row["inputs_per_second"] > 0 and row["of_reachable"] > 0 for row in rows.values())


@pytest.mark.slow
def test_overhead_compares_a_run_with_a_plain_script(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    flags = ["--classes", "3", "5", "--images", "40", "--width", "8", "--epochs", "2", "--rounds", "1", "--cpu-time"]
    assert bench.main(["overhead", *flags, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [row["classes"] for row in rows] == [3, 5]
    assert all(row["ratio"] == row["run s"] / row["bare s"] > 0 for row in rows)


@pytest.mark.slow
def test_startup_compares_processes_with_an_import_of_torch(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert bench.main(["startup", "--rounds", "1", "--json", str(file)]) == 0
    ratios = {row["process"]: row["over import torch"] for row in json.loads(file.read_text())}
    assert list(ratios) == ["import torch", "a torch optimiser", "train --help", "train --list", "a run of 10 classes"]
    assert ratios["import torch"] == 1
    assert ratios["train --help"] < 0.5
