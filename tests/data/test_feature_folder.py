"""Folders of feature shards give the same runs as an .npz, with rows read on demand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dassl_lite.config import get_cfg_default
from dassl_lite.data import build_dataset
from dassl_lite.data.feature_files import (
    FeatureFile,
    FeaturePart,
    read_feature_file,
    write_feature_file,
    write_feature_folder,
)
from dassl_lite.data.feature_files.folder import CLASSES, MANIFEST
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.evaluation import build_evaluator
from dassl_lite.evaluation import evaluator as evaluation
from dassl_lite.tools.bench import main as bench
from dassl_lite.tools.eval import main as evaluate
from dassl_lite.tools.train import main as train
from dassl_lite.utils.errors import UserError

CLASSES_COUNT, WIDTH = 5, 8


def content(views: int = 2, train: int = 40, test: int = 35) -> FeatureFile:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLASSES_COUNT, WIDTH))

    def part(count: int, several: int) -> FeaturePart:
        labels = rng.permutation(np.arange(count) % CLASSES_COUNT)
        noisy = [(centres[labels] + rng.standard_normal((count, WIDTH))).astype(np.float16) for _ in range(several + 1)]
        return FeaturePart(np.stack(noisy[:several]), labels, noisy[-1] if several > 1 else None)

    parts = {"train": part(train, views), "val": part(10, 1), "test": part(test, 1)}
    names = tuple(f"thing {number}" for number in range(CLASSES_COUNT))
    return FeatureFile(parts, names, centres.astype(np.float32)[None])


@pytest.fixture
def file_and_folder(tmp_path: Path) -> tuple[Path, Path]:
    write_feature_file(content(), tmp_path / "one.npz")
    write_feature_folder(content(), tmp_path / "many", rows=7)
    return tmp_path / "one.npz", tmp_path / "many"


def outcome(file: Path, output: Path, trainer: str, *options: str) -> dict[str, Any]:
    flags = ["--trainer", trainer, "--data", str(file), "--seed", "3", "--output-dir", str(output), *options]
    assert train(flags) == 0
    results = json.loads((output / "results.json").read_text())
    return {key: results[key] for key in ("results", "history", "zero_shot") if key in results} | {
        "accuracy": results.get("accuracy")
    }


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["TaskRes", "LinearProbe", "TipAdapter", "ZeroshotCLIP"])
def test_a_method_gives_the_same_results_on_shards_as_on_a_file(
    file_and_folder: tuple[Path, Path], tmp_path: Path, trainer: str
) -> None:
    few = () if trainer == "ZeroshotCLIP" else ("--shots", "4")
    few += ("OPTIM.MAX_EPOCH", "2") if trainer in ("TaskRes", "LinearProbe") else ()
    one, many = (outcome(file, tmp_path / f"run-{n}", trainer, *few) for n, file in enumerate(file_and_folder))
    assert one == many
    assert one
    for n, file in enumerate(file_and_folder):  # also when evaluated again
        assert evaluate(["--model-dir", str(tmp_path / f"run-{n}"), "--data", str(file)]) == 0


def test_a_folder_has_the_same_content_as_the_file(file_and_folder: tuple[Path, Path]) -> None:
    one, many = map(read_feature_file, file_and_folder)
    for name, part in one.parts.items():
        shards = many.parts[name]
        assert np.array_equal(part.views, np.asarray(shards.views))
        assert np.array_equal(part.labels, shards.labels)
        if part.plain is not None:
            assert shards.plain is not None
            assert np.array_equal(part.plain, np.asarray(shards.plain))
        numbers = np.random.default_rng(1).integers(0, part.views.shape[1], 50)
        assert np.array_equal(part.views[-1][numbers], shards.views.take(numbers, len(part.views) - 1))
    assert one.classnames == many.classnames


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def saved(folder: Path, name: str, array: Any) -> None:
    np.save(folder / name, array)


SHARD = "test_features-00001.npy"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-3]), "damaged shard"),
    "missing": (lambda folder: (folder / SHARD).unlink(), "cannot be read"),
    "no array": (lambda folder: (folder / SHARD).write_bytes(b"x" * 999), "damaged shard"),
    "objects": (
        lambda folder: np.save(folder / SHARD, np.array([[{}] * 8] * 7, object), allow_pickle=True),
        "holds no numbers",
    ),
    "width": (lambda folder: saved(folder, SHARD, np.zeros((7, 9), np.float16)), "different widths"),
    "type": (lambda folder: saved(folder, SHARD, np.zeros((7, 8), np.float32)), "different widths, views or types"),
    "columns": (lambda folder: saved(folder, SHARD, np.zeros((8, 7), np.float16).T), "no numbers in rows"),
    "rows": (lambda folder: saved(folder, SHARD, np.zeros((6, 8), np.float16)), "entries, but test_features has"),
    "whole": (lambda folder: saved(folder, SHARD, np.zeros((7, 8), np.int16)), "floating-point"),
    "escape": (
        lambda folder: edited(folder, lambda m: m["arrays"]["test_features"].append("../x.npy")),
        "not names of files",
    ),
    "format": (lambda folder: edited(folder, lambda m: m.update(version=9)), "another format or version"),
    "classes": (lambda folder: (folder / CLASSES).unlink(), "No such file"),
    "json": (lambda folder: (folder / MANIFEST).write_text("["), "cannot be read"),
    "label": (lambda folder: saved(folder, "test_labels-00000.npy", np.full(7, 9)), "contains the label 9"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    write_feature_folder(content(), tmp_path / "many", rows=7)
    spoil, message = BAD[kind]
    spoil(tmp_path / "many")
    with pytest.raises(UserError, match=message) as error:
        read_feature_file(tmp_path / "many")
    assert "\n" not in str(error.value)


def test_a_row_of_nan_is_named_when_it_is_read(tmp_path: Path) -> None:
    write_feature_folder(content(), tmp_path / "many", rows=7)
    rows = np.load(tmp_path / "many" / SHARD)
    rows[3, 2] = np.nan
    saved(tmp_path / "many", SHARD, rows)
    views = read_feature_file(tmp_path / "many").parts["test"].views
    assert views.take(np.arange(7)).shape == (7, WIDTH)
    with pytest.raises(UserError, match="array test_features, contains NaN or infinity, first in row 10"):
        views.take(np.arange(35))


def test_items_of_a_folder_are_created_lazily(file_and_folder: tuple[Path, Path]) -> None:
    load_plugins()
    found = []
    for file in file_and_folder:
        cfg = get_cfg_default()
        cfg.DATASET.NAME, cfg.DATASET.FILE = "Features", str(file)
        found.append(build_dataset(cfg))
    one, many = found
    assert not isinstance(many.train_x, list)
    assert [(item.label, item.classname) for item in many.train_x] == [(i.label, i.classname) for i in one.train_x]
    assert (one.classes, one.num_classes, one.lab2cname) == (many.classes, many.num_classes, many.lab2cname)


# ---- an evaluator with running sums ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 64, 1000])
def test_running_sums_give_the_same_metrics_as_all_predictions(
    batch: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(1000, 7, generator=rng), torch.randint(0, 8, (1000,), generator=rng)
    found = []
    for kept in (10**9, 300):
        monkeypatch.setattr(evaluation, "MOST_KEPT", kept)
        monkeypatch.setattr(evaluation, "_BLOCK", 100)
        cfg = get_cfg_default()
        cfg.TEST.PER_CLASS_RESULT, cfg.TEST.COMPUTE_CMAT, cfg.OUTPUT_DIR = True, True, str(tmp_path)
        evaluator: Any = build_evaluator(cfg, {label: f"thing {label}" for label in range(8)})
        for part, truth in zip(logits.split(batch), labels.split(batch), strict=True):
            evaluator.process(part, truth)
        found.append((evaluator.evaluate(), evaluator.per_class, evaluator.confusion.tolist()))
    assert found[0] == found[1]


@pytest.mark.slow
def test_ten_million_rows_are_estimated_to_need_bounded_memory(tmp_path: Path) -> None:
    """Extrapolated from the cost per row; `bench.py memory --rows 10000000` measures it in full."""
    small, large = 50_000, 1_250_000
    numbers = tmp_path / "numbers.json"
    flags = ["--classes", "10", "--width", "4", "--batch", "8192", "--runs", "evaluate", "--json", str(numbers)]
    assert bench(["memory", "--rows", str(small), str(large), "--folder", str(tmp_path), *flags]) == 0
    first, second = (row["resident GiB"] for row in json.loads(numbers.read_text()))
    of_a_row = (second - first) / (large - small)
    assert first + of_a_row * 10_000_000 < 1.5 + 0.3  # GiB; 0.3 allows for noise in resident memory
