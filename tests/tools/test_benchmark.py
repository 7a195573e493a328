"""Standard protocols are planned, resumed and tabulated as in papers."""

from __future__ import annotations

import contextlib
import csv
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from yacs.config import CfgNode

from dassl_lite.config import to_dict
from dassl_lite.engine.build import with_backbone_inputs
from dassl_lite.engine.commands import benchmark as commands
from dassl_lite.engine.commands import evaluate, run
from dassl_lite.engine.commands.arguments import ConfigArguments
from dassl_lite.engine.commands.benchmark import (
    BASE_TO_NEW,
    CROSS,
    DG,
    EVALUATIONS,
    FEW_SHOT,
    Datasets,
    Plan,
    plan,
    plan_table,
    recipe_for,
)
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.evaluate import Evaluation
from dassl_lite.engine.commands.published import FIELD, Published, read_source
from dassl_lite.engine.commands.tables import BEST, SECOND, Table
from dassl_lite.engine.commands.transfers import Transfer, base_to_new_average, base_to_new_table, source_table
from dassl_lite.engine.files.results import write_results
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.tools import benchmark, report
from dassl_lite.utils.files import digest_of, read_json, write_json

TINY = ("OPTIM.MAX_EPOCH", "1", "DATASET.FEATURES.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0")
DEMO = Datasets.demo()


def shared(**flags: Any) -> ConfigArguments:
    return {
        **{"trainer": "", "dataset_file": "", "method_file": None},
        **{"flags": flags, "options": (), "allow_new_keys": False},
    }  # type: ignore[return-value]


def planned(*protocols: str, trainers: tuple[str, ...], datasets: Datasets = DEMO, **more: Any) -> Plan:
    load_plugins()
    return plan(protocols, trainers, shared(), datasets=datasets, **more)


# ---- plans --------------------------------------------------------------------------------------------------------


def test_the_protocols_use_the_standard_datasets() -> None:
    field = Datasets.field()
    assert len(field.of(FEW_SHOT)) == len(field.of(BASE_TO_NEW)) == 11
    assert field.of(CROSS) == field.of(FEW_SHOT)[1:]
    assert field.of(DG) == ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
    assert DEMO.of(DG) == ("shapesnetv2", "shapesnetsketch", "shapesneta", "shapesnetr")
    assert not {*DEMO.of(DG)} & {*DEMO.of(FEW_SHOT)}


@pytest.mark.slow
def test_few_shot_covers_every_dataset_and_number_of_shots() -> None:
    protocol_plan = planned(FEW_SHOT, trainers=("TaskRes", "ZeroshotCLIP"))
    assert len(protocol_plan.runs) == 7 * (5 * 3 + 1)
    assert not any(protocol_plan.evaluations.values())


def test_base_to_new_trains_on_base_classes_with_16_shots() -> None:
    protocol_plan = planned(BASE_TO_NEW, trainers=("TaskRes",), seeds=(1,), only=("gadgets",))
    [(task, keys)] = protocol_plan.evaluations.items()
    cfg = task.config(shared(), Path("x"))
    assert (cfg.DATASET.SUBSAMPLE_CLASSES, cfg.DATASET.NUM_SHOTS, cfg.DATASET.NAME) == ("base", 16, "Gadgets")
    assert keys == ("new", "all")


@pytest.mark.slow
def test_protocols_share_the_source_run_if_their_recipes_agree() -> None:
    both = planned(FEW_SHOT, CROSS, DG, trainers=("CoOp",), seeds=(1,), shots=(16,))
    source = [task for task in both.runs if task.dataset.file == "shapesnet"]
    assert len(source) == 1
    assert both.evaluations[source[0]] == (*DEMO.of(CROSS), *DEMO.of(DG))


@pytest.mark.slow
def test_a_methods_own_recipe_for_a_protocol_is_used_if_it_fits_the_backbone() -> None:
    load_plugins()
    assert recipe_for(BASE_TO_NEW, "GDA", "demo") == "base_to_new"
    assert recipe_for(BASE_TO_NEW, "PromptSRC", "ViT-B/16") == "vit_b16_base_to_new"
    assert recipe_for(BASE_TO_NEW, "PromptSRC", "ViT-B/32") == ""
    assert recipe_for(CROSS, "MaPLe", "ViT-B/16") == recipe_for(DG, "MaPLe", "ViT-B/16") == "vit_b16_cross_datasets"
    assert recipe_for(DG, "TaskRes", "RN50") == "generalization_rn50"
    assert recipe_for(CROSS, "TaskRes", "RN50") == recipe_for(FEW_SHOT, "GDA", "demo") == ""
    [task] = planned(BASE_TO_NEW, trainers=("GDA",), seeds=(1,), only=("gadgets",)).runs
    assert task.config(shared(), Path("x")).TRAINER.GDA.COVARIANCE == "per_class"


@pytest.mark.slow
def test_long_recipes_run_a_tenth_of_their_epochs_on_embedded_datasets_and_the_table_says_so(
    tmp_path: Path, done: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("CLIPLoRA", "CoOp", "CrossModalProbe", "MMA", "TaskRes")
    full, short = (planned(BASE_TO_NEW, trainers=names, seeds=(1,), only=("gadgets",), short=s) for s in (False, True))

    def lengths(protocol_plan: Plan, words: tuple[str, ...] = ()) -> list[int]:
        configs = [run.config({**shared(), "options": list(words)}, Path("x")) for run in protocol_plan.runs]
        lora, coop, probe, mma, taskres = configs
        own = (lora.TRAINER.CLIPLoRA.STEPS_PER_SHOT, probe.TRAINER.CrossModalProbe.ITERATIONS)
        return [*own, *(cfg.OPTIM.MAX_EPOCH for cfg in (coop, mma, taskres))]

    before = lengths(full)
    assert lengths(short) == [before[0] // 10, before[1] // 10, before[2] // 10, 3, before[4]]
    assert lengths(short, ("OPTIM.MAX_EPOCH", "7"))[2] == 7  # a length set by the user is kept
    note = "trained for 1/10 of their recipe's epochs or steps (--full-length: all): CoOp"
    assert start(tmp_path, "base-to-new", "--trainers", "CoOp", "TaskRes", "--datasets", "gadgets") == 0
    assert note in (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    assert start(tmp_path, "few-shot", "--root", "x", "--full-length") == 2
    assert "--full-length has no effect with --root" in capsys.readouterr().err


@pytest.mark.slow
def test_missing_datasets_are_listed_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dtd" / "images").mkdir(parents=True)
    words = ["few-shot", "--trainers", "ZeroshotCLIP", "--root", str(tmp_path), "--dry-run"]
    assert run_tool(benchmark.main, words) == 0
    shown = capsys.readouterr().out
    assert "1 runs, 0 of them finished" in shown
    assert "a guess, as no run has finished here yet" in shown
    assert "\ncaltech101 " in shown
    assert "\ndtd " not in shown
    assert run_tool(benchmark.main, ["cross-dataset", *words[1:]]) == 0
    assert "there is nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cross-dataset --shots 4", "--shots has no effect on cross-dataset"),
        ("few-shot --datasets gadget", "unknown dataset 'gadget'"),
        ("few-shot --trainers TaskRess", "unknown trainer 'TaskRess'"),
        ("few-shot --shots 0", "--shots 0 must be at least 1"),
        ("few-shot DATASET.SUBSAMPLE_CLASSES base", "DATASET.SUBSAMPLE_CLASSES has no effect in a benchmark"),
        ("few-shots", "invalid choice: 'few-shots'"),
    ],
)
def test_an_invalid_benchmark_command_prints_one_line(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_tool(benchmark.main, words.split()) == 2
    assert not list(tmp_path.iterdir())
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


# ---- resuming ------------------------------------------------------------------------------------------------------


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace runs and evaluations with instant fakes; returns what has been done, in order."""
    log: list[str] = []

    def train(cfg: CfgNode) -> Path:
        log.append(f"train {cfg.TRAINER.NAME} {cfg.DATASET.NAME}")
        results = {
            **{"trainer": cfg.TRAINER.NAME, "dataset": cfg.DATASET.NAME, "backbone": "demo", "num_shots": 16},
            **{"metrics": {"test": {"accuracy": 60.0}}, "seconds": {"train": 600.0}, "seed": cfg.SEED},
            "config": to_dict(with_backbone_inputs(cfg)),
        }
        return write_results(results, cfg.OUTPUT_DIR)

    def evaluate_row(cfg: CfgNode, model_dir: Path, name: str) -> Evaluation:
        log.append(f"test {cfg.TRAINER.NAME} {cfg.DATASET.NAME} {cfg.DATASET.SUBSAMPLE_CLASSES}")
        if cfg.TRAINER.NAME == "LinearProbe":
            return Evaluation(name, missing="it lacks pine", status="lacks classes")
        return Evaluation(name, accuracy=40.0 if name == "new" else 45.0, seconds=1.0)

    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(evaluate, "evaluate_row", evaluate_row)
    return log


def start(output: Path, protocol: str, *words: str) -> int:
    return run_tool(benchmark.main, [protocol, "--jobs", "1", "--output-dir", str(output), *words])


@pytest.mark.slow
def test_repeating_the_command_does_only_the_remaining_work(
    tmp_path: Path, done: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = ("base-to-new", "--trainers", "LinearProbe", "TaskRes", "--datasets", "gadgets")
    assert start(tmp_path, *line) == 0
    trained = [what for what in done if what.startswith("train")]
    assert trained == ["train LinearProbe Gadgets", "train TaskRes Gadgets"]
    assert done[-2:] == ["test TaskRes Gadgets new", "test TaskRes Gadgets all"]
    shown = capsys.readouterr().out
    assert "LinearProbe cannot be tested on other classes: it lacks pine" in shown
    assert "Gadgets TaskRes 60.00 40.00 48.00 45.00" in " ".join(shown.split())
    del done[:]
    assert start(tmp_path, *line) == 0
    assert done == []
    folder = tmp_path / "base-to-new" / "gadgets" / "TaskRes" / "16shots-seed1"
    kept = read_json(folder / EVALUATIONS)
    del kept["evaluations"]["new"]
    write_json(kept, folder / EVALUATIONS)
    assert start(tmp_path, *line) == 0
    assert done == ["test TaskRes Gadgets new"]


@pytest.mark.slow
def test_a_report_on_other_protocols_works_in_any_folder_and_refuses_flags_without_effect(
    tmp_path: Path, done: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start(tmp_path, "base-to-new", "--trainers", "TaskRes", "--datasets", "gadgets") == 0
    for flags in (["--metric", "ece"], ["--split", "val"], ["--versus", "TaskRes"]):
        capsys.readouterr()
        assert run_tool(report.main, [str(tmp_path), *flags]) == 2
        assert f"Error: {flags[0]} " in capsys.readouterr().err
    path = next(tmp_path.rglob("results.json"))
    monkeypatch.chdir(path.parent)
    assert run_tool(report.main, ["."]) == 0
    monkeypatch.chdir(tmp_path)
    kept = read_json(path.parent / EVALUATIONS)
    other = path.parent.with_name("16shots-seed1-RN50")
    write_json({**read_json(path), "backbone": "RN50"}, other / "results.json")
    write_json({**kept, "run": digest_of(read_json(other / "results.json"))}, other / EVALUATIONS)
    capsys.readouterr()
    assert run_tool(report.main, ["."]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Gadgets TaskRes (RN50) 60.00 40.00 48.00 45.00 Gadgets TaskRes (demo) 60.00" in shown


@pytest.mark.slow
def test_evaluations_of_a_replaced_run_are_repeated(tmp_path: Path, done: list[str]) -> None:
    line = ("base-to-new", "--trainers", "TaskRes", "--datasets", "gadgets")
    start(tmp_path, *line)
    path = tmp_path / "base-to-new" / "gadgets" / "TaskRes" / "16shots-seed1" / "results.json"
    write_json({**read_json(path), "metrics": {"test": {"accuracy": 61.0}}}, path)
    del done[:]
    start(tmp_path, *line)
    assert done == ["test TaskRes Gadgets new", "test TaskRes Gadgets all"]


@pytest.mark.slow
def test_the_time_estimate_uses_finished_runs(
    tmp_path: Path, done: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = ("base-to-new", "--trainers", "TaskRes", "--datasets", "gadgets", "tiles")
    start(tmp_path, *line[:-1])
    capsys.readouterr()
    assert start(tmp_path, *line, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "2 runs, 1 of them finished; 4 evaluations, 2 done" in shown
    assert "left: about 10 minutes with 1 at a time and 0 MB of run folders (from 1 finished here)" in shown


@pytest.mark.slow
def test_a_failing_evaluation_is_listed_and_does_not_stop_the_others(
    tmp_path: Path, done: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    working = evaluate.evaluate_row

    def evaluate_row(cfg: CfgNode, model_dir: Path, name: str) -> Evaluation:
        if cfg.DATASET.NAME == "Tiles":
            return Evaluation(name, missing="tiles are gone", status="not found")
        return working(cfg, model_dir, name=name)

    monkeypatch.setattr(commands.evaluate, "evaluate_row", evaluate_row)
    assert start(tmp_path, "cross-dataset", "--trainers", "TaskRes", "--datasets", "gadgets", "tiles") == 1
    shown = capsys.readouterr()
    assert "tiles are gone" in shown.err
    assert "Cross-dataset from ShapesNet; the average is without the source" in shown.out
    assert done == ["train TaskRes ShapesNet", "test TaskRes Gadgets all"]


@pytest.mark.slow
def test_jobs_sets_the_number_of_evaluation_processes_and_each_run_stays_in_one(
    tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("base-to-new", "--trainers", "LinearProbe", "TaskRes", "--datasets", "gadgets")
    assert start(tmp_path, *line) == 0
    kept = {path: path.read_text() for path in tmp_path.rglob(EVALUATIONS)}
    for path in kept:
        path.unlink()
    asked: list[int] = []

    @contextlib.contextmanager
    def workers(jobs: int, plugins: tuple[str, ...]) -> Iterator[Any]:
        asked.append(jobs)
        yield lambda function, items: [pickle.loads(pickle.dumps(function))(item) for item in items[::-1]]  # noqa: S301

    monkeypatch.setattr(commands, "local_workers", workers)
    monkeypatch.setattr(benchmark, "sweep", lambda runs, settings: {})  # all have finished
    assert run_tool(benchmark.main, [*line, "--jobs", "8", "--output-dir", str(tmp_path)]) == 0
    assert asked == [2], "one for each run"
    assert {path: path.read_text() for path in tmp_path.rglob(EVALUATIONS)} == kept


# ---- tables --------------------------------------------------------------------------------------------------------


def transfer(method: str, dataset: str, own: float, **elsewhere: float) -> Transfer:
    return Transfer(method, dataset, "demo", "new" in elsewhere, (own,), {k: (v,) for k, v in elsewhere.items()})


def row_of(table: Table | None, *start: str) -> list[str]:
    assert table is not None
    return next(list(row) for row in table.rows if tuple(row[: len(start)]) == start)


def test_the_harmonic_mean_is_computed_after_averaging() -> None:
    found = [
        transfer("A", "one", 80.0, new=40.0, all=50.0),
        transfer("A", "two", 60.0, new=60.0, all=40.0),
        transfer("B", "one", 50.0, new=50.0, all=30.0),
        transfer("B", "two", 50.0, new=50.0),
        transfer("C", "one", 99.0, new=99.0),
    ]
    table = base_to_new_table(found)
    assert row_of(table, "one", "A") == ["one", "A", "80.00", "40.00", "53.33", "50.00"]
    average = base_to_new_average(found)
    # H is 2 * 70 * 50 / 120, not the mean of 53.33 and 60. Without either dataset it is 60 or 53.33, so pseudo-values
    # are 56.67 and 63.33. Student's t is 12.71.
    averages = ["70.00 ± 127.06", "50.00 ± 127.06", "58.33 ± 42.35", "45.00 ± 63.53"]
    assert row_of(average, "A") == ["A", *averages, "2"]
    assert row_of(average, "B")[-2:] == ["", "2"]
    assert average is not None
    assert average.places == {(0, 3): BEST, (1, 3): SECOND}  # C was not run on both datasets


def test_averages_exclude_the_source_and_cover_the_same_datasets_for_every_method() -> None:
    found = [transfer("A", "S", 90.0, x=40.0, y=60.0), transfer("B", "S", 80.0, x=30.0)]
    table = source_table(found, CROSS, "S", ["x", "y", "z"])
    assert table is not None
    assert list(table.headers) == ["method", "S", "x", "y", "average"]
    assert row_of(table, "A") == ["A", "90.00", "40.00", "60.00", "50.00"]
    assert row_of(table, "B") == ["B", "80.00", "30.00", "", ""]


PUBLISHED = """
key: A paper
paper: of a test
read_in: a test
backbone: ViT-B/16
tables:
  - table: one
    protocol: base-to-new
    shots: 16
    columns: [base, new, H]
    values:
      OxfordPets: {TaskRes: [90.0, 60.0, 72.0]}
      average: {TaskRes: [80.0, 60.0, 68.57]}
  - table: two
    protocol: domain-generalization
    columns: [ImageNet, ImageNetV2, ImageNetSketch, ImageNetA, ImageNetR, average]
    values:
      16: {TaskRes: [70.0, 60.0, 50.0, 40.0, 70.0, 55.0]}
  - table: three
    protocol: few-shot
    columns: [16]
    values:
      ImageNet: {TaskRes: [99.0]}
"""


def test_published_numbers_of_the_same_protocol_are_shown_beside_transfers(tmp_path: Path) -> None:
    (tmp_path / "paper.yaml").write_text(PUBLISHED, encoding="utf-8")

    def run(dataset: str, own: float, shots: int = 16, **elsewhere: float) -> Transfer:
        bare = transfer("TaskRes", dataset, own, **elsewhere)
        return replace(bare, method="TaskRes (ViT-B/16)", trainer="TaskRes", backbone="ViT-B/16", shots=shots)

    def published() -> Published:
        return Published([read_source(tmp_path / "paper.yaml")])

    table = base_to_new_table([run("OxfordPets", 92.0, new=60.0), run("Gadgets", 1.0, new=2.0)], published())
    assert table is not None
    assert table.headers[2:11:3] == ["base", "new", "H"]
    assert row_of(table, "OxfordPets")[2:8] == [
        "92.00",
        "90.00 [A paper]",
        "+2.00",
        "60.00",
        "60.00 [A paper]",
        "+0.00",
    ]
    assert row_of(table, "Gadgets")[3:5] == ["", ""]
    other_shots = base_to_new_table([run("OxfordPets", 92.0, new=60.0, shots=4)], published())
    assert other_shots is not None
    assert list(other_shots.headers) == ["dataset", "method", "base", "new", "H", "all"]

    transfers = [run(dataset, 82.0, new=60.0) for dataset in sorted(FIELD)]
    average = base_to_new_average(transfers, published())
    assert row_of(average, "TaskRes (ViT-B/16)")[1:4] == ["82.00 ± 0.00", "80.00 [A paper]", "+2.00"]
    part = base_to_new_average(transfers[1:], published())  # over other datasets than the published one
    assert part is not None
    assert "published, base" not in part.headers

    variants = {"imagenetv2": 61.0, "imagenet_sketch": 50.0, "imagenet_a": 40.0, "imagenet_r": 70.0}
    shown = published()
    table = source_table([run("ImageNet", 71.0, **variants)], DG, "ImageNet", list(variants), shown)
    row = dict(zip(table.headers, row_of(table, "TaskRes (ViT-B/16)"), strict=True)) if table else {}
    assert row["difference, ImageNet"] == "+1.00"  # from the table of this protocol, not of few-shot
    assert row["published, imagenetv2"] == "60.00 [A paper]"
    assert (row["average"], row["difference, average"]) == ("55.25", "+0.25")
    assert shown.notes()[1].startswith("[A paper] of a test")
    variants.pop("imagenet_r")
    table = source_table([run("ImageNet", 71.0, **variants)], DG, "ImageNet", list(variants), published())
    assert table is not None
    assert "published, imagenet_a" in table.headers
    assert "published, average" not in table.headers


@pytest.mark.slow
def test_all_protocols_on_the_embedded_datasets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("--datasets", "gadgets", "shapesnetv2", "--shots", "1")
    assert start(tmp_path, "all", "--trainers", "ZeroshotCLIP", "TaskRes", *names, *TINY) == 0
    capsys.readouterr()
    assert run_tool(report.main, [str(tmp_path), "--published"]) == 0
    shown = capsys.readouterr().out
    assert "nothing published for these runs" in shown
    for title in ("From base to new classes", "Cross-dataset from ShapesNet", "Domain-generalization from ShapesNet"):
        assert title in shown
    assert r"\caption{Cross-dataset from ShapesNet" in (tmp_path / "report.tex").read_text()
    with (tmp_path / "evaluations.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    tested = {(row["trained on"], row["tested on"]) for row in rows if row["method"] == "TaskRes"}
    assert tested == {
        *(("Gadgets", key) for key in ("own", "new", "all")),
        *(("ShapesNet", key) for key in ("own", "gadgets", "shapesnetv2")),
    }
    zero_shot = {row["tested on"]: float(row["mean"]) for row in rows if row["method"] == "ZeroshotCLIP"}
    base = next(float(row["mean"]) for row in rows if row["classes"] == "base" and row["tested on"] == "own")
    assert 0 < zero_shot["all"] <= max(base, zero_shot["new"])  # with more classes to confuse


def test_the_table_of_a_plan_counts_runs_and_evaluations() -> None:
    table = plan_table(planned(FEW_SHOT, CROSS, trainers=("TaskRes", "ZeroshotCLIP")))
    counts = {tuple(row[:2]): tuple(row[3:]) for row in table.rows}
    runs = planned(FEW_SHOT, CROSS, trainers=("TaskRes", "ZeroshotCLIP")).evaluations
    for (group, trainer), (number, evaluations) in counts.items():
        evaluations_of_row = [keys for run, keys in runs.items() if (run.group, run.trainer) == (group, trainer)]
        assert (int(number), int(evaluations)) == (len(evaluations_of_row), sum(map(len, evaluations_of_row)))
    assert sum(int(number) for number, _ in counts.values()) == len(runs)
