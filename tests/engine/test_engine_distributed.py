"""Two processes over gloo end where one process ends; only rank 0 writes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy import make_images, toy_trainer

from dassl_lite.engine.distributed import ShareOfBatches

SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
import torch, toy
from dassl_lite.engine import distributed
distributed.start()
trainer = toy.toy_trainer({data!r}, {output!r}, *{options!r})
trainer.train()
ended = {{"weight": trainer.model[2].weight, "results": trainer.results}}
torch.save(ended, {output!r} + f"-rank{{distributed.rank()}}.pt")
"""
OPTIONS = ("OPTIM.MAX_EPOCH", "3", "INPUT.TRANSFORMS", "('normalize',)")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_every_process_takes_an_equal_share_of_each_batch() -> None:
    batches = [[0, 1, 2, 3], [4, 5, 6], [7]]
    shares = [list(ShareOfBatches(batches, rank, 2)) for rank in range(2)]
    assert shares == [[[0, 2], [4]], [[1, 3], [5]]]


@pytest.mark.slow
def test_two_processes_end_where_one_ends_and_only_rank_0_writes(tmp_path: Path) -> None:
    data = make_images(tmp_path / "data")
    torch.set_num_threads(1)
    alone = toy_trainer(data, tmp_path / "alone", *OPTIONS)
    alone.model[1].p = 0.0  # masks are drawn per process
    alone.train()
    tests = str(Path(__file__).parent)
    script = SCRIPT.format(tests=tests, data=str(data), output=str(tmp_path / "two"), options=OPTIONS)
    script = script.replace("trainer.train()", "trainer.model[1].p = 0.0; trainer.train()")
    port = str(free_port())
    processes = []
    for rank in range(2):
        env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        env = {**os.environ, **env, "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen([sys.executable, "-c", script], env=env, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr[-2000:]
    ended = [torch.load(tmp_path / f"two-rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(ended[0]["weight"], ended[1]["weight"])
    assert torch.allclose(ended[0]["weight"], alone.model[2].weight, atol=1e-5)
    assert ended[0]["results"]["test"]["accuracy"] == alone.results["test"]["accuracy"]
    assert [p.name for p in (tmp_path / "two" / "toy").glob("model*")] == ["model.pth.tar-3"]
    assert len(list((tmp_path / "two" / "tensorboard").glob("events*"))) == 1
