"""tools/eval.py: one model on many datasets, classes matched by identity, missing datasets reported."""

from __future__ import annotations

import csv
import json
import re

import pytest
from PIL import Image

from dassl_lite.config import to_dict
from dassl_lite.data import DATASET_REGISTRY, FolderDataset
from dassl_lite.datasets._drawn.classes import PAINTS
from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.evaluate import Evaluation, config_for, evaluate_row, stored_config, suite
from dassl_lite.tools import eval as eval_tool
from dassl_lite.tools import train
from dassl_lite.utils import UserError

FEW = ("OPTIM.MAX_EPOCH", "3", "DATASET.FEATURES.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A TaskRes run on the embedded source dataset."""
    folder = tmp_path_factory.mktemp("source") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("DASSL_LITE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        assert run_tool(train.main, ["--trainer", "TaskRes", "--shots", "4", "--output-dir", str(folder), *FEW]) == 0
    return folder


def evaluate(source, *arguments: str) -> int:
    return run_tool(eval_tool.main, ["--model-dir", str(source), *arguments])


def rows_of(path) -> dict:
    return {row["dataset"]: row for row in json.loads(path.read_text())["rows"]}


@pytest.mark.slow
def test_variants_match_classes_by_id_and_unknown_classes_stay_zero_shot(source, tmp_path, capsys):
    out = tmp_path / "table.json"
    targets = ("--dataset-config-file", "shapesnet", "shapesneta", "gadgets")
    assert evaluate(source, *targets, "--output", str(out)) == 0
    rows = rows_of(out)
    trained = json.loads((source / "results.json").read_text())["metrics"]["test"]["accuracy"]
    assert rows["ShapesNet"]["accuracy"] == trained
    assert rows["ShapesNetA"]["matched"] == rows["ShapesNetA"]["classes"] == 16
    assert rows["Gadgets"]["matched"] == 0
    shown = capsys.readouterr()
    assert "matched 16 of 16 classes (by id)" in shown.out
    assert "stay zero-shot" in shown.err
    assert "average" in shown.out
    strict = evaluate(source, "--dataset-config-file", "gadgets", "--strict-classes")
    assert strict == 2
    assert "knows 0 of this dataset's 12 classes" in capsys.readouterr().err


@pytest.mark.slow
def test_a_missing_dataset_gets_its_own_row_and_is_an_error_with_strict(source, tmp_path, capsys):
    out = tmp_path / "table.csv"
    targets = ("--dataset-config-file", "gadgets", "caltech101", "--root", str(tmp_path))
    assert evaluate(source, *targets, "--output", str(out)) == 0
    assert re.search(r"^Caltech101 +not found$", capsys.readouterr().out, re.MULTILINE)
    rows = {row["dataset"]: row for row in csv.DictReader(out.open())}
    assert "there is no folder" in rows["Caltech101"]["missing"]
    assert evaluate(source, *targets, "--strict") == 2


def test_the_average_covers_only_evaluated_datasets():
    def row(dataset: str, accuracy: float, macro_f1: float, seconds: float) -> Evaluation:
        return Evaluation(dataset, 10, 2, 2, accuracy, macro_f1, seconds=seconds)

    missing = Evaluation("b", missing="looked for the folder", status="not found")
    _, table = eval_tool.table_of([row("a", 80.0, 70.0, 1.0), missing, row("c", 50.0, 30.0, 2.5)])
    assert table[1] == ["b", "not found", "", "", "", ""]
    assert table[-1] == ["average", "65.00", "50.00", "", "", "3.5"]
    assert [row[0] for row in eval_tool.table_of([row("a", 80.0, 70.0, 1.0), missing])[1]] == ["a", "b"]


@pytest.mark.slow
def test_rows_for_the_users_own_data_are_named_after_it(source, tmp_path):
    for folder in ("photos", "elsewhere/photos"):
        for name, colour in (("red circle", "red"), ("blue", "blue")):
            (tmp_path / folder / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (16, 16), colour).save(tmp_path / folder / name / f"{number}.png")
    table = tmp_path / "listed.csv"
    table.write_text("path,classname\n" + "".join(f"photos/blue/{number}.png,blue\n" for number in range(4)))
    paths = [str(tmp_path / folder) for folder in ("photos", "elsewhere/photos", "listed.csv")]
    out = tmp_path / "table.json"
    assert evaluate(source, "--data", *paths, "--dataset-config-file", "gadgets", "--output", str(out), *FEW[-2:]) == 0
    rows = rows_of(out)
    assert {name: row["classes"] for name, row in rows.items()} == {
        paths[0]: 2,
        paths[1]: 2,
        "listed": 1,
        "Gadgets": 12,
    }
    assert [rows[name]["images"] for name in (paths[0], paths[1], "listed")] == [
        8,
        8,
        4,
    ]  # all images, since user data is not split for evaluation
    assert sorted(path.name for path in (tmp_path / "photos").iterdir()) == ["blue", "red circle"]


@pytest.mark.slow
def test_all_images_of_data_that_the_run_did_not_use_are_tested(tmp_path):
    stored = to_dict(make_config(trainer="TaskRes", flags={"DATASET": {"NAME": "ImageFolder", "ROOT": str(tmp_path)}}))
    other = {"DATASET.NAME": "ImageFolder", "DATASET.ROOT": str(tmp_path / "other")}
    same = {"DATASET.NAME": "ImageFolder", "DATASET.ROOT": str(tmp_path / "x" / "..")}
    assert config_for(stored, other, {}).DATASET.TEST_ONLY
    for target in (None, same, "gadgets"):
        assert not config_for(stored, target, {}).DATASET.TEST_ONLY


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("data", [{"NAME": "ImageFolder"}, {"NAME": "CSV"}, {"NAME": "Mine"}])
@pytest.mark.parametrize(
    ("target", "options"), [("gadgets", ()), ({"DATASET.NAME": "Gadgets"}, ()), (None, ("DATASET.NAME", "Gadgets"))]
)
def test_the_root_of_a_run_on_user_data_does_not_apply_to_other_datasets(data, target, options):
    if "Mine" not in DATASET_REGISTRY:
        DATASET_REGISTRY.register(type("Mine", (FolderDataset,), {}))
    stored = to_dict(make_config(trainer="TaskRes", flags={"DATASET": {**data, "ROOT": "photos"}}))
    cfg = config_for(stored, target, {}, options)
    assert (cfg.DATASET.NAME, cfg.DATASET.ROOT) == ("Gadgets", "")
    assert config_for(stored, target, {"DATASET": {"ROOT": "x"}}, options).DATASET.ROOT == "x"
    assert config_for(stored, None, {}, ("DATASET.NAME", data["NAME"])).DATASET.ROOT == "photos"


@pytest.mark.slow
def test_a_run_on_base_classes_evaluates_another_dataset_on_all_classes(tmp_path):
    run, out = tmp_path / "run", tmp_path / "table.json"
    base = ("--trainer", "TaskRes", "--shots", "1", "--dataset-config-file", "gadgets", "--output-dir", str(run))
    assert run_tool(train.main, [*base, *FEW, "DATASET.SUBSAMPLE_CLASSES", "base"]) == 0
    assert evaluate(run, "--output", str(out)) == 0
    assert {name: row["classes"] for name, row in rows_of(out).items()} == {"Gadgets (base)": 6}
    assert evaluate(run, "--dataset-config-file", "gadgets", "paints", "--output", str(out)) == 0
    rows = rows_of(out)
    assert (rows["Gadgets"]["classes"], rows["Gadgets"]["matched"]) == (12, 6)
    assert (rows["Paints"]["classes"], rows["Paints"]["matched"]) == (len(PAINTS), 0)


@pytest.mark.slow
def test_base_to_new_is_a_suite_on_the_dataset_of_the_run(source, tmp_path):
    out = tmp_path / "table.json"
    assert evaluate(source, "--suite", "base-to-new", "--output", str(out)) == 0
    rows = rows_of(out)
    assert [(name, row["classes"]) for name, row in rows.items()] == [("ShapesNet (base)", 24), ("ShapesNet (new)", 24)]
    assert all(row["matched"] == 24 for row in rows.values())


@pytest.mark.slow
def test_suites_contain_the_standard_datasets(source):
    assert len(suite("cross-dataset")) == 10
    assert suite("domain-generalization") == ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]
    assert len(suite("all")) == 16
    with pytest.raises(UserError, match="unknown suite 'dmo'. Did you mean 'demo'"):
        suite("dmo")


@pytest.mark.slow
def test_user_errors_print_one_line(source, tmp_path, capsys):
    for arguments, expected in (
        (["--model-dir", str(tmp_path / "no")], "is not a folder"),
        (["--model-dir", str(tmp_path)], "contains no run"),
        (["--model-dir", str(source), "--output", "table.xlsx"], "must end in one of .json, .csv, .md"),
        (["--model-dir", str(source), "--load-epoch", "77"], "epochs there: 3"),
        (["--model-dir", str(source), "MODEL.BACKBONE.NAME", "random:RN50"], "was saved with backbone 'demo'"),
    ):
        assert run_tool(eval_tool.main, arguments) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1
        assert expected in errors[0]


@pytest.mark.slow
def test_a_row_counts_the_images_of_the_evaluated_split(source):
    stored = stored_config(source)
    data = {}
    for split in ("val", "test"):
        cfg = config_for(stored, None, {}, ["TEST.SPLIT", split])
        data[split] = evaluate_row(cfg, source).images
    dataset = DATASET_REGISTRY.get("ShapesNet")(cfg)
    assert data == {"val": len(dataset.val), "test": len(dataset.test)}
    assert data["val"] != data["test"]


@pytest.mark.slow
def test_a_run_without_results_is_evaluated_from_its_checkpoint(source, tmp_path):
    (tmp_path / "prompt_learner").symlink_to(source / "prompt_learner")
    assert stored_config(tmp_path)["TRAINER"]["NAME"] == "TaskRes"
    assert evaluate(tmp_path) == 0


@pytest.mark.slow
def test_an_evaluation_marks_transductive_methods(source, tmp_path, capsys):
    for options, label in (((), ""), (("TEST.TRANSDUCTIVE", "True"), "TaskRes + TransCLIP (transductive)")):
        out = tmp_path / "table.json"
        assert evaluate(source, "--output", str(out), *options) == 0
        (row,) = rows_of(out).values()
        assert row["transductive"] == bool(options)
        assert row["method"] == (label or "TaskRes")
        shown = capsys.readouterr().out
        assert ("(transductive)" in shown) == bool(options)
        assert label in shown
