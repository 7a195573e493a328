"""The tools on images with several classes: train, evaluate, extract, export, report and check, and what is refused."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dassl_lite import FewShotClassifier
from dassl_lite.classifier.export import from_weights
from dassl_lite.data.feature_files import read_feature_file
from dassl_lite.engine.commands.cells import gather
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.evaluate import Evaluation
from dassl_lite.tools import eval as eval_tool
from dassl_lite.tools import export, extract, prepare, report, serve, show, train
from dassl_lite.utils import write_json

COLOURS = {"red": (210, 30, 30), "green": (30, 160, 50), "blue": (40, 60, 210), "yellow": (240, 220, 40)}
FEW = ("DATALOADER.NUM_WORKERS", "0", "DATASET.FEATURES.VIEWS", "2")


def striped_image(names: tuple[str, ...], seed: int) -> Image.Image:
    """Noisy stripes, one per colour; plain grey without colours."""
    rng = np.random.default_rng(seed)
    stripes = [COLOURS[name] for name in names] or [(128, 128, 128)]
    columns = np.array([stripes[i * len(stripes) // 64] for i in range(64)])
    pixels = columns[None] + rng.normal(0, 25, (64, 64, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``colours.csv``: images with zero to three colours, with splits."""
    folder = tmp_path_factory.mktemp("colours")
    kinds = [colours for count in (1, 2, 2, 3, 0) for colours in itertools.combinations(COLOURS, count)]
    lines = ["path,labels,split"]
    for part, count in (("train", 60), ("val", 24), ("test", 48)):
        for i in range(count):
            colours = kinds[(5 * i + len(part)) % len(kinds)]
            striped_image(colours, len(lines)).save(folder / f"{part}{i}.png")
            lines.append(f"{part}{i}.png,{'|'.join(colours)},{part}")
    (folder / "colours.csv").write_text("\n".join(lines) + "\n")
    return folder / "colours.csv"


def trained(table: Path, folder: Path, method: str, *options: str, flags: tuple[str, ...] = ()) -> dict[str, Any]:
    args = ["--trainer", method, "--data", str(table), "--output-dir", str(folder), *flags, *FEW, *options]
    assert run_tool(train.main, args) == 0
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options", "least"),
    [
        ("TaskRes", ("OPTIM.MAX_EPOCH", "40"), 75),
        ("LinearProbe", ("OPTIM.MAX_EPOCH", "40"), 75),
        ("CoOp", ("OPTIM.MAX_EPOCH", "10", "TRAINER.COOP.N_CTX", "4"), 55),
        ("ZeroshotCLIP", (), 40),
        ("ZeroshotCLIP2", (), 40),
        ("TaskRes", ("OPTIM.MAX_EPOCH", "3", "DATASET.FEATURES.VIEWS", "0"), 45),
    ],
)
def test_each_method_that_supports_multi_label_data_runs_on_images(
    table: Path, tmp_path: Path, method: str, options: tuple[str, ...], least: float
) -> None:
    found = trained(table, tmp_path, method, *options)
    metrics = found["metrics"]["test"]
    assert metrics["mAP"] > least
    assert metrics["micro_f1"] > 50
    assert (found["num_classes"], found["split_sizes"]["test"]) == (4, 48)
    assert {row["classname"] for row in found["per_class"]} == set(COLOURS)


@pytest.mark.slow
def test_a_run_is_evaluated_extracted_and_reported_with_map(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "images"
    found = trained(table, run, "TaskRes", "OPTIM.MAX_EPOCH", "5", flags=("--shots", "4"))
    score = found["metrics"]["test"]["mAP"]
    capsys.readouterr()
    out = tmp_path / "row.json"
    assert run_tool(eval_tool.main, ["--model-dir", str(run), "--output", str(out)]) == 0
    assert re.search(rf"mAP % +macro-F1 %.*\n.*\n.*CSV +{score:.2f}", capsys.readouterr().out)
    assert json.loads(out.read_text())["rows"][0]["mAP"] == score

    file = tmp_path / "colours.npz"
    shared = ["--data", str(table), "--shots", "4", "--output", str(file), "--views", "2", *FEW[:2]]
    assert run_tool(extract.main, shared) == 0
    assert read_feature_file(file).parts["test"].labels.shape == (48, 4)
    again = trained(file, tmp_path / "runs" / "features", "TaskRes", "OPTIM.MAX_EPOCH", "5")
    assert again["metrics"]["test"]["mAP"] == pytest.approx(score, abs=0.5)
    assert run_tool(report.main, [str(tmp_path / "runs")]) == 0
    assert "test mAP in %, one seed" in capsys.readouterr().out


@pytest.mark.slow
def test_an_export_gives_the_probability_of_each_class(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(table, tmp_path / "run", "TaskRes", "OPTIM.MAX_EPOCH", "2")
    classifier = FewShotClassifier.load(tmp_path / "run", device="cpu")
    paths = sorted(map(str, table.parent.glob("test1*.png")))
    features, head = classifier.transform(paths), classifier._trainer.head
    factor, bias = head.calibration.exp()[0].item(), head.calibration[1].item()
    prototypes = head.class_prototypes().detach().numpy()
    cosines = (
        features @ prototypes.T / np.outer(*(np.linalg.norm(vectors, axis=1) for vectors in (features, prototypes)))
    )
    wanted = 1 / (1 + np.exp(-(factor * head.scale.item() * cosines + bias)))
    np.testing.assert_allclose(classifier.predict_proba(paths), wanted, atol=1e-4)

    args = ["--model-dir", str(tmp_path / "run"), "--format", "npz", "--output"]
    assert run_tool(export.main, [*args, str(tmp_path / "out")]) == 0
    assert "Compared on 48 pictures" in capsys.readouterr().out
    np.testing.assert_allclose(from_weights(tmp_path / "out" / "classifier.npz", features), wanted, atol=1e-4)
    classifier.save(tmp_path / "saved")
    again = FewShotClassifier.load(tmp_path / "saved", device="cpu")
    assert np.array_equal(again.predict_proba(paths), classifier.predict_proba(paths))
    assert "may show several of the classes" in (tmp_path / "saved" / "README.md").read_text()
    for ask in (again.score, again.evaluate, again.calibrate):
        with pytest.raises(ValueError, match="of images of several classes each, which score, evaluate and calibrate"):
            ask(paths, ["red"] * len(paths))

    trained(table, tmp_path / "zero-shot", "ZeroshotCLIP")
    args[1] = str(tmp_path / "zero-shot")
    assert run_tool(export.main, [*args, str(tmp_path / "none")]) == 2
    assert "ZeroshotCLIP ranks images of several classes, but gives no probabilities" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert run_tool(serve.main, ["--model-dir", str(tmp_path / "zero-shot"), "--port", "0"]) == 2
    assert "ZeroshotCLIP ranks images" in capsys.readouterr().err


def test_every_other_method_prints_one_line_before_clip_is_loaded(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--trainer", "TipAdapter", "--data", str(table), "--output-dir", str(tmp_path), *FEW]
    assert run_tool(train.main, args) == 2
    out, err = capsys.readouterr()
    assert "Loading CLIP" not in out
    assert err.splitlines()[-1].startswith("Error: TipAdapter needs one class per image, but dataset CSV is multi-")
    named = (
        err.splitlines()[-1].rpartition("methods that support it: ")[2].split(", ")
    )  # may include plugins of other tests
    assert {"CoOp", "LinearProbe", "TaskRes", "ZeroshotCLIP", "ZeroshotCLIP2"} <= set(named)
    assert "TipAdapter" not in named


@pytest.mark.slow
def test_the_check_and_the_contact_sheet_support_several_classes_per_image(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool(prepare.main, ["--check", str(table)]) == 0
    out = capsys.readouterr().out
    assert "a table of 132 images, with splits, multi-label: 1." in out
    assert "classes per image, 6 without" in out
    assert re.search(r"images +60 train, 24 val, 48 test", out)
    assert run_tool(show.main, ["--data", str(table), "--out", str(tmp_path / "sheet.png")]) == 0
    assert Image.open(tmp_path / "sheet.png").size[0] > 100


# ---- result tables ---------------------------------------------------------------------------------------------------


def finished(folder: Path, dataset: str, metrics: dict[str, float]) -> None:
    folder.mkdir()
    results = {"dataset": dataset, "trainer": "X", "backbone": "B", "num_shots": 4, "seed": 1, "config": {}}
    write_json({**results, "metrics": {"test": metrics}}, folder / "results.json")


def test_a_report_shows_each_dataset_by_its_main_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path / "a", "Colours", {"mAP": 70.0, "micro_f1": 60.0, "macro_f1": 50.0})
    assert [(cell.metric, cell.mean) for cell in gather(tmp_path)] == [("mAP", 70.0)]
    finished(tmp_path / "b", "Pets", {"accuracy": 90.0, "macro_f1": 80.0})
    assert run_tool(report.main, [str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"Colours \(mAP\) +X +70\.00\s+Pets \(accuracy\) +X +90\.00", out)
    assert "test accuracy or mAP in %" in out
    with (tmp_path / "report.csv").open() as file:
        assert [(row["dataset"], row["metric"]) for row in csv.DictReader(file)] == [
            ("Colours", "mAP"),
            ("Pets", "accuracy"),
        ]
    assert run_tool(report.main, [str(tmp_path), "--metric", "macro_f1"]) == 0
    assert re.search(r"Colours +X +50\.00\s+Pets +X +80\.00", capsys.readouterr().out)
    assert run_tool(report.main, [str(tmp_path), "--metric", "accuracy"]) == 2
    assert "mAP" in capsys.readouterr().err


def test_the_table_of_an_evaluation_has_a_column_for_each_main_metric() -> None:
    several = Evaluation("a", 10, 2, 2, mAP=80.0, macro_f1=70.0, seconds=1.0)
    one = Evaluation("b", 10, 2, 2, accuracy=60.0, macro_f1=50.0, seconds=1.0)
    headers, rows = eval_tool.table_of([several, one])
    assert headers == ["dataset", "accuracy %", "mAP %", "macro-F1 %", "classes matched", "images", "seconds"]
    assert [row[:4] for row in rows] == [
        ["a", "", "80.00", "70.00"],
        ["b", "60.00", "", "50.00"],
        ["average", "60.00", "80.00", "60.00"],
    ]
    assert eval_tool.table_of([several])[0][1:3] == ["mAP %", "macro-F1 %"]
    assert eval_tool.table_of([one])[0][1:3] == ["accuracy %", "macro-F1 %"]
    without_f1 = Evaluation("a", 10, 2, 2, mAP=80.0, macro_f1=math.nan, seconds=1.0)
    assert eval_tool.table_of([without_f1])[1][0][:3] == ["a", "80.00", ""]
