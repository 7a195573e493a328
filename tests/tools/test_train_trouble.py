"""Runs in trouble: two runs in one folder, kills while writing, a full disk, nothing to evaluate."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dassl_lite.engine.commands.cli import free_folder, run_tool
from dassl_lite.engine.files import run_folder, run_lock
from dassl_lite.engine.files.run_folder import replacing
from dassl_lite.engine.files.run_lock import only_run_in
from dassl_lite.tools import train
from dassl_lite.trainers.taskres import TaskRes
from dassl_lite.utils import files

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
FEW = ("OPTIM.MAX_EPOCH", "4", "DATASET.FEATURES.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0")
EVERY_EPOCH = ("TRAIN.CHECKPOINT_FREQ", "1")


def gadgets(output: Path, *flags: str, trainer: str = "TaskRes", options: tuple[str, ...] = ()) -> int:
    """Train on the smallest drawn dataset."""
    given = ("--trainer", trainer, "--dataset-config-file", "gadgets", "--shots", "2", "--output-dir", str(output))
    return run_tool(train.main, [*given, *flags, *FEW, *options])


def in_child(work: Callable[[], object]) -> Any:
    """Start ``work`` in a forked process."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def error_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Warning:") and line.strip()]


# ---- two runs at once ----


@pytest.mark.slow
@forks
def test_a_second_run_in_a_folder_is_refused_while_the_first_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = multiprocessing.get_context("fork")
    taken, done = context.Event(), context.Event()

    def hold() -> None:
        with only_run_in(tmp_path):
            taken.set()
            done.wait(60)

    process = in_child(hold)
    assert taken.wait(60)
    (tmp_path / "prompt_learner").mkdir()
    (tmp_path / "prompt_learner" / "model.pth.tar-1").write_text("of the first")
    for flags in (["--resume"], ["--overwrite"]):
        assert gadgets(tmp_path, *flags) == 2
        (error,) = error_lines(capsys)
        assert f"output folder {tmp_path} is in use by process {process.pid}" in error
    assert (tmp_path / "prompt_learner" / "model.pth.tar-1").read_text() == "of the first"
    assert free_folder(tmp_path).name == f"{tmp_path.name}-2"
    done.set()
    process.join(60)
    assert not (tmp_path / run_lock.NAME).exists()
    assert gadgets(tmp_path, "--overwrite") == 0
    assert not (tmp_path / run_lock.NAME).exists()


@pytest.mark.slow
@forks
def test_the_folder_of_a_killed_run_is_unlocked_even_if_its_child_lives(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    taken, done = context.Event(), context.Event()
    parent = os.fork()
    if parent == 0:
        with only_run_in(tmp_path):
            if os.fork() == 0:  # like a worker of a data loader
                taken.set()
                done.wait(60)
                os._exit(0)
            signal.pause()  # until it is killed
    try:
        assert taken.wait(60)
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        assert (tmp_path / run_lock.NAME).exists()
        with only_run_in(tmp_path):
            assert (tmp_path / run_lock.NAME).read_text() == str(os.getpid())
        assert not (tmp_path / run_lock.NAME).exists()
    finally:
        done.set()


def test_a_lock_on_a_removed_file_is_acquired_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, opened = os.open, []

    def open_late(path: Any, *args: Any, **options: Any) -> int:
        descriptor = real(path, *args, **options)
        opened.append(path)
        if len(opened) == 1:
            os.unlink(path)  # the holder exited after we opened the file and before we locked it
        return descriptor

    monkeypatch.setattr(run_lock.os, "open", open_late)
    with only_run_in(tmp_path):
        assert len(opened) == 2
        assert (tmp_path / run_lock.NAME).read_text() == str(os.getpid())


# ---- replacing a run ----

FILES = ("results.json", "log.txt", "prompt_learner/model.pth.tar-4")


@pytest.fixture
def old_run(tmp_path: Path) -> dict[Path, bytes]:
    """Write small stand-ins for the files of a run to the folder ``run``."""
    (tmp_path / "run" / "prompt_learner").mkdir(parents=True)
    files = {tmp_path / "run" / name: f"old {name}".encode() for name in FILES}
    for path, content in files.items():
        path.write_bytes(content)
    return files


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (("--data", "nosuch.npz"), ()),
        (("--data", "nosuch"), ()),
        (("--backbone", "nosuch.pt"), ()),
        (("--dataset-config-file", "caltech101", "--root", "nosuch"), ()),
        ((), ("OPTIM.LR", "-1")),
        ((), ("OPTIM.LR", "1e38", "OPTIM.NAME", "sgd", "OPTIM.WEIGHT_DECAY", "1e30")),  # NaN in the first epoch
        (("--resume",), ()),  # contradicts --overwrite
    ],
)
def test_a_failing_replacement_leaves_the_old_run_intact(
    tmp_path: Path, old_run: dict[Path, bytes], flags: tuple[str, ...], options: tuple[str, ...]
) -> None:
    assert gadgets(tmp_path / "run", "--overwrite", *flags, options=options) == 2
    assert files_in(tmp_path / "run") == old_run


@pytest.mark.slow
def test_unreadable_training_images_leave_the_old_run_intact(tmp_path: Path, old_run: dict[Path, bytes]) -> None:
    for part, count in (("train", 2), ("test", 1)):
        for name in "ab":
            (tmp_path / "own" / part / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32)).save(tmp_path / "own" / part / name / f"{number}.png")
    (tmp_path / "own" / "train" / "a" / "0.png").write_bytes(b"no image")
    arguments = ("--trainer", "TaskRes", "--data", str(tmp_path / "own"), "--output-dir", str(tmp_path / "run"))
    assert run_tool(train.main, [*arguments, "--overwrite", *FEW]) == 2
    assert files_in(tmp_path / "run") == old_run


@pytest.mark.slow
@forks
@pytest.mark.parametrize("moment", ["building", "training"])
def test_an_old_run_survives_if_its_replacement_is_killed(
    tmp_path: Path, old_run: dict[Path, bytes], capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    def work() -> None:
        hook = "build_model" if moment == "building" else "before_epoch"
        setattr(TaskRes, hook, lambda self: os.kill(os.getpid(), signal.SIGKILL))
        gadgets(tmp_path / "run", "--overwrite")

    process = in_child(work)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    if moment == "building":
        assert old_run.items() <= files_in(tmp_path / "run").items()
    capsys.readouterr()
    assert gadgets(tmp_path / "run") == 2
    assert "contains another run" in capsys.readouterr().err
    assert gadgets(tmp_path / "run", "--overwrite", options=("MODEL.BACKBONE.NAME", "nosuch.pt")) == 2
    if moment == "training":
        with only_run_in(tmp_path / "run"), pytest.raises(KeyError), replacing(tmp_path / "run", overwrite=True):
            raise KeyError
    assert files_in(tmp_path / "run") == old_run
    assert gadgets(tmp_path / "run", "--overwrite") == 0
    assert not old_run.items() & files_in(tmp_path / "run").items()
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    assert (tmp_path / "run" / "log.txt").read_text().startswith("Loading trainer: TaskRes")


@pytest.mark.parametrize("moved", range(len(FILES)))
def test_a_run_killed_while_setting_another_aside_loses_nothing(
    tmp_path: Path, old_run: dict[Path, bytes], monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    real, calls = os.rename, []

    def rename(*paths: Any) -> None:
        calls.append(paths)
        if len(calls) == moved + 1:
            raise SystemExit("killed")
        real(*paths)

    monkeypatch.setattr(run_folder.os, "rename", rename)
    with pytest.raises(SystemExit), replacing(tmp_path / "run", overwrite=True):
        pass
    with replacing(tmp_path / "run", overwrite=False):
        pass
    assert files_in(tmp_path / "run") == old_run


# ---- killed while writing ----


def in_a_new_cache(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Use a new cache that has the drawn images but no image or text features."""
    (folder / "cache").mkdir()
    (folder / "cache" / "datasets").symlink_to(Path(os.environ["DASSL_LITE_CACHE"]) / "datasets")
    patch.setenv("DASSL_LITE_CACHE", str(folder / "cache"))


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of four epochs."""
    folder = tmp_path_factory.mktemp("never_killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASSL_LITE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))  # the cache that tests use
        assert gadgets(folder / "drawn", "--no-train") == 0
        in_a_new_cache(folder, patch)
        assert gadgets(folder / "run", options=EVERY_EPOCH) == 0
    return folder / "run"


@pytest.mark.slow
@forks
@pytest.mark.parametrize("moment", ["before", "half", "unsynced"])
@pytest.mark.parametrize("name", ["model.pth.tar-2", "checkpoint", "results.json", ".safetensors"])
def test_a_run_killed_while_writing_a_file_resumes_to_the_same_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, never_killed: Path, name: str, moment: str
) -> None:
    in_a_new_cache(tmp_path, monkeypatch)
    real = files.os.fsync

    def work() -> None:
        def fsync(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.name.startswith(".") and f"{name}." in path.name:
                if moment == "half":
                    os.truncate(path, path.stat().st_size // 2)
                elif moment == "before":
                    os.truncate(path, 0)
                os.kill(os.getpid(), signal.SIGKILL)
            real(descriptor)

        files.os.fsync = fsync
        gadgets(tmp_path / "run", options=EVERY_EPOCH)

    process = in_child(work)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.rglob(".*.tmp")), "the run was killed before it wrote anything"
    assert gadgets(tmp_path / "run", "--resume", options=EVERY_EPOCH) == 0
    assert list((tmp_path / "run").rglob(".*.tmp")) == []
    runs = tmp_path / "run", never_killed
    results = [json.loads((run / "results.json").read_text()) for run in runs]
    assert results[0]["metrics"] == results[1]["metrics"]
    heads = [torch.load(run / "prompt_learner" / "model.pth.tar-4") for run in runs]
    assert all(torch.equal(value, heads[1]["state_dict"][key]) for key, value in heads[0]["state_dict"].items())


# ---- a full disk ----


@pytest.fixture
def small_files() -> Any:
    """``small_files(n)``: limit this process to files of n bytes, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda length: resource.setrlimit(resource.RLIMIT_FSIZE, (length, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint_and_prints_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, small_files: Any
) -> None:
    assert gadgets(tmp_path / "whole", options=EVERY_EPOCH) == 0
    capsys.readouterr()
    real, limit = train.run.build_trainer, 20_000

    def build(cfg: Any) -> Any:
        trainer = real(cfg)

        def before_epoch(original: Any = trainer.before_epoch) -> None:
            original()
            if trainer.epoch == 2:
                small_files(limit)

        trainer.before_epoch = before_epoch
        return trainer

    monkeypatch.setattr(train.run, "build_trainer", build)
    assert gadgets(tmp_path / "run", options=EVERY_EPOCH) == 2
    errors = [line for line in error_lines(capsys) if line.startswith("Error")]
    assert len(errors) == 1
    assert f"cannot write a checkpoint to {tmp_path / 'run' / 'prompt_learner'}" in errors[0]
    assert "resume with --resume" in errors[0]
    small_files(-1)
    assert sorted(path.name for path in (tmp_path / "run" / "prompt_learner").iterdir()) == [
        "checkpoint",
        "model.pth.tar-1",
        "model.pth.tar-2",
    ]
    monkeypatch.setattr(train.run, "build_trainer", real)
    assert gadgets(tmp_path / "run", "--resume", options=EVERY_EPOCH) == 0
    results = [json.loads((tmp_path / run / "results.json").read_text()) for run in ("run", "whole")]
    assert results[0]["metrics"] == results[1]["metrics"]


@pytest.mark.slow
def test_a_full_disk_while_writing_results_prints_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, small_files: Any
) -> None:
    real = train.run.write_results
    with monkeypatch.context() as patch:
        patch.setattr(train.run, "write_results", lambda *a, **k: (small_files(100), real(*a, **k)))
        assert gadgets(tmp_path) == 2
    errors = error_lines(capsys)
    small_files(-1)
    assert any("File too large" in line and "Free some space and run again" in line for line in errors)
    assert not (tmp_path / "results.json").exists()
    assert gadgets(tmp_path, "--resume") == 0


# ---- nothing to evaluate ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "options"),
    [("TipAdapter", ()), ("LinearProbe", ("TRAINER.LinearProbe.FIT", "logistic_regression")), ("TaskRes", ())],
)
def test_evaluating_learned_parameters_needs_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trainer: str, options: tuple[str, ...]
) -> None:
    assert gadgets(tmp_path / "eval", "--eval-only", trainer=trainer, options=options) == 2
    (error,) = error_lines(capsys)
    assert error == "Error: --eval-only needs --model-dir, the folder of the run to evaluate"
    assert gadgets(tmp_path / "run", trainer=trainer, options=options) == 0
    evaluate = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    assert gadgets(tmp_path / "eval", *evaluate, trainer=trainer, options=options) == 0
    accuracy = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]["test"]["accuracy"]
    assert f"* accuracy: {accuracy:.1f}%" in (tmp_path / "eval" / "log.txt").read_text()


@pytest.mark.slow
def test_zero_shot_needs_no_run_to_evaluate(tmp_path: Path) -> None:
    assert gadgets(tmp_path, "--eval-only", trainer="ZeroshotCLIP") == 0
    assert "* accuracy: 10.8%" in (tmp_path / "log.txt").read_text()
