"""Runs that receive a signal at any moment, and runs whose output nobody reads."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dassl_lite.data.feature_files import FeatureFile, write_feature_file
from dassl_lite.data.feature_files.file import FeaturePart
from dassl_lite.engine.commands import sweep as sweeps
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.files.run_lock import FolderInUseError, only_run_in
from dassl_lite.engine.methods.feature_trainer import FeatureTrainer
from dassl_lite.tools import sweep, train
from dassl_lite.trainers.taskres import TaskRes
from dassl_lite.utils.streams import LenientStream, lenient_streams

REPOSITORY = Path(__file__).resolve().parents[2]
FEW = ("OPTIM.MAX_EPOCH", "4", "DATASET.FEATURES.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0")
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
EACH = [signal.SIGTERM, *(pytest.param(sent, marks=pytest.mark.slow) for sent in (signal.SIGINT, signal.SIGHUP))]


def gadgets(output: Path, *flags: str, options: tuple[str, ...] = ()) -> int:
    given = ("--trainer", "TaskRes", "--dataset-config-file", "gadgets", "--shots", "2", "--output-dir", str(output))
    return run_tool(train.main, [*given, *flags, *FEW, *options])


@pytest.fixture(autouse=True)
def default_handlers() -> Iterator[None]:
    """Restore default handlers, since pytest may run in the background, where SIGINT is ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """``signal_at(kind, method, sent)``: signal this process at the first call of a method, and count the calls."""

    def patch(kind: type, method: str, sent: int, before: Callable[[Any], bool] = lambda self: True) -> list[int]:
        real, calls = getattr(kind, method), []

        def call(self: Any, *given: Any, **named: Any) -> Any:
            if before(self):
                calls.append(1)
                if len(calls) == 1:
                    os.kill(os.getpid(), sent)
                    time.sleep(0)  # Python runs the handler between two instructions
            return real(self, *given, **named)

        monkeypatch.setattr(kind, method, call)
        return calls

    return patch


# ---- asked to stop ----


@pytest.mark.slow
@pytest.mark.parametrize("sent", EACH)
def test_a_signal_during_an_epoch_stops_the_run_after_that_epoch_with_a_checkpoint(
    tmp_path: Path, signal_at: Any, capsys: pytest.CaptureFixture[str], sent: int
) -> None:
    signal_at(TaskRes, "forward_backward", sent)
    assert gadgets(tmp_path) == 130
    assert "Interrupted: stopped after epoch 1; resume with --resume" in capsys.readouterr().err
    assert (tmp_path / "prompt_learner" / "model.pth.tar-1").exists()
    assert gadgets(tmp_path, "--resume") == 0


@pytest.mark.slow
def test_a_run_under_nohup_survives_closing_the_terminal(tmp_path: Path, signal_at: Any) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal_at(TaskRes, "forward_backward", signal.SIGHUP)
    assert gadgets(tmp_path) == 0
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("sent", EACH)
@pytest.mark.parametrize("method", ["build_data_loader", "build_model"])
def test_a_signal_while_a_run_is_built_stops_it_with_one_line(
    tmp_path: Path, signal_at: Any, capsys: pytest.CaptureFixture[str], sent: int, method: str
) -> None:
    signal_at(TaskRes, method, sent)
    assert gadgets(tmp_path) == 130
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == "Interrupted: stopped" + ("" if sent == signal.SIGINT else f" by {signal.Signals(sent).name}")
    assert not [path for path in tmp_path.iterdir() if path.name != "log.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("sent", EACH)
def test_a_signal_during_extraction_in_an_epoch_stops_the_run_at_once(
    tmp_path: Path, signal_at: Any, capsys: pytest.CaptureFixture[str], sent: int
) -> None:
    calls = signal_at(FeatureTrainer, "encode_image", sent, lambda self: "time_start" in vars(self))
    small = ("DATASET.FEATURES.BATCH_SIZE", "4", "DATASET.FEATURES.DIR", str(tmp_path / "cache"))  # six batches
    assert gadgets(tmp_path / "run", options=small) == 130
    assert len(calls) <= 2
    assert "resume with --resume" in capsys.readouterr().err
    assert gadgets(tmp_path / "run", "--resume", options=small) == 0


@pytest.mark.slow
@pytest.mark.parametrize("sent", EACH)
def test_a_signal_during_the_final_evaluation_stops_the_run_at_once(tmp_path: Path, signal_at: Any, sent: int) -> None:
    signal_at(TaskRes, "evaluate_split", sent)
    assert gadgets(tmp_path) == 130
    assert (tmp_path / "prompt_learner" / "model.pth.tar-4").exists()
    assert not (tmp_path / "results.json").exists()
    assert gadgets(tmp_path, "--resume") == 0


STOPPED_WHILE_LOADING = """
import os, runpy, signal, sys

class Stops:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            os.kill(os.getpid(), {sent})

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Stops())
sys.argv = {argv}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("tool", ["train", "eval", "sweep", "benchmark", "extract", "report", "bench", "pretrain_demo"])
@pytest.mark.slow
@pytest.mark.parametrize("sent", EACH)
def test_a_signal_while_modules_load_stops_a_tool_with_one_line(tool: str, sent: int) -> None:
    argv = [str(REPOSITORY / "tools" / f"{tool}.py"), "--list"]
    script = STOPPED_WHILE_LOADING.format(sent=int(sent), argv=argv)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    said = "stopped" if sent == signal.SIGINT else f"stopped by {signal.Signals(sent).name}"
    assert (done.returncode, done.stderr.strip(), done.stdout) == (130, f"Interrupted: {said}", "")


def test_a_third_party_program_keeps_its_signal_handlers() -> None:
    script = "import signal; before = signal.getsignal(15); import dassl_lite; print(before == signal.getsignal(15))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "True"


# ---- two sweeps in one folder, and killed sweeps ----


def start_sweep(output: Path, *more: str) -> int:
    arguments = ["--trainers", "TaskRes", "--datasets", "gadgets", "--shots", "1", "2", "--seeds", "1"]
    return run_tool(sweep.main, [*arguments, "--output-dir", str(output), *more, *FEW])


@pytest.mark.slow
def test_a_sweep_waits_for_runs_of_another_and_then_skips_or_does_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gadgets" / "TaskRes" / "1shots-seed1"
    waited: list[float] = []
    refused = iter([True, True, False])

    def only_run(path: Path) -> Any:
        if Path(path) == folder and next(refused, False):
            raise FolderInUseError("in use by process 7")
        return only_run_in(path)

    monkeypatch.setattr(sweeps.run, "only_run_in", only_run)
    monkeypatch.setattr(sweeps.time, "sleep", waited.append)
    assert start_sweep(tmp_path, "--jobs", "1") == 0
    shown = capsys.readouterr()
    assert shown.out.count("Waiting for 1 run that another process is doing") == 1
    assert "2 runs in" in shown.out
    assert "0 failed" in shown.out
    assert len([seconds for seconds in waited if seconds]) == 2
    assert len(list(tmp_path.rglob("results.json"))) == 2


@pytest.mark.slow
def test_a_run_that_another_process_finished_meanwhile_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start_sweep(tmp_path, "--jobs", "1") == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(sweeps, "is_finished", lambda folder, cfg: False)  # it was unfinished when we checked
    assert start_sweep(tmp_path, "--jobs", "1") == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature file, so that processes need not import the image libraries."""
    rng = np.random.default_rng(0)
    part = FeaturePart(rng.standard_normal((1, 16, 8), dtype=np.float32), np.arange(16) % 2)
    text = rng.standard_normal((1, 2, 8), dtype=np.float32)
    path = tmp_path_factory.mktemp("features") / "two.npz"
    write_feature_file(FeatureFile({"train": part, "test": part}, ("a", "b"), text), path)
    return path


def processes_of(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(state[2]) == group and state[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_stopping_a_sweep_stops_its_processes(tmp_path: Path, features: Path, sent: int) -> None:
    command = [sys.executable, str(REPOSITORY / "tools" / "sweep.py"), "--trainers", "TaskRes", "--data", str(features)]
    command += ["--shots", "1", "2", "4", "--seeds", "1", "2", "--jobs", "2", "--output-dir", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "OPTIM.MAX_EPOCH", "20000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not list(tmp_path.rglob("tensorboard")) and process.poll() is None:
            time.sleep(0.1)
        os.kill(process.pid, sent)
        deadline = time.monotonic() + 120
        while processes_of(process.pid) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert processes_of(process.pid) == []
        error = process.stderr.read() if process.stderr else ""
        assert "Traceback" not in error
        assert process.wait() == (130 if sent == signal.SIGTERM else -signal.SIGKILL)
    finally:
        for left in processes_of(process.pid):
            os.kill(left, signal.SIGKILL)


# ---- closed output ----


def shell(command: str, features: Path, output: Path) -> subprocess.CompletedProcess[str]:
    run = f"{sys.executable} {REPOSITORY}/tools/train.py --trainer TaskRes --data {features} --shots 2"
    run += f" --output-dir {output} OPTIM.MAX_EPOCH 4"
    text = f"set -o pipefail; {command.format(run=run)}"
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("{run} 2>&1 | head -1", 141),
        ("{run} 2>&-", 0),
        ("{run} <&- >&- 2>&-", 141),
        ("{run} 2> >(true)", 0),
    ],
)
def test_a_run_with_a_closed_output_pipe_finishes_silently(
    tmp_path: Path, features: Path, command: str, code: int
) -> None:
    done = shell(command, features, tmp_path / "run")
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "rror" not in done.stderr.replace("error:", "")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert "Finish training" in (tmp_path / "run" / "log.txt").read_text()


class Broken(io.StringIO):
    """A stream whose writes raise the given error."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(32, ""), OSError(5, "terminal gone"), ValueError("closed file")])
def test_a_stream_that_cannot_be_written_to_discards_output(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(error))
    monkeypatch.setattr(sys, "stderr", None)
    with lenient_streams() as out:
        print("dropped")
        print("dropped", file=sys.stderr)
        assert out.lost
    assert isinstance(sys.stdout, Broken)
    kept = io.StringIO()
    stream = LenientStream(kept)
    stream.writelines(["a", "b"])
    assert (kept.getvalue(), stream.lost) == ("ab", False)


@pytest.mark.slow
def test_tools_also_run_outside_the_main_thread(tmp_path: Path) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(gadgets(tmp_path)))
    thread.start()
    thread.join()
    assert codes == [0]
