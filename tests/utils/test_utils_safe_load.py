"""Reading torch files: what must come back unchanged, and what must never run."""

from __future__ import annotations

import builtins
import collections
import contextlib
import copyreg
import io
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dassl_lite.utils.errors import UserError
from dassl_lite.utils.safe_load import Inert, is_torchscript, load_file, tensors_of

PLAIN = {
    "tensor": torch.arange(6.0).reshape(2, 3).t(),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "number": torch.tensor(3),
    "empty": torch.empty(0, 4),
    "ordered": collections.OrderedDict(a=1, b=[True, None, 2.5]),
    "size": torch.Size([2, 3]),
    "dtype": torch.float16,
    "device": torch.device("cpu"),
    "set": {1, 2},
    "bytes": b"\x00\xff",
    "complex": 1 + 2j,
    "text": "häuser",
}


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Path]:
    def write(obj: Any) -> Path:
        path = tmp_path / "file.pt"
        torch.save(obj, path, _use_new_zipfile_serialization=request.param)
        return path

    return write


def test_plain_values_and_tensors_come_back_as_they_were(save: Callable[[Any], Path]) -> None:
    loaded = load_file(save(PLAIN), strict=True)
    assert list(loaded) == list(PLAIN)
    for key, value in PLAIN.items():
        assert type(loaded[key]) is type(value), key
        if isinstance(value, torch.Tensor):
            assert torch.equal(loaded[key], value)
            assert loaded[key].dtype == value.dtype
        else:
            assert loaded[key] == value


def test_tensors_that_share_memory_still_do(save: Callable[[Any], Path]) -> None:
    base = torch.arange(10.0)
    loaded = load_file(save({"all": base, "part": base[2:5]}))
    loaded["all"][2] = -1.0
    assert loaded["part"][0] == -1.0


def test_a_parameter_comes_back_as_its_tensor(save: Callable[[Any], Path]) -> None:
    parameter = torch.nn.Parameter(torch.randn(3))
    parameter.note = "kept by torch beside the tensor"  # type: ignore[attr-defined]
    loaded = load_file(save([parameter, torch.nn.Parameter(torch.ones(2))]), strict=True)
    assert torch.equal(loaded[0], parameter.detach())
    assert torch.equal(loaded[1], torch.ones(2))


def test_numpy_numbers_come_back_as_numbers(save: Callable[[Any], Path]) -> None:
    assert load_file(save({"best": np.float64(81.5), "epoch": np.int64(3)})) == {"best": 81.5, "epoch": 3}


def test_module_state_equals_torchs_own_reading(save: Callable[[Any], Path]) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    path = save(module.state_dict())
    theirs = torch.load(path, weights_only=True)
    ours = load_file(path)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


# --- objects that are not ours to build -------------------------------------------------------------------


class Scheduler:
    """Stands for the pickled objects in public checkpoints."""

    def __init__(self) -> None:
        self.last_epoch = 7


class Touchy:
    """Says so if anything of it runs."""

    ran: list[str] = []  # noqa: RUF012  (shared on purpose)

    def __init__(self, *args: Any) -> None:
        self.ran.append("init")

    def __setstate__(self, state: Any) -> None:
        self.ran.append("setstate")


def test_unknown_objects_stay_inert_and_keep_their_state(save: Callable[[Any], Path]) -> None:
    loaded = load_file(save({"scheduler": Scheduler(), "weight": torch.ones(2)}))
    assert isinstance(loaded["scheduler"], Inert)
    assert loaded["scheduler"].name.endswith(".Scheduler")
    assert loaded["scheduler"].state == {"last_epoch": 7}
    assert torch.equal(loaded["weight"], torch.ones(2))


def test_strict_refuses_an_unknown_object_and_names_it(save: Callable[[Any], Path]) -> None:
    with pytest.raises(UserError, match=r"names .*\.Scheduler, which is neither"):
        load_file(save({"scheduler": Scheduler()}), strict=True)


def test_containers_of_unknown_kind_keep_their_items(save: Callable[[Any], Path]) -> None:
    loaded = load_file(save({"d": collections.defaultdict(list, {"a": 1}), "q": collections.deque([1, 2])}))
    assert loaded["d"].items == [("a", 1)]
    assert loaded["q"].items == [1, 2]


def _written(folder: Path, data: bytes) -> Path:
    """A torch zip file around one pickle."""
    path = folder / "hostile.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    return path


class _Calls:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def _global(name: str) -> bytes:
    module, attribute = name.rsplit(".", 1)
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def hostile(command: str, code: str) -> dict[str, bytes]:
    """One pickle for each instruction by which a pickle can run something; each would leave a file behind."""
    system, evaluate, touchy = _global("posix.system"), _global("builtins.eval"), _global(f"{__name__}.Touchy")
    return {
        "reduce system": pickle.dumps(_Calls(os.system, command), protocol=2),
        "reduce eval": pickle.dumps(_Calls(builtins.eval, code), protocol=2),
        "reduce in a tensor's place": pickle.dumps({"state_dict": {"weight": _Calls(os.system, command)}}, protocol=2),
        "stack_global": b"\x80\x04" + _text("os") + _text("system") + b"\x93" + _text(command) + b"\x85R.",
        "inst": b"(" + _text(command) + b"iposix\nsystem\n.",
        "obj": b"(" + system + _text(command) + b"o.",
        "newobj": b"\x80\x02" + touchy + _text(command) + b"\x85\x81.",
        "newobj_ex": b"\x80\x04" + touchy + _text(command) + b"\x85}\x92.",
        "build": b"\x80\x02" + touchy + b")\x81" + b"}" + _text("x") + _text(command) + b"sb.",
        "build of a result": b"\x80\x02" + evaluate + _text(code) + b"\x85R" + b"}b.",
        "getattr chain": b"\x80\x02"
        + _global("builtins.getattr")
        + _global("os.path")
        + _text("os")
        + b"\x86R"
        + b"}b.",
        "partial": pickle.dumps(_Calls(__import__("functools").partial, os.system, command), protocol=2),
        "rebuild by another function": b"\x80\x02"
        + _global("torch._tensor._rebuild_from_type_v2")
        + b"("
        + system
        + touchy
        + _text(command)
        + b"\x85Nt"
        + b"R.",
        "change of a builder": b"\x80\x02" + _global("torch._utils._rebuild_tensor_v2") + b"N}" + _text("_function")
        + evaluate + b"s\x86b.",
        "persistent id": b"\x80\x02" + system + _text(command) + b"\x85RQ.",
    }  # fmt: skip


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", sorted(hostile("", "")))
def test_a_hostile_file_never_runs(kind: str, strict: bool, tmp_path: Path) -> None:
    mark = tmp_path / "it_ran"
    data = hostile(f"touch {mark}", f"open({str(mark)!r}, 'w').close()")[kind]
    Touchy.ran.clear()
    path = _written(tmp_path, data)
    with pytest.raises(UserError, match=r"\A.*\Z") if strict else contextlib.suppress(UserError):
        load_file(path, strict)
    assert not mark.exists()
    assert not Touchy.ran


@pytest.mark.parametrize("kind", ["reduce system", "reduce eval", "reduce in a tensor's place", "stack_global", "inst"])
def test_a_file_that_would_call_a_function_is_refused(kind: str, tmp_path: Path) -> None:
    path = _written(tmp_path, hostile("true", "1")[kind])
    with pytest.raises(UserError, match=r"\A.* is refused: it would call \S+(system|eval), .*none of it was run\Z"):
        load_file(path)


def test_the_hostile_files_would_run_where_pickle_reads_them(tmp_path: Path) -> None:
    """That the test above can fail: the same bytes do harm through `pickle`."""
    for number, kind in enumerate(("reduce system", "stack_global", "inst", "obj", "reduce eval")):
        mark = tmp_path / f"it_ran{number}"
        pickle.loads(hostile(f"touch {mark}", f"open({str(mark)!r}, 'w').close()")[kind])  # noqa: S301
        assert mark.exists(), kind


EXTENSIONS = {"EXT1": (b"\x82", 200, "<B"), "EXT2": (b"\x83", 2000, "<H"), "EXT4": (b"\x84", 200_000, "<I")}


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_extension_opcode_is_refused_by_its_name(name: str, container: str, tmp_path: Path) -> None:
    opcode, code, width = EXTENSIONS[name]
    copyreg.add_extension("collections", "OrderedDict", code)  # harmless by name: the opcode alone is the reason
    try:
        data = b"\x80\x02" + opcode + struct.pack(width, code) + b")R."
        assert pickle.loads(data) == {}  # noqa: S301  (without the check it would be resolved)
        path = _written(tmp_path, data)
        if container == "legacy":
            path.write_bytes(data)
        with pytest.raises(UserError, match=f"it uses the instruction {name}"):
            load_file(path)
    finally:
        copyreg.remove_extension("collections", "OrderedDict", code)


def test_changing_a_builder_is_refused(tmp_path: Path) -> None:
    """BUILD with a state for the slots would otherwise replace the function that rebuilds tensors."""
    data = hostile("true", "1")["change of a builder"]
    with pytest.raises(UserError, match="it tries to change a function"):
        load_file(_written(tmp_path, data))


@pytest.mark.parametrize("name", ["subprocess.Popen", "multiprocessing.Process", "threading.Thread", "ctypes.CDLL"])
def test_a_class_whose_construction_acts_is_refused(name: str, tmp_path: Path) -> None:
    data = b"\x80\x02" + _global(name) + _text("true") + b"\x85R."
    with pytest.raises(UserError, match=f"is refused: it would call {name}, "):
        load_file(_written(tmp_path, data))


def test_a_tensor_may_not_reach_beyond_its_storage(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save(torch.arange(4.0), path)
    with zipfile.ZipFile(path) as archive:
        data = archive.read("file/data.pkl")
        storage = archive.read("file/data/0")
    assert data.count(b"K\x04\x85") == 1  # the tensor's size, (4,)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("file/data.pkl", data.replace(b"K\x04\x85", b"K\x40\x85"))
        archive.writestr("file/data/0", storage)
    with pytest.raises(UserError, match="cannot load"):
        load_file(path)


# --- broken files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused_by_its_name(save: Callable[[Any], Path], share: float) -> None:
    path = save({"weight": torch.randn(100, 10), "epoch": 3})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"cannot load .*file\.pt") as caught:
        load_file(path)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save({"weight": torch.zeros(1000)}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="cannot load"):
        load_file(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", pickle.dumps([1, 2]), bytes(1000)])
def test_a_file_of_another_format_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a complete torch.save file"):
        load_file(path)


def test_a_missing_file_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.pt: No such file"):
        load_file(tmp_path / "nowhere.pt")


def test_compressed_storage_is_refused(tmp_path: Path) -> None:
    """A few bytes could unpack to gigabytes."""
    path = tmp_path / "file.pt"
    torch.save(torch.zeros(10), path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(UserError, match="a storage is compressed"):
        load_file(path)


# --- TorchScript and the golden files ------------------------------------------------------------------------


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4))
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.register_buffer("resolution", torch.tensor(224))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x) * self.scale


def test_a_torchscript_archive_gives_its_state_without_running_it(tmp_path: Path) -> None:
    module, path = Net().eval().half(), tmp_path / "archive.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would like other formats to be used
        torch.jit.save(torch.jit.script(module), path)
    loaded = load_file(path)
    assert is_torchscript(loaded)
    tensors = tensors_of(loaded)
    assert tensors.keys() == module.state_dict().keys()
    assert all(torch.equal(tensors[key], value) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", ["model-best.pth.tar", "model.pth.tar-3"])
def test_a_checkpoint_of_the_reference_loads_with_its_scheduler_inert(name: str, golden: Any) -> None:
    loaded = load_file(golden.path("checkpoint_taskres/prompt_learner") / name)
    assert loaded["state_dict"]["text_feature_residuals"].shape == (1000, 32)
    assert loaded["scheduler"]["successor"].name == "torch.optim.lr_scheduler.CosineAnnealingLR"
    head = golden.npz("checkpoint_taskres")["best.base_head"]  # of the first classes; both files have the same base
    assert np.array_equal(loaded["state_dict"]["base_text_features"][: len(head)].numpy(), head)


def test_files_without_objects_load_strictly(golden: Any) -> None:
    projection = load_file(golden.path("enhanced_proj.pth.tar"), strict=True)
    assert projection["state_dict"]["weight"].shape == (32, 64)
    lora = load_file(golden.path("clip_lora_ckpt/vitb16/dtd/1shots/seed1/lora_weights.pt"), strict=True)
    assert lora["metadata"]["r"] == 2
    assert lora["weights"]["layer_0"]["q_proj"]["w_lora_A"].shape == (2, 64)


def test_a_loaded_tensor_is_independent_of_its_file(tmp_path: Path) -> None:
    """A loaded tensor is writable and its own: changing it leaves the file alone."""
    path = tmp_path / "file.pt"
    torch.save(torch.zeros(4), path)
    load_file(path).add_(1)
    assert torch.equal(load_file(path), torch.zeros(4))
    assert io.BytesIO(path.read_bytes()).read(2) == b"PK"
