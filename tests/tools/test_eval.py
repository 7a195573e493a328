"""tools/eval.py: one model on many targets, classes matched by identity, what is not there said."""

from __future__ import annotations

import csv
import json
import re

import pytest

from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.evaluate import stored_config, suite
from dassl_lite.tools import eval as eval_tool
from dassl_lite.tools import train
from dassl_lite.utils import UserError

FEW = ("OPTIM.MAX_EPOCH", "3", "DATASET.FEATURES.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A TaskRes run on the embedded source."""
    folder = tmp_path_factory.mktemp("source") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("DASSL_LITE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        assert run_tool(train.main, ["--trainer", "TaskRes", "--shots", "4", "--output-dir", str(folder), *FEW]) == 0
    return folder


def evaluate(source, *arguments: str) -> int:
    return run_tool(eval_tool.main, ["--model-dir", str(source), *arguments])


def rows_of(path) -> dict:
    return {row["dataset"]: row for row in json.loads(path.read_text())["rows"]}


def test_variants_find_their_classes_by_id_and_strangers_stay_zero_shot(source, tmp_path, capsys):
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


def test_a_dataset_that_is_not_there_is_listed_and_skipped_unless_strict(source, tmp_path, capsys):
    out = tmp_path / "table.csv"
    targets = ("--dataset-config-file", "gadgets", "caltech101", "--root", str(tmp_path))
    assert evaluate(source, *targets, "--output", str(out)) == 0
    assert re.search(r"^Caltech101 +not found$", capsys.readouterr().out, re.MULTILINE)
    rows = {row["dataset"]: row for row in csv.DictReader(out.open())}
    assert "there is no folder" in rows["Caltech101"]["missing"]
    assert evaluate(source, *targets, "--strict") == 2


def test_base_to_new_is_a_suite_over_the_runs_own_dataset(source, tmp_path):
    out = tmp_path / "table.json"
    assert evaluate(source, "--suite", "base-to-new", "--output", str(out)) == 0
    rows = rows_of(out)
    assert [(name, row["classes"]) for name, row in rows.items()] == [("ShapesNet (base)", 24), ("ShapesNet (new)", 24)]
    assert all(row["matched"] == 24 for row in rows.values())


def test_suites_are_the_fields(source):
    assert len(suite("cross-dataset")) == 10
    assert suite("domain-generalization") == ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]
    assert len(suite("all")) == 16
    with pytest.raises(UserError, match="unknown suite 'dmo'. Did you mean 'demo'"):
        suite("dmo")


def test_mistakes_are_one_line(source, tmp_path, capsys):
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


def test_a_run_without_results_is_evaluated_from_its_checkpoint(source, tmp_path):
    (tmp_path / "prompt_learner").symlink_to(source / "prompt_learner")
    assert stored_config(tmp_path)["TRAINER"]["NAME"] == "TaskRes"
    assert evaluate(tmp_path) == 0
