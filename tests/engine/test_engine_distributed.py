"""Two processes over gloo end where one process ends; only rank 0 writes."""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import distributed_cases
import numpy as np
import process_table
import pytest
import torch
from toy import make_images, toy_trainer

from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.parallel import distributed, shared_inference
from dassl_lite.engine.parallel.distributed import ShareOfBatches
from dassl_lite.tools import train
from dassl_lite.utils import UserError

START = """
import sys; sys.path.insert(0, {tests!r})
import torch, toy, distributed_cases
from pathlib import Path
from dassl_lite.engine.parallel import distributed
from dassl_lite.utils import UserError, setup_logger
torch.set_num_threads(1)
setup_logger({output!r} + "/log")
distributed.start()
"""
TRAIN = """
trainer = toy.toy_trainer({data!r}, {output!r}, *{options!r})
trainer.model[1].p = 0.0
trainer.train()
found = {{"weight": trainer.model[2].weight, "results": trainer.results}}
"""
CASES = """
real = toy.make_images
def once(root):  # both processes read the same images
    distributed.on_first(lambda: real(root) and None)
    distributed.wait()
    return root
distributed_cases.make_images = once
found = distributed_cases.run_all(Path({output!r}))
"""
KEEP = """
torch.save(found, {output!r} + f"-rank{{distributed.rank()}}.pt")
"""
OPTIONS = ("OPTIM.MAX_EPOCH", "3", "INPUT.TRANSFORMS", "('normalize',)")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def two_processes(body: str, output: Path, **values: Any) -> list[Any]:
    """What ``body`` finds in each of two processes."""
    script = (START + body + KEEP).format(tests=str(Path(__file__).parent), output=str(output), **values)
    port = str(free_port())
    processes = []
    for rank in range(2):
        env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        env = {**os.environ, **env, "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen([sys.executable, "-c", script], env=env, stderr=subprocess.PIPE, text=True))
    errors = [""] * 2

    def wait(rank: int) -> None:  # one that fails would leave the other waiting
        errors[rank] = processes[rank].communicate(timeout=900)[1]
        if processes[rank].returncode:
            processes[1 - rank].kill()

    threads = [threading.Thread(target=wait, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(error[-3000:] for error in errors)
    return [torch.load(f"{output}-rank{rank}.pt", weights_only=False) for rank in range(2)]


def same(one: Any, other: Any) -> bool:
    """Whether two trees are alike, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_every_process_takes_an_equal_share_of_each_batch_or_all_of_it() -> None:
    batches = [[0, 1, 2, 3], [4, 5, 6], [7]]
    shares = [list(ShareOfBatches(batches, rank, 2)) for rank in range(2)]
    assert shares == [[[0, 2], [4, 5, 6], [7]], [[1, 3], [4, 5, 6], [7]]]


def test_when_a_process_dies_the_others_print_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Any) -> None:
        raise RuntimeError("[pair.cc:561] Connection closed by peer [127.0.0.1]:54669. This is typically caused by")

    with pytest.raises(RuntimeError):  # of something else
        run_tool(main, [])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert run_tool(main, []) == 2
    assert capsys.readouterr().err.startswith("Error: another process of this run ended")


KILLED_ONCE = """
import os, signal
from dassl_lite.engine import TRAINER_REGISTRY
from dassl_lite.trainers.taskres import TaskRes


@TRAINER_REGISTRY.register()
class KilledOnce(TaskRes):
    def enter_epoch(self):
        if self.epoch == 2 and (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
            os.kill(os.getpid(), signal.SIGKILL)
"""


def few_features(folder: Path) -> Path:
    """A feature file of two classes."""
    features, labels = torch.randn(8, 16, generator=torch.Generator().manual_seed(1)).numpy(), np.arange(8) % 2
    path = folder / "few.npz"
    np.savez(
        path,
        classnames=np.array(["one", "other"]),
        text_weights=features[:2],
        train_features=features,
        train_labels=labels,
        test_features=features,
        test_labels=labels,
    )
    return path


@pytest.mark.slow
def test_a_run_restarted_by_torchrun_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    plugin, output = tmp_path / "killed_once.py", tmp_path / "run"
    plugin.write_text(KILLED_ONCE, encoding="utf-8")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    command = ["tools/train.py", "--plugin", str(plugin), "--trainer", "KilledOnce", "--output-dir", str(output)]
    settings = ["--data", str(few_features(tmp_path)), "OPTIM.MAX_EPOCH", "4", "TRAIN.CHECKPOINT_FREQ", "1"]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, *command, *settings], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    log = (output / "log.txt").read_text(encoding="utf-8")
    assert "epoch [4/4]" in log
    assert log.count("epoch [1/4]") == 1  # of the first start
    assert log.count("epoch [2/4]") == 1
    assert json.loads((output / "results.json").read_text(encoding="utf-8"))["metrics"]["test"]["accuracy"] > 0


def test_a_restarted_run_without_a_folder_of_its_own_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run_tool(train.main, ["--trainer", "TaskRes"]) == 2
    assert "torchrun has restarted this run, which is resumed only in a folder that" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_end_where_one_ends_and_only_rank_0_writes(tmp_path: Path) -> None:
    data = make_images(tmp_path / "data")
    torch.set_num_threads(1)
    alone = toy_trainer(data, tmp_path / "alone", *OPTIONS)
    alone.model[1].p = 0.0  # masks are drawn per process
    alone.train()
    ended = two_processes(TRAIN, tmp_path / "two", data=str(data), options=OPTIONS)
    assert torch.equal(ended[0]["weight"], ended[1]["weight"])
    assert torch.allclose(ended[0]["weight"], alone.model[2].weight, atol=1e-5)
    assert ended[0]["results"]["test"]["accuracy"] == alone.results["test"]["accuracy"]
    assert [p.name for p in (tmp_path / "two" / "toy").glob("model*")] == ["model.pth.tar-3"]
    assert len(list((tmp_path / "two" / "tensorboard").glob("events*"))) == 1


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    """What one process finds, what each of two finds, and the folder of the two."""
    folder = tmp_path_factory.mktemp("cases")
    two = two_processes(CASES, folder / "two")
    (folder / "one").mkdir()
    return distributed_cases.run_all(folder / "one"), two, folder / "two"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "broken"])
def test_an_evaluator_sees_all_outputs_in_order_and_finds_what_one_process_finds(cases: Any, kind: str) -> None:
    one, two, folder = cases
    assert [len(label) for _, label in one["images"]["whole"]["test"][1]] == [4, 4, 4, 3]
    assert len(one["images"]["broken"]["test"][1]) == 14
    for rank in two:
        assert same(rank["images"][kind], one["images"][kind])
    evaluations = (folder / "toy_run" / "evaluations.txt").read_text().split()
    assert len(evaluations) == 3, "the evaluator's file is written by one process"


@pytest.mark.slow
def test_features_are_extracted_by_both_processes_and_a_run_on_them_is_that_of_one(cases: Any) -> None:
    one, two, folder = cases
    for rank in two:
        for what in ("ended", "features", "evaluated"):
            assert same(rank["cached"][what], one["cached"][what]), what
    assert one["cached"]["features"][0].shape[:2] == (2, 18)
    assert one["cached"]["features"][1].sum() == 17
    whole, shares = one["cached"]["encoded"], [rank["cached"]["encoded"] for rank in two]
    assert sum(shares) == whole == 2 * 17 + 9 + 15
    assert min(shares) > whole / 3
    assert [rank["cached"]["encoded again"] for rank in two] == [0, 0], "the first process has kept all rows"
    rows = [
        sorted(path.read_bytes() for path in (base / "cache").glob("*/rows*"))
        for base in (folder, folder.parent / "one")
    ]
    assert rows[0] == rows[1], "the store is, byte for byte, that of one process"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["TaskRes", "CLIPLoRA", "ProGrad"])
def test_methods_on_images_evaluate_as_one_process_does_and_share_the_work(cases: Any, method: str) -> None:
    one, two, _ = cases
    for rank in two:
        assert same(rank[method]["evaluated"], one[method]["evaluated"])
        assert rank[method]["zero_shot"] == one[method]["zero_shot"]
    assert sum(rank[method]["encoded"] for rank in two) == one[method]["encoded"] == 15 + 15 + 9
    assert same(two[0][method]["trained"], two[1][method]["trained"])
    for key, value in one[method]["trained"].items():
        torch.testing.assert_close(two[0][method]["trained"][key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_batch_without_equal_shares_is_taken_whole_by_every_process(cases: Any) -> None:
    one, two, _ = cases
    assert same([rank["odd"]["trained"] for rank in two], [one["odd"]["trained"]] * 2)


@pytest.mark.slow
def test_a_training_image_that_one_process_cannot_read_is_left_out_by_all(cases: Any) -> None:
    one, two, _ = cases
    trained = [rank["unreadable"]["trained"] for rank in two]
    assert same(*trained)
    for key, value in one["unreadable"]["trained"].items():
        torch.testing.assert_close(trained[0][key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells what memory is shared")
@pytest.mark.parametrize("source", ["file", "cache"])
def test_two_processes_have_one_copy_of_the_features(cases: Any, source: str) -> None:
    _, two, _ = cases
    assert two[1]["memory"]["own"] > 48, "most of 64 MiB"
    assert two[1]["memory"][source] < 32


@pytest.mark.slow
def test_processes_stay_on_one_order_of_the_images_whatever_their_augmentations_draw(cases: Any) -> None:
    _, two, _ = cases
    for epoch in range(3):
        seen = [rank["augmented"]["seen"][epoch] for rank in two]
        assert len(seen[0]) == len(seen[1]) == 8  # 18 images make 4 batches of 4
        assert not set(seen[0]) & set(seen[1])
    assert torch.equal(two[0]["augmented"]["weight"], two[1]["augmented"]["weight"])


@pytest.mark.slow
def test_two_processes_end_where_the_guide_says_with_every_method() -> None:
    written = process_table.written()
    every = process_table.methods()
    assert {method for method, _ in written} == {*every}, "renew with: python tests/process_table.py --write"
    # On features where the method takes them, else on images; all cells are run to write the table.
    refusing = {method for method in every if written[method, "features"] == process_table.REFUSED}
    cells = [(method, "images" if method in refusing else "features") for method in every]
    assert process_table.compared(cells) == {cell: written[cell] for cell in cells}


ALONE = """
trainer = toy.toy_trainer({data!r}, {output!r}, *{options!r})
found = {{}}
if distributed.rank() == 0:
    try:
        trainer.test()
    except UserError as error:
        found["told"] = str(error)
"""


@pytest.mark.slow
def test_a_process_that_evaluates_alone_stops_with_an_error_instead_of_waiting(tmp_path: Path) -> None:
    data = make_images(tmp_path / "data")
    first, _ = two_processes(ALONE, tmp_path / "two", data=str(data), options=OPTIONS)
    assert first["told"].startswith("process 0 of this run is at an evaluation, but process 1 is at its end: all ")


def test_processes_that_do_different_things_are_both_reported() -> None:
    store, told = torch.distributed.HashStore(), {}

    def go(rank: int, phases: list[str]) -> None:
        meetings = distributed.Meetings(store, rank, 2)
        try:
            for phase in phases:
                meetings.meet(phase)
        except UserError as error:
            told[rank] = str(error).partition(":")[0]

    phases = ["training", "evaluation"], ["training", "training"]
    threads = [threading.Thread(target=go, args=(rank, phases[rank])) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert told == {
        0: "process 0 of this run is at evaluation, but process 1 is at training",
        1: "process 1 of this run is at training, but process 0 is at evaluation",
    }


GPU_STREAMS = """
import torch
from dassl_lite.utils import seeding
own = {{"state": torch.tensor([10 + distributed.rank()], dtype=torch.uint8)}}
torch.cuda.is_available = lambda: True
torch.cuda.get_rng_state = lambda *device: own["state"].clone()
torch.cuda.get_rng_state_all = lambda: [own["state"].clone(), torch.zeros(1, dtype=torch.uint8)]  # idle in this process
torch.cuda.set_rng_state = lambda state, *device: own.update(state=state)
saved = distributed.random_states_of_all()
own["state"] += 100
distributed.restore_random_states_of_all(saved)
torch.cuda.is_available = lambda: False
found = {{"saved": saved["cuda"], "restored": own["state"]}}
"""


@pytest.mark.slow
def test_every_process_gets_the_random_stream_of_its_own_gpu_back(tmp_path: Path) -> None:
    for rank, found in enumerate(two_processes(GPU_STREAMS, tmp_path / "streams")):
        assert [int(state) for state in found["saved"]] == [10, 11]
        assert int(found["restored"]) == 10 + rank


@pytest.mark.parametrize("use_gpus", [True, False])
def test_more_processes_than_gpus_are_refused_unless_they_use_the_cpu(
    monkeypatch: pytest.MonkeyPatch, use_gpus: bool
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    backends: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: pytest.fail("a GPU was chosen"))
    meeting = iter([(torch.distributed.HashStore(), 1, 2)])
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *_, **__: meeting)
    monkeypatch.setattr(distributed, "_meetings", None)  # given back as it is
    monkeypatch.setattr(atexit, "register", lambda leave: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: backends.append(backend))
    if use_gpus:
        with pytest.raises(UserError, match="2 processes on this machine, but 1 GPU: start torchrun"):
            distributed.start(use_gpus)
    else:
        distributed.start(use_gpus)
    assert backends == ([] if use_gpus else ["gloo"])


def test_tensors_anywhere_in_an_output_are_packed_and_unpacked() -> None:
    Pair = namedtuple("Pair", "a b")
    tensor = torch.arange(6.0).view(2, 3)
    output = {"rows": [tensor[0], (tensor[1], "text")], "pair": Pair(tensor, None)}
    sent = shared_inference._moved(output, shared_inference._Sent.pack)
    assert sent["rows"][0].device == "cpu"
    assert sent["rows"][0].tensor.untyped_storage().nbytes() == 12  # not the whole tensor that it is a view of
    received = shared_inference._moved(sent, shared_inference._Sent.unpack)
    assert torch.equal(received["rows"][0], tensor[0])
    assert torch.equal(received["rows"][1][0], tensor[1])
    assert received["rows"][1][1] == "text"
    assert torch.equal(received["pair"].a, tensor)
    assert received["pair"].b is None
