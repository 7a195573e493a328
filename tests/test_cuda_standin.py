"""The stand-in for a GPU behaves as a GPU where tests rely on it."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import cuda_standin
import numpy as np
import pytest
import torch

from dassl_lite.utils import devices

pytestmark = pytest.mark.slow  # each process that has the stand-in takes seconds to start


def test_a_gpu_of_the_machine_is_hidden_from_tests_and_from_the_commands_that_they_start() -> None:
    """Else tests that compare with the CPU's numbers fail where there is one."""
    assert devices.accelerator() == ""
    command = [sys.executable, "-c", "import torch; print(torch.cuda.is_available(), torch.cuda.device_count())"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "False 0\n"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def raised(function: Any, *arguments: Any) -> str:
    """Type and message of what ``function`` raises."""
    try:
        function(*arguments)
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return "nothing"


def mixed_devices() -> dict[str, str]:
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    return {
        "add": raised(lambda: here + there),
        "in place": raised(there.add_, here),
        "matmul": raised(lambda: there @ here),
        "cat": raised(torch.cat, [here, there]),
        "index": raised(lambda: here[torch.tensor([0], device="cuda")]),
        "where": raised(torch.where, there > 0, here, there),
        "embedding": raised(torch.nn.functional.embedding, torch.tensor([0]), torch.ones(2, 2, device="cuda")),
        "layer": raised(torch.nn.Linear(3, 2), there),
        "numpy": raised(there.numpy),
        "asarray": raised(np.asarray, there),
    }


def test_mixed_devices_raise(on_cuda: Any) -> None:
    for name, error in on_cuda(mixed_devices).items():
        assert "cuda:0" in error, (name, error)


def what_works() -> dict[str, Any]:
    x = torch.arange(6.0).reshape(2, 3).to("cuda")
    layer = torch.nn.Linear(3, 2).cuda()
    layer(x).sum().backward()
    gradient = layer.weight.grad
    assert gradient is not None
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    with torch.autocast("cuda"):
        half = layer(x).dtype
    return {
        "device": str(x.device),
        "views": str(x[0].t().device),
        "scalar": (x + torch.tensor(1.0)).sum().item(),
        "index on the CPU": x[torch.tensor([1])].tolist(),
        "gradient": (str(gradient.device), gradient.cpu().tolist()),
        "copy": str(copy.deepcopy(layer).weight.device),
        "saved": sorted(torch.load(buffer)),
        "pickled": str(pickle.loads(pickle.dumps(x)).device),  # noqa: S301
        "half": str(half),
        "shares nothing": x.cpu().data_ptr() != x.data_ptr(),
    }


def test_a_tensor_of_the_stand_in_computes_and_says_cuda(on_cuda: Any) -> None:
    found = on_cuda(what_works)
    assert found == {
        "device": "cuda:0",
        "views": "cuda:0",
        "scalar": 21.0,
        "index on the CPU": [[3.0, 4.0, 5.0]],
        "gradient": ("cuda:0", [[3.0, 5.0, 7.0]] * 2),
        "copy": "cuda:0",
        "saved": ["bias", "weight"],
        "pickled": "cpu",
        "half": "torch.float16",
        "shares nothing": True,
    }


def counted() -> dict[str, int]:
    x, mask = torch.ones(4, device="cuda"), torch.tensor([True, False, True, False])
    found = {}
    for name, action in {
        "nothing": lambda: (x * 2 + 1).sum(),
        "item": lambda: x.sum().item(),
        "if": lambda: bool(x.sum() > 1),
        "cpu": x.cpu,
        "numbers": x.tolist,
        "mask": lambda: x[mask.to("cuda")],
        "copy": lambda: torch.ones(3).to("cuda"),
        "made": lambda: torch.tensor([1.0], device="cuda"),
        "index": lambda: x[torch.tensor([0])],
    }.items():
        with cuda_standin.counting() as counts:
            action()
        found[name] = (counts.waits.total(), counts.copies.total())
    return found


def test_waits_and_copies_are_counted(on_cuda: Any) -> None:
    assert on_cuda(counted) == {
        "nothing": (0, 0),
        "item": (1, 0),
        "if": (1, 0),
        "cpu": (1, 0),
        "numbers": (1, 0),
        "mask": (1, 1),
        "copy": (0, 1),
        "made": (0, 1),
        "index": (0, 1),
    }


def streams() -> tuple[list[float], list[float]]:
    torch.manual_seed(1)
    first = torch.rand(2).tolist()
    torch.manual_seed(1)
    torch.rand(100, device="cuda")
    return first, torch.rand(2).tolist()


def test_the_device_has_a_random_stream_of_its_own(on_cuda: Any) -> None:
    first, second = on_cuda(streams)
    assert first == second


def failing() -> dict[str, str]:
    with cuda_standin.memory_of(1024):
        full = raised(lambda: torch.zeros(1024, device="cuda"))
        fits = raised(lambda: torch.zeros(16, device="cuda"))
    x = torch.ones(1, device="cuda")
    with cuda_standin.broken(RuntimeError("CUDA error: device-side assert triggered")):
        error = raised(lambda: x + 1)
    return {"full": full, "fits": fits, "broken": error, "after": raised(lambda: x + 1)}


def test_memory_can_be_full_and_the_device_broken(on_cuda: Any) -> None:
    found = on_cuda(failing)
    assert found["full"].startswith("OutOfMemoryError: CUDA out of memory")
    assert found["broken"] == "RuntimeError: CUDA error: device-side assert triggered"
    assert found["fits"] == found["after"] == "nothing"


def test_a_command_runs_on_the_stand_in(tmp_path: Path) -> None:
    if reason := cuda_standin.why_not():
        pytest.skip(reason)
    script = tmp_path / "script.py"
    script.write_text("import sys, torch\nprint(sys.argv[1:], torch.zeros(1).cuda().device)")
    command = [sys.executable, cuda_standin.__file__, str(script), "--flag"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "['--flag'] cuda:0\n", done.stderr
