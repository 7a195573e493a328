"""A sweep on Ray equals a local one, even if a node dies; user errors print one line."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from dassl_lite.engine.commands import on_ray
from dassl_lite.engine.commands.arguments import DatasetChoice
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.on_ray import check_versions, copy_code, versions
from dassl_lite.engine.commands.sweep import (
    DONE,
    Settings,
    _run_on_node,
    extract_features,
    tasks,
    unpack_run,
)
from dassl_lite.engine.files.results import read_results
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.tools import report, sweep
from dassl_lite.utils import UserError

FEW = ("OPTIM.MAX_EPOCH", "2", "DATASET.FEATURES.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0")

# A method that logs the start of its epochs. It blocks forever on the doomed node; elsewhere, from its second epoch on,
# it blocks as long as a file exists.
DOOMED = """
import time
from pathlib import Path

import helper_of_the_plugin
from dassl_lite.engine import TRAINER_REGISTRY
from dassl_lite.trainers.taskres import TaskRes

NOTES = Path({notes!r})

@TRAINER_REGISTRY.register()
class Doomed(TaskRes):
    config_node = "TaskRes"

    def before_epoch(self):
        super().before_epoch()
        import ray
        if ray.is_initialized():
            node = ray.get_runtime_context().get_node_id()
            with open(NOTES / "begun", "a") as file:
                file.write(f"{{node}} {{self.cfg.SEED}} {{self.epoch}}\\n")
            while node == (NOTES / "doomed").read_text() or (self.epoch and (NOTES / "held").exists()):
                time.sleep(0.2)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A local Ray cluster of two nodes with one core each."""
    pytest.importorskip("ray", reason="Ray is not installed")
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # socket paths are limited in length
    (Path(folder) / "ray").mkdir()
    with mock.patch.dict(os.environ, {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder}):
        yield from _cluster(folder)


def _cluster(folder: str) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    found = Cluster()
    try:
        _added(found, node)
        found.second = _added(found, {"num_cpus": 1, "object_store_memory": 100 * 2**20})
        yield found
    finally:
        found.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _added(cluster: Any, node: dict[str, Any]) -> Any:
    """Add a node, retrying because Ray's timeout of half a minute is too short on a busy machine."""
    for _ in range(3):
        try:
            return cluster.add_node(**node)
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    pytest.skip("the machine is too busy for Ray to start in time")


def line(output: Path, plugin: Path, *flags: str) -> list[str]:
    words = ["--trainers", "ZeroshotCLIP", "Doomed", "--plugin", str(plugin), "--datasets", "gadgets", "--shots", "1"]
    return [*words, "--seeds", "1", "2", "3", "--output-dir", str(output), *flags, *FEW]


def start(output: Path, plugin: Path, *flags: str) -> int:
    return run_tool(sweep.main, line(output, plugin, *flags))


def plugin_in(folder: Path, doomed: str = "") -> Path:
    """Write the plugin file of the method, which logs to ``folder``."""
    (folder / "plugin").mkdir()
    (folder / "plugin" / "doomed.py").write_text(DOOMED.format(notes=str(folder)))
    (folder / "plugin" / "helper_of_the_plugin.py").write_text("")
    (folder / "doomed").write_text(doomed)
    return folder / "plugin" / "doomed.py"


def epochs_in(folder: Path) -> list[tuple[str, str]]:
    """(seed, epoch) of each epoch started on Ray, in order."""
    notes = folder / "begun"
    rows = notes.read_text().splitlines() if notes.exists() else []
    return [(seed, epoch) for _, seed, epoch in (row.split() for row in rows)]


def wait_for(ready: Callable[[], bool]) -> None:
    until = time.monotonic() + 900
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.1)


def metrics_in(folder: Path) -> dict[str, Any]:
    """The metrics of each run below a folder."""
    return {
        str(path.parent.relative_to(folder)): (read_results(path.parent) or {})["metrics"]
        for path in sorted(folder.rglob("results.json"))
    }


@pytest.mark.slow
def test_the_same_command_resumes_a_sweep_whose_driver_was_killed_and_then_interrupted(cluster, tmp_path, capsys):
    plugin, output, held = plugin_in(tmp_path), tmp_path / "ray", tmp_path / "held"
    often = ("TRAIN.CHECKPOINT_FREQ", "1")
    words = [*line(output, plugin, "--ray", cluster.address), *often]
    held.touch()
    driver = subprocess.Popen([sys.executable, "-m", "dassl_lite.tools.sweep", *words], start_new_session=True)
    wait_for(lambda: "1" in {epoch for _, epoch in epochs_in(tmp_path)})  # a run has saved its first epoch
    driver.kill()
    driver.wait()
    before = len(epochs_in(tmp_path))
    saved = [seed for seed, epoch in epochs_in(tmp_path) if epoch == "1"]

    def interrupt() -> None:
        wait_for(lambda: "1" in {epoch for _, epoch in epochs_in(tmp_path)[before:]})
        os.kill(os.getpid(), signal.SIGINT)
        held.unlink()

    threading.Thread(target=interrupt, daemon=True).start()
    assert run_tool(sweep.main, words) == 130
    assert "Interrupted" in capsys.readouterr().err
    assert run_tool(sweep.main, words) == 0
    assert all(epochs_in(tmp_path).count((seed, "0")) == 1 for seed in saved), "saved runs were not resumed"
    assert run_tool(sweep.main, [*line(tmp_path / "local", plugin, "--jobs", "1"), *often]) == 0
    local = metrics_in(tmp_path / "local")
    assert len(local) == 4
    assert metrics_in(output) == local
    assert not [path.name for path in output.glob(".*")], "temporary files are left behind"


@pytest.mark.slow
def test_a_sweep_on_two_nodes_equals_the_local_one_even_if_a_node_dies(cluster, tmp_path, capsys):
    plugin = plugin_in(tmp_path, doomed=cluster.second.node_id)
    assert start(tmp_path / "local", plugin, "--jobs", "1") == 0
    killed: list[float] = []

    def kill() -> None:
        until = time.monotonic() + 300
        while time.monotonic() < until:
            begun = (tmp_path / "begun").read_text() if (tmp_path / "begun").exists() else ""
            if cluster.second.node_id in begun:
                cluster.remove_node(cluster.second, allow_graceful=False)
                killed.append(time.monotonic())
                return
            time.sleep(0.2)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    capsys.readouterr()
    assert start(tmp_path / "ray", plugin, "--ray", cluster.address) == 0
    killer.join(timeout=10)
    assert killed
    begun = [line.split() for line in (tmp_path / "begun").read_text().splitlines()]
    stayed = {seed for node, seed, _ in begun if node == cluster.second.node_id}
    assert stayed  # runs started on the second node were repeated on the first
    assert stayed <= {seed for node, seed, _ in begun if node != cluster.second.node_id}
    assert "4 runs in" in capsys.readouterr().out
    local = metrics_in(tmp_path / "local")
    assert len(local) == 4
    assert metrics_in(tmp_path / "ray") == local
    tables = []
    for name in ("local", "ray"):
        assert run_tool(report.main, [str(tmp_path / name)]) == 0
        with open(tmp_path / name / "report.csv", encoding="utf-8") as file:
            tables.append([(row["method"], row["mean"], row["ci95"]) for row in csv.DictReader(file)])
    assert tables[0] == tables[1]


def test_an_address_without_ray_prints_one_line(tmp_path, capsys):
    pytest.importorskip("ray", reason="Ray is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=f"there is no Ray cluster at 127.0.0.1:{port}: Connection refused"):
        on_ray._connect(None, f"127.0.0.1:{port}", {})
    with pytest.raises(UserError, match="is not an address, such as"):
        on_ray._connect(None, "somewhere", {})
    assert run_tool(sweep.main, ["--trainers", "ZeroshotCLIP", "--ray", "--jobs", "2"]) == 2
    assert "--jobs has no effect with --ray" in capsys.readouterr().err
    assert run_tool(sweep.main, ["--trainers", "ZeroshotCLIP", "--run-cpus", "2"]) == 2
    assert "--run-cpus has no effect without --ray" in capsys.readouterr().err
    assert run_tool(sweep.main, ["--trainers", "ZeroshotCLIP", "--ray", "--run-gpus", "1.5"]) == 2
    assert "--run-gpus must be an integer or below 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["python", "dassl-lite", "torch", "ray"])
def test_a_node_with_another_version_is_refused_in_one_line(name):
    own = versions()
    check_versions("here", own, own)
    for theirs, found in (({**own, name: "0.1"}, "0.1"), ({k: v for k, v in own.items() if k != name}, "is missing")):
        with pytest.raises(UserError) as error:
            check_versions("node7", theirs, own)
        assert str(error.value).startswith(
            f"node node7 has {name} {found} (here {own[name]}); all nodes need the same versions"
        )


@pytest.mark.slow
def test_package_plugins_and_working_folder_are_shipped_without_git_ignored_files(tmp_path, monkeypatch):
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    for folder in (work, elsewhere):
        folder.mkdir()
    (work / "mine.yaml").write_text("OPTIM: {LR: 1.0}")
    (work / "weights.pt").write_bytes(b"x" * 100)
    (elsewhere / "plugin.py").write_text("import beside_it")
    (elsewhere / "beside_it.py").write_text("")
    monkeypatch.chdir(work)
    copies = copy_code(tmp_path / "place", [str(elsewhere / "plugin.py"), "a.module"])
    there = {str(path.relative_to(tmp_path / "place")) for path in (tmp_path / "place").rglob("*") if path.is_file()}
    plugin = copies[str(elsewhere / "plugin.py")]
    assert {"mine.yaml", plugin, str(Path(plugin).with_name("beside_it.py"))} <= there
    assert {
        "dassl_lite/__init__.py",
        "dassl_lite/trainers/taskres.py",
        "dassl_lite/configs/datasets/gadgets.yaml",
    } <= there
    assert "weights.pt" not in there
    assert copies["a.module"] == ""
    assert not any("__pycache__" in name for name in there)


@pytest.mark.slow
def test_features_are_extracted_first_and_runs_are_copied_back_from_nodes_without_the_folder(tmp_path, monkeypatch):
    load_plugins()
    todo = tasks(["TaskRes", "ZeroshotCLIP"], [DatasetChoice("gadgets")], [1], [1, 2])
    shared: Any = {"trainer": "", "dataset_file": "", "method_file": None, "flags": {}, "options": FEW}
    settings = Settings(tmp_path / "sweep", {**shared, "allow_new_keys": False})
    extract_features(todo, settings)
    encoded: list[int] = []
    original = on_ray_features().encode_image
    monkeypatch.setattr(on_ray_features(), "encode_image", lambda *args: encoded.append(1) or original(*args))
    outcome, packed = _run_on_node(todo[1], settings, mark=tmp_path / "unseen")
    assert not encoded
    assert outcome[1] == DONE
    assert not (tmp_path / "sweep").exists()
    folder = settings.folder / todo[1].folder
    unpack_run(packed, folder)
    results = read_results(folder)
    assert results is not None
    assert results["config"]["OUTPUT_DIR"] == str(folder)
    assert list(folder.rglob("model*"))
    missing, packed = _run_on_node(
        tasks(["TaskRes"], [DatasetChoice("", str(tmp_path / "nothing"))], [1], [1])[0], settings, tmp_path / "unseen"
    )
    assert packed == b""
    assert missing[2].startswith(f"on node {on_ray.node_name()}: ")


def on_ray_features() -> Any:
    """The class whose instances encode images."""
    from dassl_lite.models.clip import CLIPBackbone

    return CLIPBackbone
