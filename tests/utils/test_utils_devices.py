"""Which device is picked, how it computes, and what happens when its memory is full or it has failed."""

from __future__ import annotations

import gc
import types
import weakref
from typing import Any

import pytest
import torch

from dassl_lite.utils import devices
from dassl_lite.utils.errors import UserError


@pytest.fixture(autouse=True)
def told_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_told", set())


def machine(monkeypatch: pytest.MonkeyPatch, kind: str, *, union: bool = True, gpus: int = 1) -> None:
    """A machine with an accelerator of this kind, as torch from 2.6 on (``union``) or before shows it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
    monkeypatch.setattr(torch.xpu, "is_available", lambda: kind == "xpu")
    found = types.SimpleNamespace(
        is_available=lambda: bool(kind), current_accelerator=lambda: torch.device(kind or "cuda")
    )
    if union:
        monkeypatch.setattr(torch, "accelerator", found, raising=False)
    else:
        monkeypatch.delattr(torch, "accelerator", raising=False)


@pytest.mark.parametrize("union", [True, False], ids=["torch 2.6", "torch 2.4"])
@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu", ""])
def test_the_accelerator_that_torch_has_is_picked(monkeypatch: pytest.MonkeyPatch, kind: str, union: bool) -> None:
    machine(monkeypatch, kind, union=union)
    assert devices.pick(True).type == (kind or "cpu")
    assert devices.pick(False).type == "cpu"


def test_an_accelerator_of_another_kind_is_told_and_the_cpu_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine(monkeypatch, "hpu")
    assert devices.pick(True).type == "cpu"
    assert "accelerator (hpu) is of a kind that is not used: running on the CPU" in caplog.text


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_several_processes_on_other_accelerators_than_cuda_use_the_cpu_and_say_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    machine(monkeypatch, kind)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert devices.pick(True).type == "cpu"
    assert f"not on {kind}: running on the CPU" in caplog.text


def test_what_to_do_about_operations_that_mps_lacks_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine(monkeypatch, "mps")
    devices.pick(True), devices.pick(True)
    assert caplog.text.count("PYTORCH_ENABLE_MPS_FALLBACK=1") == 1
    caplog.clear()
    monkeypatch.setattr(devices, "_told", set())
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    devices.pick(True)
    assert not caplog.text


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "cuda", gpus=2)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    devices.join_gpu(1, 2)
    assert chosen == [1]
    with pytest.raises(
        UserError, match="4 processes on this machine, but 2 GPUs: start torchrun with --nproc-per-node 2"
    ):
        devices.join_gpu(0, 4)  # every process says it, not only those without a GPU
    with pytest.raises(UserError, match="3 processes on this machine, but 2 GPUs"):
        devices.join_gpu(2, 1)  # a launcher that does not tell how many there are


def test_numbers_depend_on_no_setting_of_torch_that_we_do_not_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("medium")
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert devices.cache_text(cuda, "fp32") == "fp32-tf32"
    devices.set_arithmetic()
    assert devices.describe_arithmetic(cuda, "amp") == {
        "device": "cuda",
        "precision": "amp",
        "memory_format": "contiguous",
        "autocast": "float16",
        "matmul_precision": "highest",
        "tf32": {"matmul": False, "convolution": False},
        "cudnn_benchmark": False,
    }
    assert devices.describe_arithmetic(cpu, "amp")["autocast"] == "bfloat16"
    assert devices.describe_arithmetic(cpu, "fp32")["autocast"] is None


def test_the_caches_key_tells_apart_what_computes_otherwise_and_keeps_the_cpus_names() -> None:
    devices.set_arithmetic()
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert [devices.cache_text(cpu, name) for name in ("fp32", "amp", "bf16")] == ["fp32", "amp", "bf16"]
    assert [devices.cache_text(cuda, name) for name in ("fp32", "fp16", "bf16")] == ["fp32", "fp16", "bf16"]
    assert devices.cache_text(cuda, "amp") == "amp-float16"  # a CPU's is bfloat16


def full_above(rows: int, error: Exception | None = None) -> Any:
    """The double of rows, and the number of them in each call, with memory for so many."""
    calls: list[int] = []

    def double(batch: Any) -> Any:
        x = batch["x"] if isinstance(batch, dict) else batch
        calls.append(len(x))
        if len(x) > rows:
            raise error or torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return (2 * x, batch["names"], [y.tolist() for y in batch["y"]]) if isinstance(batch, dict) else 2 * x

    return double, calls


def test_a_batch_that_memory_has_no_room_for_is_halved_until_it_fits(caplog: pytest.LogCaptureFixture) -> None:
    (double, calls), halving = full_above(3), devices.Halving("counting")
    x = torch.arange(10)
    assert torch.equal(torch.cat(halving(double, x, 8)), 2 * x)
    assert calls == [8, 4, 2, 2, 2, 2, 2]
    assert torch.equal(torch.cat(halving(double, x)), 2 * x)
    assert calls[7:] == [2] * 5  # what fitted is kept
    assert [record.message for record in caplog.records] == [
        "Out of memory while counting: continuing with 4 at a time",
        "Out of memory while counting: continuing with 2 at a time",
    ]


def test_a_batch_of_several_things_is_cut_in_all_of_them() -> None:
    (double, _), halving = full_above(1), devices.Halving("counting")
    batch = {"x": torch.tensor([1, 2]), "names": ["a", "b"], "y": [torch.tensor([3, 4]), torch.tensor([5, 6])], "k": 7}
    found = halving(double, batch)
    assert [(x.tolist(), names, y) for x, names, y in found] == [([2], ["a"], [[3], [5]]), ([4], ["b"], [[4], [6]])]


@pytest.mark.parametrize(
    ("rows", "error"),
    [(0, None), (3, RuntimeError("shapes do not fit")), (3, RuntimeError("CUDA error: out of memory"))],
)
def test_an_error_that_halving_does_not_help_is_raised(rows: int, error: Exception | None) -> None:
    (double, calls), halving = full_above(rows, error), devices.Halving("counting")
    with pytest.raises(RuntimeError):
        halving(double, torch.arange(4))
    assert calls == ([4, 2, 1] if error is None else [4])


@pytest.mark.parametrize("batch", [[torch.ones(4), torch.ones(4)], {"x": "text"}, torch.ones(())])
def test_a_batch_that_cannot_be_cut_is_tried_whole_and_its_error_raised(batch: Any) -> None:
    seen: list[Any] = []

    def fail(one: Any) -> None:
        seen.append(one)
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(torch.cuda.OutOfMemoryError):
        devices.Halving("counting")(fail, batch)
    assert len(seen) == 1
    assert seen[0] is batch


def test_an_empty_batch_is_passed_on() -> None:
    assert [len(part) for part in devices.Halving("counting")(lambda x: x, torch.empty(0, 3))] == [0]


def test_the_host_s_memory_counts_too() -> None:
    assert devices.is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"))
    assert devices.is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert not devices.is_out_of_memory(ValueError("out of memory"))


def test_an_error_that_costs_the_process_its_gpu_is_known_even_as_a_cause() -> None:
    lost = RuntimeError("CUDA error: device-side assert triggered")
    assert devices.is_lost(lost)
    wrapped = UserError("cannot be encoded")
    wrapped.__cause__ = lost
    assert devices.is_lost(wrapped)
    assert not devices.is_lost(UserError("a mistake"))
    assert not devices.is_lost(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))


@pytest.mark.slow
def test_memory_that_a_run_has_left_is_given_back() -> None:
    class Ring:
        def __init__(self) -> None:
            self.me = self

    ring = Ring()
    left = weakref.ref(ring)
    gc.disable()
    try:
        del ring
        assert left() is not None
        devices.give_back_memory()
        assert left() is None
    finally:
        gc.enable()
