"""Sweeps resume where they stopped and list failed runs; reports have the right means and intervals."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from yacs.config import CfgNode

from dassl_lite.config import to_dict
from dassl_lite.data.feature_cache import FeatureStore
from dassl_lite.data.feature_files import FeatureFile, FeaturePart, read_feature_file, write_feature_file
from dassl_lite.data.splits import read_split
from dassl_lite.engine.build import make_config, with_backbone_inputs
from dassl_lite.engine.commands import run
from dassl_lite.engine.commands import sweep as commands
from dassl_lite.engine.commands.arguments import DatasetChoice
from dassl_lite.engine.commands.cells import Cell, gather
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.sweep import all_methods, is_finished, tasks
from dassl_lite.engine.files.results import read_results
from dassl_lite.engine.methods import backbone as run_backbone
from dassl_lite.engine.methods import zero_shot
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.tools import report, sweep
from dassl_lite.utils import UserError, write_json

FEW = ("OPTIM.MAX_EPOCH", "2", "DATASET.FEATURES.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0")


def start(output: Path, *trainers: str, seeds: str = "1 2", options: tuple[str, ...] = (), jobs: str = "1") -> int:
    arguments = ["--trainers", *trainers, "--datasets", "gadgets", "--shots", "1", "2", "--seeds", *seeds.split()]
    return run_tool(sweep.main, [*arguments, "--jobs", jobs, "--output-dir", str(output), *FEW, *options])


def test_methods_without_shots_run_once_per_dataset_and_others_once_per_combination() -> None:
    load_plugins()
    datasets = [DatasetChoice("a"), DatasetChoice("b")]
    found = tasks(["TaskRes", "ZeroshotCLIP"], datasets, [1, 16], [1, 2, 3])
    assert len(found) == len(set(found)) == 2 * (2 * 3 + 1)
    assert {(t.shots, t.seed) for t in found if t.trainer == "ZeroshotCLIP"} == {(0, 1)}
    assert "TaskResEnhance" not in all_methods()
    assert {"TaskRes", "ZeroshotCLIP", "ZeroshotCLIP2"} <= set(all_methods())


@pytest.mark.slow
def test_a_repeated_sweep_skips_finished_runs_and_repeats_failed_ones(tmp_path, capsys, monkeypatch):
    trained: list[str] = []
    original = run.train

    def train(cfg):
        trained.append(cfg.OUTPUT_DIR)
        if "2shots-seed1" in cfg.OUTPUT_DIR and len(trained) < 4:
            raise RuntimeError("the disk was gone")
        return original(cfg)

    monkeypatch.setattr(run, "train", train)
    assert start(tmp_path, "TaskRes") == 1
    shown = capsys.readouterr()
    assert "3 runs in" in shown.out
    assert "1 failed" in shown.out
    assert "RuntimeError: the disk was gone" in shown.err
    assert len(trained) == 4
    assert start(tmp_path, "TaskRes") == 0
    assert len(trained) == 5
    assert "3 finished before, 0 failed" in capsys.readouterr().out
    assert len(list(tmp_path.rglob("results.json"))) == 4


@pytest.mark.slow
def test_a_finished_run_with_other_settings_is_an_error(tmp_path, capsys):
    assert start(tmp_path, "TaskRes", seeds="1") == 0
    assert start(tmp_path, "TaskRes", seeds="1", options=("OPTIM.LR", "0.5")) == 1
    assert "belongs to a run with OPTIM.LR 0.002, but now it is 0.5" in " ".join(capsys.readouterr().err.split())


def test_a_report_gives_means_and_intervals_as_text_csv_and_markdown(tmp_path, capsys):
    for seed, accuracy in ((1, 60.0), (2, 62.0), (3, 67.0)):
        folder = tmp_path / "X" / f"seed{seed}"
        folder.mkdir(parents=True)
        results = {"dataset": "D", "trainer": "X", "backbone": "B", "num_shots": 4, "seed": seed}
        (folder / "results.json").write_text(json.dumps({**results, "metrics": {"test": {"accuracy": accuracy}}}))
    zero_shot = {"dataset": "D", "trainer": "Z", "backbone": "B", "num_shots": -1, "seed": 1}
    (tmp_path / "Z").mkdir()
    (tmp_path / "Z" / "results.json").write_text(json.dumps({**zero_shot, "metrics": {"test": {"accuracy": 50.0}}}))
    assert run_tool(report.main, [str(tmp_path)]) == 0
    # Student's t for 95 % and 2 degrees of freedom is 4.3027, the standard deviation of 60, 62, 67 is 3.6056.
    interval = 4.302653 * 3.605551 / math.sqrt(3)
    out = capsys.readouterr().out
    assert f"63.00 ± {interval:.2f}" in out
    assert "50.00" in out
    assert f"| D         | X        | 63.00 ± {interval:.2f}" in (tmp_path / "report.md").read_text()
    rows = {row["method"]: row for row in csv.DictReader((tmp_path / "report.csv").open())}
    assert float(rows["X"]["mean"]) == 63.0
    assert float(rows["X"]["ci95"]) == pytest.approx(interval, rel=1e-5)
    assert rows["Z"]["ci95"] == ""


def test_a_report_marks_transductive_runs_and_lists_them_separately(tmp_path, capsys):
    for label, accuracy in (("X", 60.0), ("X + TransCLIP (transductive)", 70.0)):
        folder = tmp_path / label
        folder.mkdir()
        results = {"dataset": "D", "trainer": "X", "method": label, "backbone": "B", "num_shots": 4, "seed": 1}
        (folder / "results.json").write_text(json.dumps({**results, "metrics": {"test": {"accuracy": accuracy}}}))
    assert run_tool(report.main, [str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "differ in settings" not in shown.err
    rows = {row["method"]: float(row["mean"]) for row in csv.DictReader((tmp_path / "report.csv").open())}
    assert rows == {"X": 60.0, "X + TransCLIP (transductive)": 70.0}
    assert "X + TransCLIP (transductive)  70.00" in shown.out
    assert "| X + TransCLIP (transductive) | 70.00" in (tmp_path / "report.md").read_text()


def test_datasets_that_would_share_a_folder_are_an_error(tmp_path) -> None:
    load_plugins()
    same = [DatasetChoice("", "a/photos"), DatasetChoice("", "b/photos")]
    with pytest.raises(UserError, match="a/photos and b/photos would share the output folder photos/TaskRes"):
        tasks(["TaskRes"], same, [1], [1])
    folders = [task.folder.parts[0] for task in tasks(["TaskRes"], [DatasetChoice("/x/mine.yaml"), same[0]], [1], [1])]
    assert folders == ["mine", "photos"]


def test_a_finished_run_on_other_data_of_the_same_name_is_an_error(tmp_path) -> None:
    def config(root: str) -> CfgNode:
        return make_config(trainer="TaskRes", flags={"DATASET": {"NAME": "ImageFolder", "ROOT": root}})

    write_json({"config": to_dict(with_backbone_inputs(config("a/photos")))}, tmp_path / "results.json")
    assert is_finished(tmp_path, config("a/../a/photos"))
    with pytest.raises(UserError, match="belongs to a run on a/photos, not on b/photos"):
        is_finished(tmp_path, config("b/photos"))


def test_a_report_names_the_users_own_data_by_its_folder_or_file(tmp_path, capsys) -> None:
    places = {"ImageFolder": {"ROOT": "x/photos", "FILE": ""}, "Features": {"ROOT": "", "FILE": "y/made.npz"}}
    for name, dataset in places.items():
        results = {"dataset": name, "trainer": "X", "backbone": "B", "num_shots": 4, "seed": 1}
        more = {"metrics": {"test": {"accuracy": 60.0}}, "config": {"DATASET": {"NAME": name, **dataset}}}
        (tmp_path / name).mkdir()
        write_json({**results, **more}, tmp_path / name / "results.json")
    assert [cell.dataset for cell in gather(tmp_path)] == ["made", "photos"]
    assert run_tool(report.main, [str(tmp_path)]) == 0
    assert "test accuracy in %, one seed" in capsys.readouterr().out


def test_a_report_warns_of_runs_that_differ_in_settings_not_shown(tmp_path, capsys) -> None:
    for name, accuracy in (("a", 60.0), ("b", 61.0)):
        results = {"dataset": "D", "trainer": "X", "backbone": "B", "num_shots": 4, "seed": 1}
        (tmp_path / name).mkdir()
        write_json({**results, "metrics": {"test": {"accuracy": accuracy}}}, tmp_path / name / "results.json")
    assert run_tool(report.main, [str(tmp_path)]) == 0
    assert "and only one of each is shown: X on D; report their folders one by one" in capsys.readouterr().err
    assert run_tool(report.main, [str(tmp_path / "a")]) == 0
    assert "one of each is shown" not in capsys.readouterr().err


def test_a_single_value_has_no_interval() -> None:
    assert Cell("D", "X", "B", 1, (5.0,)).interval is None
    assert str(Cell("D", "X", "B", 1, (5.0,))) == "5.00"


def test_a_report_without_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run"):
        gather(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        gather(tmp_path / "no")


def test_runs_on_all_images_have_their_own_column(tmp_path, capsys):
    for trainer, shots, accuracy in (("TaskRes", -1, 90.0), ("TaskRes", 4, 70.0), ("ZeroshotCLIP", -1, 50.0)):
        folder = tmp_path / trainer / str(shots)
        folder.mkdir(parents=True)
        results = {"dataset": "D", "trainer": trainer, "backbone": "B", "num_shots": shots, "seed": 1}
        (folder / "results.json").write_text(json.dumps({**results, "metrics": {"test": {"accuracy": accuracy}}}))
    assert run_tool(report.main, [str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["dataset", "method", "4", "shots", "all"] in lines
    assert ["D", "TaskRes", "70.00", "90.00"] in lines
    assert ["D", "ZeroshotCLIP", "50.00", "50.00"] in lines


@pytest.mark.parametrize("shots", ["0", "-2"])
def test_a_sweep_without_training_images_is_refused(tmp_path, capsys, shots):
    assert run_tool(sweep.main, ["--trainers", "TaskRes", f"--shots={shots}", "--output-dir", str(tmp_path)]) == 2
    assert f"--shots {shots} must be at least 1, or -1 for all images" in " ".join(capsys.readouterr().err.split())


def test_the_folder_name_of_a_run_on_all_images_says_so():
    load_plugins()
    (task,) = tasks(["TaskRes"], [DatasetChoice("gadgets")], [-1], [2])
    assert str(task.folder) == "gadgets/TaskRes/allshots-seed2"


def two_classes(path: Path) -> Path:
    """A feature file."""
    rng = np.random.default_rng(0)
    part = FeaturePart(rng.standard_normal((1, 16, 8), dtype=np.float32), np.arange(16) % 2)
    text = rng.standard_normal((1, 2, 8), dtype=np.float32)
    write_feature_file(FeatureFile({"train": part, "test": part}, ("a", "b"), text), path)
    return path


FAILING = """
import os
from dassl_lite.engine import TRAINER_REGISTRY
from dassl_lite.trainers.zero_shot import ZeroshotCLIP

@TRAINER_REGISTRY.register()
class Fragile(ZeroshotCLIP):
    uses_shots = True
    config_node = "ZeroshotCLIP"

    def fit(self):
        with open(os.environ["WHERE"], "a") as file:
            file.write(f"{self.cfg.SEED} {os.getpid()}\\n")
        if self.cfg.SEED == 2:
            raise RuntimeError("CUDA error: device-side assert triggered")
"""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_run_that_loses_the_gpu_of_its_process_does_not_spoil_others(tmp_path, monkeypatch, capsys, jobs):
    monkeypatch.setattr(
        commands, "_lost_gpu", False
    )  # restored by monkeypatch, as with one job it is this process that loses the GPU
    (tmp_path / "fragile.py").write_text(FAILING)
    monkeypatch.setenv("WHERE", str(tmp_path / "where"))
    data = two_classes(tmp_path / "two.npz")  # so processes need not import the image libraries
    arguments = ["--trainers", "Fragile", "--plugin", str(tmp_path / "fragile.py"), "--data", str(data), "--shots", "1"]
    arguments += ["--seeds", "1", "2", "3", "4", "--jobs", jobs, "--output-dir", str(tmp_path / "sweep")]
    assert run_tool(sweep.main, arguments) == 1
    ran = [line.split() for line in (tmp_path / "where").read_text().splitlines()]
    processes = dict(ran)
    assert sorted(seed for seed, _ in ran) == ["1", "2", "3", "4"]  # each ran once
    after = ran[[seed for seed, _ in ran].index("2") + 1 :]
    assert after or jobs == "2"  # with two jobs, the others may have started earlier
    assert processes["2"] not in [process for _, process in after]
    shown = capsys.readouterr()
    assert "3 runs in" in shown.out
    assert "1 failed" in shown.out
    assert len(list((tmp_path / "sweep").glob("**/results.json"))) == 3


def feature_file(path: Path, seed: int) -> Path:
    """Write or overwrite a feature file with features drawn from the seed."""
    rng = np.random.default_rng(seed)

    def part(count: int) -> FeaturePart:
        return FeaturePart(rng.standard_normal((1, 3 * count, 8), dtype=np.float32), np.arange(3).repeat(count))

    text = rng.standard_normal((1, 3, 8), dtype=np.float32)
    parts = {"train": part(4), "val": part(2), "test": part(40)}
    write_feature_file(FeatureFile(parts, ("a", "b", "c"), text), path)
    return path


def numbers(results: dict[str, Any]) -> dict[str, Any]:
    """The numbers in the results of a run."""
    return {name: results[name] for name in ("metrics", "zero_shot_accuracy", "history", "fewshot_digest", "per_class")}


@pytest.mark.slow
def test_a_sweep_reads_a_feature_file_once_until_it_changes(tmp_path, monkeypatch):
    path, trained, read, tested = feature_file(tmp_path / "features.npz", 0), [], [], []
    train, reader = run.train, "dassl_lite.data.feature_files.dataset.read_feature_file"
    monkeypatch.setattr(reader, lambda *args: read.append(args) or read_feature_file(*args))

    accuracy = zero_shot.accuracy
    monkeypatch.setattr(zero_shot, "accuracy", lambda batches: tested.append(batches) or accuracy(batches))

    def train_and_change(cfg: CfgNode) -> Path:
        if len(trained) == 4:
            feature_file(path, 1)
        trained.append(cfg)
        return train(cfg)

    monkeypatch.setattr(run, "train", train_and_change)
    words = ["--trainers", "TaskRes", "ProKeR", "--data", str(path), "--shots", "2", "--seeds", "1", "2", "3"]
    small = ("DATALOADER.TRAIN_X.BATCH_SIZE", "2")  # several batches, so the order of the images makes a difference
    assert run_tool(sweep.main, [*words, "--jobs", "1", "--output-dir", str(tmp_path / "sweep"), *FEW, *small]) == 0
    assert len(read) == 2
    assert len(tested) == 3  # the two methods have batches of different sizes
    for number, cfg in enumerate(trained):
        feature_file(path, int(number >= 4))
        alone = cfg.clone()
        alone.defrost()
        alone.OUTPUT_DIR = str(tmp_path / "alone" / str(number))
        alone.freeze()
        train(alone)
        assert numbers(read_results(alone.OUTPUT_DIR)) == numbers(read_results(cfg.OUTPUT_DIR))


@pytest.mark.slow
def test_a_sweep_gathers_test_features_once(tmp_path, monkeypatch):
    fetched: list[int] = []
    fetch, splits = FeatureStore._fetch, []

    def counted(self: FeatureStore, files: list[Any], *args: Any) -> Any:
        fetched.append(len(files))
        return fetch(self, files, *args)

    monkeypatch.setattr(FeatureStore, "_fetch", counted)
    monkeypatch.setattr("dassl_lite.data.folder.read_split", lambda *args: splits.append(args) or read_split(*args))
    assert start(tmp_path, "TaskRes", "ProKeR") == 0
    sizes = read_results(next(tmp_path.rglob("results.json")).parent)["split_sizes"]
    assert fetched.count(sizes["test"]) == 1
    assert len(splits) == 1
    assert len(list(tmp_path.rglob("results.json"))) == 8


COUNTING = """
import os
from dassl_lite.engine.methods import backbone as run_backbone

own = run_backbone.load_clip

def load(name, **settings):
    with open(os.environ["LOADED"], "a") as file:
        print(os.getpid(), file=file)
    return own(name, **settings)

run_backbone.load_clip = load
"""


@pytest.mark.slow
def test_a_sweep_loads_its_backbone_once_per_process_and_its_runs_equal_separate_ones(tmp_path, monkeypatch):
    """Run with one job and with two; with two, one process does two of the runs."""
    (tmp_path / "counting.py").write_text(COUNTING)  # with two jobs, runs happen in separate processes
    monkeypatch.setattr(
        run_backbone, "load_clip", run_backbone.load_clip
    )  # restored by monkeypatch, as the plugin replaces it in this process too
    options = ("TRAINER.CLIPLoRA.STEPS_PER_SHOT", "2")
    trainers = ("CLIPLoRA", "CoOp", "TaskRes")  # the first changes the encoders
    flags = ["--datasets", "gadgets", "--shots", "1", "--seeds", "1", "--plugin", str(tmp_path / "counting.py")]

    def run_sweep(folder: str, jobs: str, *groups: tuple[str, ...]) -> dict[Path, dict]:
        monkeypatch.setenv("LOADED", str(tmp_path / f"{folder}-loaded"))
        for group in groups:
            words = ["--trainers", *group, *flags, "--jobs", jobs, "--output-dir", str(tmp_path / folder)]
            assert run_tool(sweep.main, [*words, *FEW, *options]) == 0
        paths = (tmp_path / folder).rglob("results.json")
        return {path.parent.relative_to(tmp_path / folder): read_results(path.parent) for path in paths}

    alone = run_sweep("alone", "1", *((trainer,) for trainer in trainers))
    for jobs in ("1", "2"):
        together = run_sweep(jobs, jobs, trainers)
        processes = (tmp_path / f"{jobs}-loaded").read_text().split()
        assert 1 <= len(processes) == len(set(processes)) <= int(jobs)
        assert len(together) == 3
        for name, results in together.items():
            assert results["metrics"] == alone[name]["metrics"]
            assert results["zero_shot_accuracy"] == alone[name]["zero_shot_accuracy"]
