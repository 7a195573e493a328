"""A search sees no test image, resumes as if never stopped, and its recipe reproduces its best trial."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dassl_lite.data.feature_files import FeatureFile, FeaturePart, write_feature_file
from dassl_lite.engine.commands import tune as commands
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.search_space import Dimension, parse_space
from dassl_lite.tools import train, tune
from dassl_lite.utils import UserError

SPACE = ("OPTIM.LR=1e-4:1e4:log", "TRAINER.TaskRes.RESIDUAL_SCALE=0.1,0.5,1.0")
FEW = ("OPTIM.MAX_EPOCH", "10")


def feature_file(path: Path, *, test_seed: int = 1, val: bool = True, per_class: int = 4) -> Path:
    """Five classes of 24-dimensional features around class means; ``test_seed`` below 0 mirrors the test labels."""
    draw = np.random.default_rng(0)
    means = draw.normal(size=(5, 24))
    text = (means + 0.5 * draw.normal(size=means.shape)).astype("float32")[None]

    def part(seed: int, count: int) -> FeaturePart:
        labels = np.repeat(np.arange(5), count)
        noise = np.random.default_rng(abs(seed)).normal(size=(len(labels), 24))
        features = (means[labels] + 2.5 * noise).astype("float32")[None]
        return FeaturePart(features, labels if seed >= 0 else 4 - labels)

    parts = {"train": part(5, per_class), "test": part(test_seed, 20), **({"val": part(6, 20)} if val else {})}
    write_feature_file(FeatureFile(parts=parts, classnames=tuple("abcde"), text_weights=text), path)
    return path


def start(
    data: Path, output: Path, *flags: str, space: tuple[str, ...] = SPACE, trials: int = 7, shots: str = "4"
) -> int:
    words = ["--trainer", "TaskRes", "--data", str(data), "--shots", shots, "--output-dir", str(output)]
    return run_tool(tune.main, [*words, *flags, "--trials", str(trials), "--space", *space, *FEW])


def trials_in(folder: Path) -> list[dict[str, str]]:
    """The rows of a search's table without the time columns."""
    with open(folder / commands.TABLE, encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def test_ranges_and_choices_are_parsed_and_integer_keys_are_searched_in_integers():
    words = ["A.X=1e-4:1:log", "A.N=2:9", "A.M=1:8:log:int", "A.C=a,b", "A.L=[1, 2],[3]"]
    found = parse_space(words, {"A.N": 5}.get)
    assert found == (
        Dimension("A.X", (), 1e-4, 1.0, is_log=True),
        Dimension("A.N", (), 2.0, 9.0, is_integer=True),
        Dimension("A.M", (), 1.0, 8.0, is_integer=True, is_log=True),
        Dimension("A.C", ("a", "b")),
        Dimension("A.L", ("[1, 2]", "[3]")),
    )
    assert found[1].ends == (2, 9)
    assert [parameter.text for parameter in found[1:4]] == ["A.N=2:9:int", "A.M=1:8:int:log", "A.C=a,b"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("OPTIM.LR=1:0.1", "--space 'OPTIM.LR=1:0.1' is empty: 1 is not below 0.1"),
        ("OPTIM.LR=0:1:log", "has no logarithm: 0 is not above 0"),
        ("OPTIM.LR=-1:1:log", "has no logarithm: -1 is not above 0"),
        ("OPTIM.LR=0.1:nan", "is not KEY=lo:hi"),
        ("OPTIM.LR=0.1:inf", "is not KEY=lo:hi"),
        ("OPTIM.LR=0.1:1:logg", "is not KEY=lo:hi"),
        ("OPTIM.LR", "is not KEY=lo:hi"),
        ("OPTIM.LR=0.1", "has one value; set it with OPTIM.LR 0.1"),
        ("OPTIM.LR=0.1,0.1", "an empty or repeated value"),
        ("OPTIM.MAX_EPOCH=0.5:3", "needs integers, but"),
    ],
)
def test_an_invalid_search_space_prints_one_line(space, message):
    with pytest.raises(UserError) as error:
        parse_space([space], {"OPTIM.LR": 0.1, "OPTIM.MAX_EPOCH": 3}.get)
    assert message in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--trainer", "TaskRez", "--space", "OPTIM.LR=1:2"), "Did you mean 'TaskRes'?"),
        (("--trainer", "TaskRes"), "--space is missing"),
        (("--trainer", "TaskRes", "--space", "OPTIM.LRR=1:2"), "OPTIM.LRR"),
        (("--trainer", "TaskRes", "--space", "OPTIM.LR=-1:2"), "OPTIM.LR is -1.0"),
        (("--trainer", "TaskRes", "--space", "TRAINER.TaskRes.RESIDUAL_ON=text,images"), "RESIDUAL_ON"),
        (("--trainer", "TaskRes", "--space", "SEED=1:9"), "--space SEED cannot be searched over; use --seed"),
        (("--trainer", "TaskRes", "--space", "DATASET.ROOT=a,b"), "--space DATASET.ROOT cannot be searched over"),
        (("--trainer", "TaskRes", "--space", "TRAINER.COOP.N_CTX=1:4"), "TRAINER.COOP.N_CTX has no effect on TaskRes"),
        (("--trainer", "TaskRes", "--space", "OPTIM.LR=1:2", "OPTIM.LR", "1"), "OPTIM.LR is both in --space and"),
        (("--trainer", "TaskRes", "--space", "OPTIM.LR=1:2", "--trials", "0"), "--trials must be at least 1"),
        (("--trainer", "TaskRes", "--space", "OPTIM.LR=1:2", "TEST.FINAL_MODEL", "best"), "TEST.FINAL_MODEL"),
    ],
)
def test_user_errors_are_reported_before_the_first_trial(tmp_path, capsys, flags, message):
    assert run_tool(tune.main, [*flags[:2], "--output-dir", str(tmp_path / "new"), *flags[2:]]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_poisoned_test_split_changes_nothing_and_the_recipe_reproduces_the_best_value(tmp_path):
    data, output = feature_file(tmp_path / "data.npz"), tmp_path / "search"
    assert start(data, output, "--seed", "2") == 0
    rows = trials_in(output)
    assert rows[0]["OPTIM.LR"] == "0.002"  # the recipe's own settings come first
    states = [row["state"] for row in rows]
    assert states.count("pruned") > 0
    assert states.count("complete") >= 5
    assert start(feature_file(tmp_path / "poisoned.npz", test_seed=-1), tmp_path / "other", "--seed", "2") == 0
    assert trials_in(tmp_path / "other") == rows
    recipe = output / commands.RECIPE
    best = max((row for row in rows if row["value"]), key=lambda row: float(row["value"]))
    words = ["--trainer", "TaskRes", "--config-file", str(recipe), "--data", str(data), "--seed", "2"]
    output_dir = ["--output-dir", str(tmp_path / "run")]
    assert run_tool(train.main, [*words, *output_dir, "TEST.SPLIT", "val"]) == 0
    metrics = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert metrics["val"]["accuracy"] == float(best["value"])
    text = recipe.read_text()
    assert f"# Run: python tools/train.py {' '.join(words)}\n" in text
    assert "# Source: python tools/tune.py --trainer TaskRes" in text
    assert f"# Expect: {float(best['value']):.2f} % accuracy on the validation images, seed 2" in text


@pytest.mark.slow
def test_a_search_opens_no_test_image(tmp_path):
    rows = ["path,label,classname,split"]
    for split, count in (("train", 2), ("val", 2), ("test", 3)):
        for number in range(count * 2):
            name, label = f"{split}{number}.png", number % 2
            rows.append(f"{name},{label},{'red' if label else 'blue'},{split}")
            if split == "test":
                (tmp_path / name).write_text("no image")
            else:
                Image.new("RGB", (32, 32), (200 * label, number * 9, 200 * (1 - label))).save(tmp_path / name)
    table = tmp_path / "pictures.csv"
    table.write_text("\n".join(rows))
    options = ("DATASET.FEATURES.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0")
    words = ["--trainer", "TaskRes", "--data", str(table), "--shots", "2", "--output-dir", str(tmp_path / "search")]
    words += ["--trials", "2", "--space", SPACE[0], *FEW, *options]
    assert run_tool(tune.main, words) == 0
    assert [row["state"] for row in trials_in(tmp_path / "search")] == ["complete"] * 2


@pytest.mark.slow
def test_a_resumed_search_equals_an_uninterrupted_one(tmp_path, monkeypatch, capsys):
    data, output = feature_file(tmp_path / "data.npz"), tmp_path / "search"
    assert start(data, output) == 0
    original, done = commands.do_trial, []

    def do_trial(trial, search):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(trial.number)
        return original(trial, search)

    monkeypatch.setattr(commands, "do_trial", do_trial)
    assert start(data, tmp_path / "stopped") == 130
    assert "repeat the command to continue" in capsys.readouterr().err
    assert len(trials_in(tmp_path / "stopped")) == 3
    monkeypatch.setattr(
        commands, "do_trial", lambda trial, search: done.append(trial.number) or original(trial, search)
    )
    assert start(data, tmp_path / "stopped") == 0
    assert trials_in(tmp_path / "stopped") == trials_in(output)
    capsys.readouterr()
    assert start(data, tmp_path / "stopped", space=(*SPACE[:1], "TRAINER.TaskRes.RESIDUAL_ON=text,image")) == 2
    assert "belongs to a search with --space" in capsys.readouterr().err
    assert start(data, tmp_path / "stopped", "--seed", "2") == 2
    assert "belongs to a search with --seed 1, but now it is 2" in capsys.readouterr().err
    (tmp_path / "stopped" / commands.STORE).write_text("this is no database, though it has some length to it " * 9)
    assert start(data, tmp_path / "stopped") == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    reason = "(sqlite3.DatabaseError) file is not a database"
    assert error[0].endswith(f"study.db is not the file of a search, or cannot be used: {reason}")


@pytest.mark.slow
def test_training_images_are_held_out_in_folds_if_there_are_no_validation_images(tmp_path, capsys):
    data = feature_file(tmp_path / "data.npz", val=False, per_class=2)
    poisoned = feature_file(tmp_path / "poisoned.npz", val=False, per_class=2, test_seed=-1)
    space = ("TRAINER.TaskRes.RESIDUAL_SCALE=0.1,1.0",)
    flags = ("--seeds", "1", "2", "--no-pruning")
    for name, file in (("clean", data), ("poisoned", poisoned)):
        assert start(file, tmp_path / name, *flags, space=space, shots="2") == 0
    assert "training images held out in 2 folds, seeds 1 2" in capsys.readouterr().out
    rows = trials_in(tmp_path / "clean")
    assert rows == trials_in(tmp_path / "poisoned")
    assert [row[space[0].partition("=")[0]] for row in rows] == ["0.1", "1.0"]  # each value is tried once
    assert {row["state"] for row in rows} == {"complete"}
    single = feature_file(tmp_path / "single.npz", val=False, per_class=1)
    assert start(single, tmp_path / "one", space=space) == 2
    assert "with one training image per class none can be held out" in capsys.readouterr().err
