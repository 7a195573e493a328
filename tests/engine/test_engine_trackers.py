"""LOG.TRACKERS: the same numbers, tables and files go to each tracker named; a run that names none imports none."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toy import make_images, toy_config

from dassl_lite.engine.commands import run
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.contract import base
from dassl_lite.engine.contract.trackers import (
    FAILED,
    FINISHED,
    IDS,
    STOPPED,
    TRACKER_REGISTRY,
    Outcome,
    TrackedRun,
    Tracker,
)
from dassl_lite.utils import UserError


class Kept(Tracker):
    """A tracker of a third party's, which keeps what it is given."""

    runs: list[TrackedRun]
    values: list[tuple[str, float, int | None]]
    outcomes: list[Outcome]

    def start(self, run: TrackedRun) -> str:
        self.runs.append(run)
        return run.id or f"run-{len(self.runs)}"

    def scalar(self, tag: str, value: float, step: int | None) -> None:
        self.values.append((tag, value, step))

    def finish(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> type[Kept]:
    """Registered as ``kept``, for one test."""
    monkeypatch.setattr(TRACKER_REGISTRY, "_table", dict(TRACKER_REGISTRY._table))
    kind = type("Kept", (Kept,), {"runs": [], "values": [], "outcomes": []})
    TRACKER_REGISTRY.register(kind, name="kept")
    return kind


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("data") / "images")


def tracked(images: Path, output: Path, *trackers: str, resume: str = "", epochs: int = 2) -> Any:
    options = ["LOG.TRACKERS", str(list(trackers)), "OPTIM.MAX_EPOCH", str(epochs), "VERBOSE", "False"]
    return toy_config(images, output, *options, *(["RESUME", resume] if resume else []))


@pytest.mark.slow
def test_a_third_partys_tracker_gets_config_scalars_tables_and_files(
    kept: type[Kept], images: Path, tmp_path: Path
) -> None:
    run.train(tracked(images, tmp_path, "kept"))
    (only,) = kept.runs
    assert (only.name, only.id) == ("ToyTrainer ImageFolder all images seed 1", "")
    assert only.config["OPTIM"]["MAX_EPOCH"] == 2
    tags = {tag for tag, _, _ in kept.values}
    assert {"train/loss", "train/lr", "test/accuracy"} <= tags
    assert [step for tag, _, step in kept.values if tag == "train/loss"] == list(range(8))
    results = json.loads((tmp_path / "results.json").read_text())
    (outcome,) = kept.outcomes
    assert outcome.status == FINISHED
    assert outcome.summary["test/accuracy"] == results["metrics"]["test"]["accuracy"]
    headers, rows = outcome.tables["per_class"]
    assert [dict(zip(headers, row, strict=True)) for row in rows] == results["per_class"]
    assert [path.name for path in outcome.files] == ["results.json", "log.txt"]
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.slow
def test_a_page_in_the_runs_folder_is_among_the_files(kept: type[Kept], images: Path, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>")
    run.train(tracked(images, tmp_path, "kept"))
    assert tmp_path / "page.html" in kept.outcomes[0].files


@pytest.mark.slow
@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, STOPPED), (RuntimeError, FAILED)])
def test_a_run_that_ends_early_is_continued_under_its_id(
    kept: type[Kept], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, status: str
) -> None:
    def broken(self: Any, epoch: int, *args: Any, **more: Any) -> None:
        raise error("now")

    with monkeypatch.context() as patched:
        patched.setattr(base.TrainerBase, "save_model", broken)
        with pytest.raises(error):
            run.train(tracked(images, tmp_path, "kept"))
    assert [outcome.status for outcome in kept.outcomes] == [status]
    assert json.loads((tmp_path / IDS).read_text()) == {"kept": "run-1"}
    run.train(tracked(images, tmp_path, "kept", resume=str(tmp_path)))
    assert [one.id for one in kept.runs] == ["", "run-1"]
    with run.session(tracked(images, tmp_path, "kept"), overwrite=True) as trainer:
        trainer.train()
    assert [one.id for one in kept.runs] == ["", "run-1", ""]  # --overwrite starts a new one


@pytest.mark.slow
def test_an_outcome_is_empty_unless_filled() -> None:
    outcome = Outcome("finished")
    assert (outcome.summary, outcome.tables, outcome.files) == ({}, {}, ())


def test_other_trackers_do_not_keep_a_run_from_being_resumed(kept: type[Kept], images: Path, tmp_path: Path) -> None:
    run.train(tracked(images, tmp_path, "tensorboard"))
    (tmp_path / "results.json").unlink()
    run.train(tracked(images, tmp_path, "kept"))
    assert len(kept.outcomes) == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["scalar", "finish"])
def test_a_run_continues_with_one_warning_when_a_tracker_fails(
    kept: type[Kept], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, method: str
) -> None:
    def full(self: Any, *args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, method, full)
    run.train(tracked(images, tmp_path, "kept"))
    assert (tmp_path / "results.json").is_file()
    told = [line for line in capsys.readouterr().err.splitlines() if "kept" in line]
    assert len(told) == 1
    assert "No space left on device" in told[0]


@pytest.mark.slow
def test_a_run_continues_with_one_warning_when_the_disk_of_tensorboard_is_full(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from dassl_lite.engine.contract.scalar_writer import ScalarWriter

    def full(self: Any, *args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ScalarWriter, "add_scalar", full)
    run.train(tracked(images, tmp_path, "tensorboard"))
    assert (tmp_path / "results.json").is_file()
    assert capsys.readouterr().err.count("tensorboard no longer tracks this run (No space left on device)") == 1


def test_a_tracker_that_cannot_start_ends_the_run_before_training(
    kept: type[Kept], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(self: Any, run: TrackedRun) -> str:
        raise ConnectionError("nobody\nthere")

    monkeypatch.setattr(kept, "start", refuses)
    with pytest.raises(UserError, match=r"^LOG.TRACKERS: kept cannot track this run \(ConnectionError: nobody") as told:
        run.train(tracked(images, tmp_path, "kept"))
    assert "\n" not in str(told.value)
    assert not (tmp_path / "toy").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_extra_is_reported_before_anything_is_built(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(run, "build", lambda *args: pytest.fail("the trainer is built"))
    cfg = tracked(images, tmp_path, name)
    assert run_tool(lambda argv: str(run.train(cfg)), []) == 2
    told = capsys.readouterr().err
    assert told == f'Error: LOG.TRACKERS {name} needs {name}: pip install "dassl-lite[{name}]"\n'


def test_an_unknown_tracker_is_reported_with_the_nearest_name(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mlflow"):
        run.train(tracked(images, tmp_path, "mlfow"))


@pytest.mark.slow
def test_a_run_without_them_imports_neither_library(images: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from toy import toy_config; from dassl_lite.engine.commands import run\n"
        "run.train(toy_config(Path(sys.argv[2]), Path(sys.argv[3]), 'VERBOSE', 'False'))\n"
        "print([name for name in ('mlflow', 'wandb') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent), str(images), str(tmp_path / "run")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == [
        *("log.txt", "results.json", "tensorboard", "toy"),
    ]


@pytest.mark.slow
def test_mlflow_and_wandb_take_a_run_and_its_resumption_without_a_network(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = socket.socket.connect

    def local(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "localhost", "::1"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    folder = tmp_path / "run"
    run.train(tracked(images, folder, "mlflow", "wandb"))
    ids = json.loads((folder / IDS).read_text())
    (folder / "results.json").unlink()
    run.train(tracked(images, folder, "mlflow", "wandb", epochs=2))  # the test alone is left

    from mlflow.tracking import MlflowClient

    client = MlflowClient("sqlite:///mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("dassl-lite").experiment_id])
    assert found.info.run_id == ids["mlflow"]
    assert found.info.status == "FINISHED"
    assert found.data.params["OPTIM.MAX_EPOCH"] == "2"
    results = json.loads((folder / "results.json").read_text())
    assert found.data.metrics["test/accuracy"] == results["metrics"]["test"]["accuracy"]
    assert [metric.step for metric in client.get_metric_history(ids["mlflow"], "train/loss")] == list(range(8))
    artifacts = Path("mlruns", ids["mlflow"], "artifacts")
    kept = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*") if path.is_file()}
    tables = {f"tables/{name}.json" for name in ("metrics", "per_class", "history")}
    assert kept == {"results.json", "log.txt", *tables}
    written = sorted(path.name for path in (folder / "wandb").glob("offline-run-*/*.wandb"))
    assert written == [f"run-{ids['wandb']}.wandb"] * 2  # both under one id, for `wandb sync --append`
    assert all(b"per_class" in path.read_bytes() for path in (folder / "wandb").glob("offline-run-*/*.wandb"))
