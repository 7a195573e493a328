"""Weights and checkpoints that lie: bombs, cycles, depth, altered bytes. One line each, soon, in little memory."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dassl_lite.models.lora_file import read_reference
from dassl_lite.models.openai_format import read
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.safe_load import MAX_DEPTH, check_graph, load_file, scan, tensors_of
from dassl_lite.utils.torchtools import load_pretrained_weights, load_run_checkpoint, resume_from_checkpoint

PROTO = b"\x80\x02"
LEGACY = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))


def zipped(data: bytes, kind: int = zipfile.ZIP_STORED, **records: bytes) -> bytes:
    """A torch.save file whose data.pkl is ``data``."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in records.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def tuples(depth: int) -> bytes:
    return PROTO + b")" + b"\x85" * depth


def lists(depth: int) -> bytes:
    return PROTO + b"]" * (depth + 1) + b"a" * depth + b"."


def doubled(levels: int, of: bytes = b"]") -> bytes:
    """A list of two of a list of two of ...: few bytes, 2**levels leaves."""
    steps = b"".join(b"]q" + bytes([n + 1]) + b"(h" + bytes([n]) + b"h" + bytes([n]) + b"e" for n in range(levels))
    return PROTO + of + b"q\0" + b"0" + steps + b"."


def module(state: bytes) -> bytes:
    """A TorchScript module with this state."""
    return PROTO + b"c__torch__.Net\nNet\n)\x81" + state + b"b."


def many_modules(levels: int) -> bytes:
    """A module whose two parts are the same module, whose two parts are ..."""
    code = PROTO + b"c__torch__.Net\nNet\nq\0" + b")\x81}b" + b"q\1" + b"0"
    for n in range(1, levels):
        code += b"h\0)\x81}(X\1\0\0\0ah" + bytes([n]) + b"X\1\0\0\0bh" + bytes([n]) + b"ubq" + bytes([n + 1]) + b"0"
    return code + b"h" + bytes([levels]) + b"."


PICKLES = {
    "a far place in the memo": PROTO + b"K\x01r" + struct.pack("<I", 150_000_000) + b".",
    "a far place in the memo, in digits": b"K\x01p150000000\n.",
    "a frame of exabytes": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    "a text of gigabytes": PROTO + b"X" + struct.pack("<I", 4_000_000_000) + b"a.",
    "bytes of exabytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f" + b"a.",
    "a number of gigabytes": PROTO + b"\x8b" + struct.pack("<i", 2_000_000_000) + b"\1.",
    "a number of negative length": PROTO + b"\x8b" + struct.pack("<i", -5) + b"\1.",
    "a number of 5,000 digits": b"L" + b"9" * 5000 + b"L\n.",
    "millions of sets": PROTO + b"(" + b"\x8f" * 4_000_000 + b"l.",
    "millions of marks": PROTO + b"(" * 4_000_000 + b".",
    "many classes": PROTO + b"(" + b"".join(b"cm\nC%d\n" % n for n in range(20_000)) + b"l.",
    "colliding numbers": PROTO
    + b"("
    + b"".join(
        b"\x8a\x0c" + (n * (2**61 - 1)).to_bytes(12, "little") + b"N" for n in range(1 << 33, (1 << 33) + 30_000)
    )
    + b"d.",
    "deep tuples as a key": tuples(200_000)
    + b"N\x86\x85"
    + b"0"
    + PROTO[:0]
    + b"}"
    + b")"
    + b"\x85" * 200_000
    + b"Ns.",
    "deep tuples": tuples(200_000) + b".",
    "deep lists": lists(100_000),
    "a list of itself": PROTO + b"]q\0h\0a.",
    "dicts of each other": PROTO + b"}q\0X\1\0\0\0a}q\1X\1\0\0\0bh\0ss.",
    "a graph of 45 lists": doubled(45),
    "a long text copied a million times": PROTO
    + b"c_codecs\nencode\nq\0X"
    + struct.pack("<I", 1 << 16)
    + b"x" * (1 << 16)
    + b"q\1X\6\0\0\0latin1q\2"
    + b"("
    + b"h\0h\1h\2\x86R" * 100_000
    + b"l.",
    "nothing to take": PROTO + b"\x87.",
    "an end too soon": PROTO + b"(",
    "only a stop": b".",
    "no pickle": b"\xff" * 100,
    "a persistent id that is a number": PROTO + b"K\1Q.",
}


def refused(read: Callable[[], object], match: str | None = None) -> None:
    with pytest.raises(UserError, match=match) as raised:
        read()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("container", ["zip", "deflated", "legacy"])
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if "million" in kind else ()) for kind in PICKLES]
)
def test_a_hostile_pickle_is_refused(tmp_path: Path, kind: str, container: str) -> None:
    data = PICKLES[kind]
    path = tmp_path / "file.pt"
    deflated = zipfile.ZIP_DEFLATED if container == "deflated" else zipfile.ZIP_STORED
    path.write_bytes(LEGACY + data + pickle.dumps([], 2) if container == "legacy" else zipped(data, deflated))
    refused(lambda: load_file(path))


BOMBS = """
import resource, sys, time
from dassl_lite.utils.safe_load import load_file
from dassl_lite.utils.errors import UserError
for path in sys.argv[1:]:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        load_file(path)
        outcome = "loaded"
    except UserError:
        outcome = "refused"
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(outcome, (after - before) // 1024, round(time.process_time() - start), path)
"""


@pytest.mark.slow
def test_no_bomb_takes_memory_or_time(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    paths = []
    for number, data in enumerate(PICKLES.values()):
        paths += [tmp_path / f"{number}.pt", tmp_path / f"{number}.pth"]
        paths[-2].write_bytes(zipped(data))
        paths[-1].write_bytes(LEGACY + data + pickle.dumps([], 2))
    deflated = tmp_path / "deflated.pt"  # 200 kB that unpack to 200 MB
    deflated.write_bytes(zipped(PROTO + b"(" + b"]0" * 100_000_000, zipfile.ZIP_DEFLATED))
    assert deflated.stat().st_size < 1 << 20
    order = tmp_path / "byteorder.pt"
    order.write_bytes(zipped(PROTO + b"N.", zipfile.ZIP_DEFLATED, byteorder=b"\0" * 200_000_000))
    claims = tmp_path / "claims.pth"  # a legacy file of a kB, with many storages of a kB each
    records = b"".join(
        b"(X\7\0\0\0storagectorch\nFloatStorage\nX\4\0\0\0%04dX\3\0\0\0cpuM\xff\x03NtQ" % n for n in range(200)
    )
    claims.write_bytes(LEGACY + PROTO + b"(" + records + b"l." + pickle.dumps([], 2))
    paths += [deflated, order, claims]
    command = [sys.executable, "-c", BOMBS, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == len(paths), done.stderr
    for outcome, mib, seconds, path in lines:
        assert outcome == "refused", path
        assert int(mib) < 700, path  # 3 million sets of 216 bytes would be 650 MB
        assert int(seconds) < 60, path


def test_honest_depth_and_sharing_load() -> None:
    inner: Any = ()
    for _ in range(MAX_DEPTH - 2):
        inner = (inner,)
    shared = [1.0] * 1000
    check_graph({"history": [shared] * 1000, "deep": inner})
    assert scan(pickle.dumps({"deep": inner, "history": [shared] * 1000}, 4))
    for protocol in range(6):
        honest = {"a": [1, 2.5, None, True, b"\xff", "ü", {3, 4}, frozenset({5}), 2**70], "b": ((1,), (2, (3,)))}
        data = pickle.dumps(honest, protocol)
        assert scan(data) == len(data)
        assert scan(b"N." + data + b"N.", 2) == len(data) + 2


@pytest.mark.parametrize("state", ["cycle", pytest.param("45 modules", marks=pytest.mark.slow), "deep"])
def test_a_torchscript_archive_without_end_is_refused(tmp_path: Path, state: str) -> None:
    data = {
        "cycle": PROTO + b"c__torch__.Net\nNet\n)\x81q\0}X\1\0\0\0ah\0sb.",
        "45 modules": many_modules(45),
        "deep": PROTO + b"c__torch__.Net\nNet\nq\0" + b"h\0)\x81}X\1\0\0\0a" * 5000 + b"N" + b"sb" * 5000 + b".",
    }[state]
    path = tmp_path / "net.pt"
    path.write_bytes(zipped(data))
    loaded = load_file(path)
    refused(lambda: tensors_of(loaded), "contain themselves or each other")
    refused(lambda: read(path))


def test_modules_that_are_used_twice_have_their_tensors_under_both_names(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = torch.nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    torch.jit.script(Tied()).save(str(tmp_path / "tied.pt"))
    tensors = tensors_of(load_file(tmp_path / "tied.pt"))
    assert {*tensors} == {"first.weight", "first.bias", "second.weight", "second.bias"}


@pytest.mark.parametrize(
    ("size", "stride"),
    [
        ((10**12,), (0,)),
        ((10**9, 10**9), (0, 0)),
        ((4, -1), (1, 1)),
        ((2,), (-1,)),
        ((1,) * 200, (1,) * 200),
        ((5,), (1,)),
    ],
)
def test_a_tensor_whose_shape_exceeds_its_storage_is_refused(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\4tQ"
    data = PROTO + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage
    data += b"".join(pickle.dumps(value, 2)[2:-1] for value in (0,)) + pickle.dumps(size, 2)[2:-1]
    data += pickle.dumps(stride, 2)[2:-1] + b"\x89Ntr\x64\0\0\0R."
    path = tmp_path / "file.pt"
    path.write_bytes(zipped(data, **{"data/0": b"\0" * 16}))
    refused(lambda: load_file(path))


def test_a_mask_that_repeats_its_storage_loads(tmp_path: Path) -> None:
    torch.save(torch.zeros(1, 77).expand(77, 77), tmp_path / "mask.pt")
    assert load_file(tmp_path / "mask.pt").shape == (77, 77)


# ---- checkpoints that are none ---------------------------------------------------------------------------------------

CHECKPOINTS: dict[str, Any] = {
    "weights alone": {"weight": torch.ones(2)},
    "a state_dict that is a number": {"state_dict": 3},
    "a state_dict that is a list": {"state_dict": [torch.ones(2)]},
    "names that are numbers": {"state_dict": {1: torch.ones(2, 2)}},
    "weights that are texts": {"state_dict": {"weight": "x", "bias": "y"}, "epoch": 1},
    "weights that are none": {"state_dict": {"weight": None, "bias": None}, "epoch": 1},
    "no epoch": {"state_dict": torch.nn.Linear(2, 2).state_dict()},
    "an epoch that is a text": {"state_dict": torch.nn.Linear(2, 2).state_dict(), "epoch": "one"},
    "an optimiser that is a list": {"state_dict": torch.nn.Linear(2, 2).state_dict(), "epoch": 1, "optimizer": [1]},
    "an optimiser without groups": {
        "state_dict": torch.nn.Linear(2, 2).state_dict(),
        "epoch": 1,
        "optimizer": {"state": 1, "param_groups": [1]},
    },
    "a list": [1],
    "a tensor": torch.ones(2),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_file_that_is_not_a_checkpoint_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    torch.save(CHECKPOINTS[kind], tmp_path / "model.pth.tar-1")
    (tmp_path / "checkpoint").write_text("model.pth.tar-1\n")
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    refused(lambda: resume_from_checkpoint(tmp_path, model, optimizer))
    for reader in (load_run_checkpoint, lambda path: load_pretrained_weights(torch.nn.Linear(3, 3), path)):
        try:
            reader(tmp_path / "model.pth.tar-1")
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("layers", [3, {"layer_0": 3}, {"layer_0": {"q_proj": 3}}, {"layer_0": {"q_proj": {"a": 3}}}])
def test_a_malformed_file_of_lora_weights_is_refused(tmp_path: Path, layers: Any) -> None:
    torch.save({"weights": layers, "metadata": {}}, tmp_path / "lora_weights.pt")
    refused(lambda: read_reference(tmp_path / "lora_weights.pt", ["text.0"], {}), "not a CLIP-LoRA file")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.slow
def test_damage_at_random_gives_an_object_or_one_line(tmp_path: Path, legacy: bool) -> None:
    rng = random.Random(8)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    content = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "meta": {"a": [1]}}
    torch.save(content, tmp_path / "right.pt", _use_new_zipfile_serialization=not legacy)
    right = (tmp_path / "right.pt").read_bytes()
    ended = {"loaded": 0, "refused": 0}
    for _ in range(600):
        data = bytearray(right)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        (tmp_path / "file.pt").write_bytes(data)
        try:
            load_file(tmp_path / "file.pt")
            ended["loaded"] += 1
        except UserError:
            ended["refused"] += 1
    assert ended["refused"] > 50


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder"])
def test_only_regular_files_are_read_as_weights(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file.pt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(kind)
    refused(lambda: load_file(path), "not a file|directory")
