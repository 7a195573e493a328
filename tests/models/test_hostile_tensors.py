"""Weights whose shapes and metadata lie: every alteration gives a model or one line, in the memory of the file."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dassl_lite.models import load_clip
from dassl_lite.models.clip import preprocessing
from dassl_lite.models.openai_format import architecture_of, build, read
from dassl_lite.utils.errors import UserError


@pytest.fixture(scope="module")
def tiny(golden: Any) -> Callable[[str], dict[str, torch.Tensor]]:
    """The tensors of a tiny CLIP in OpenAI's layout: "vit" or "rn"."""
    return lambda kind: dict(golden.tiny_clip.state_dict(kind, 0))


def model_of(path: Path) -> torch.nn.Module:
    tensors, metadata = read(path)
    return build(tensors, architecture_of(tensors, metadata, str(path)), torch.float32, str(path))


def refused(read: Callable[[], object]) -> None:
    with pytest.raises(UserError) as raised:
        read()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


METADATA = {
    "image_size": ["", "x", "0", "-1", "1e3", "99999999999", "9" * 5000, "4097"],
    "text_heads": ["", "0", "-4", "3", "99999999", "1" * 5000],
    "vision_head_width": ["0", "-64", "99999999999", "7", "none"],
    "quick_gelu": ["maybe", "1.5", ""],
}


@pytest.mark.slow_after(4)
@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in METADATA.items() for value in values])
def test_metadata_that_make_no_model_are_refused(tmp_path: Path, tiny: Any, key: str, value: str) -> None:
    save_file(tiny("vit"), tmp_path / "x.safetensors", {key: value})
    refused(lambda: model_of(tmp_path / "x.safetensors"))


SHAPES: dict[str, list[tuple[int, ...]]] = {
    "visual.conv1.weight": [(), (0,), (16,), (16, 3), (0, 3, 8, 8), (16, 3, 0, 0), (1, 1, 1, 1), (16, 3, 8)],
    "visual.class_embedding": [(), (0,), (1, 1)],
    "visual.positional_embedding": [(), (0, 0), (0, 16), (1,), (1, 1), (10**6, 0), (2, 16)],
    "visual.proj": [(), (0, 0), (1,), (3, 3)],
    "positional_embedding": [(), (0, 0), (5,), (10**9, 0), (1, 1)],
    "token_embedding.weight": [(), (0, 0), (10**9, 0), (3,), (1, 1)],
    "ln_final.weight": [(), (0,), (1,), (100_000,), (2, 2)],
    "text_projection": [(), (0, 0), (4,), (1, 10**5)],
    "logit_scale": [(0,), (5,)],
    "input_resolution": [(2,), (0,)],
    "token_embedding.rows": [(), (3,), (0,)],
    "transformer.resblocks.9999.x": [(1,)],
    "nonsense": [(1,)],
}


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("kind", ["vit", "rn"])
@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name, shapes in SHAPES.items() for shape in shapes])
def test_shapes_that_make_no_model_are_refused(
    tmp_path: Path, tiny: Any, kind: str, name: str, shape: tuple[int, ...]
) -> None:
    save_file({**tiny(kind), name: torch.zeros(shape)}, tmp_path / "x.safetensors")
    torch.save({**tiny(kind), name: torch.zeros(shape)}, tmp_path / "x.pt")
    for path in (tmp_path / "x.safetensors", tmp_path / "x.pt"):
        refused(lambda path=path: model_of(path))


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0, 1e30])
def test_an_invalid_resolution_is_refused(tmp_path: Path, tiny: Any, value: float) -> None:
    save_file({**tiny("vit"), "input_resolution": torch.tensor(value)}, tmp_path / "x.safetensors")
    refused(lambda: model_of(tmp_path / "x.safetensors"))


@pytest.mark.slow
def test_rows_out_of_the_table_are_refused(tmp_path: Path, tiny: Any) -> None:
    tensors = tiny("vit")
    width = tensors["ln_final.weight"].shape[0]
    for row in (-(10**9), 10**9):
        rows = {"token_embedding.rows": torch.tensor([row]), "token_embedding.weight": torch.zeros(1, width)}
        save_file({**tensors, **rows}, tmp_path / "x.safetensors")
        refused(lambda: model_of(tmp_path / "x.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "rn"])
def test_lacking_any_tensor_is_refused(tmp_path: Path, tiny: Any, kind: str) -> None:
    tensors = tiny(kind)
    for lacking in tensors:
        save_file({name: tensor for name, tensor in tensors.items() if name != lacking}, tmp_path / "x.safetensors")
        if not lacking.endswith(("input_resolution", "context_length", "vocab_size", "attn_mask")):
            refused(lambda: model_of(tmp_path / "x.safetensors"))


HEADERS = [
    b"",
    b"\xff" * 8,
    struct.pack("<Q", 10**12) + b"{}",
    struct.pack("<Q", 2) + b"{}",
    struct.pack("<Q", 3) + b"[1]",
    struct.pack("<Q", 100_000) + b"[" * 100_000,
    struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'[:60],
]


@pytest.mark.parametrize("data", HEADERS, ids=range(len(HEADERS)))
def test_an_invalid_header_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    refused(lambda: read(tmp_path / "x.safetensors"))


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("dtype", ["F8_E5M2", "U16", "U64", "BOOL", "C64", "F4", "nonsense", "I64"])
def test_another_kind_of_numbers_gives_a_model_or_one_line(tmp_path: Path, tiny: Any, dtype: str) -> None:
    save_file(tiny("vit"), tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for entry in header.values():
        if isinstance(entry, dict) and "dtype" in entry:
            entry["dtype"] = dtype
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    refused(lambda: model_of(tmp_path / "x.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "rn"])
def test_altered_headers_give_a_model_or_one_line(tmp_path: Path, tiny: Any, kind: str) -> None:
    rng = random.Random(9)
    path = tmp_path / "x.safetensors"
    save_file(tiny(kind), path, {"image_size": "32", "text_heads": "1"})
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    right = json.loads(data[8 : 8 + length])
    numbers = (0, 1, 2, 3, 7, 64, 10**6, 2**31, 2**63, -1, 1.5, None, "1", True)
    outcomes = {"model": 0, "refused": 0}
    for _ in range(150):
        header = json.loads(json.dumps(right))
        name = rng.choice(list(header))
        what = rng.randrange(5)
        if name == "__metadata__":
            header[name][rng.choice(list(METADATA))] = rng.choice(["0", "1", "-1", "7", "64", "x", "", "9" * 30])
        elif what == 0:
            shape = header[name]["shape"]
            if shape:
                shape[rng.randrange(len(shape))] = rng.choice(numbers)
        elif what == 1:
            rng.shuffle(header[name]["shape"])
        elif what == 2:
            header[name]["dtype"] = rng.choice(["F16", "I32", "F32", "BOOL", "U8"])
        elif what == 3:
            header[name + rng.choice(["x", ".0", ".weight"])] = header.pop(name)
        else:
            header[name]["data_offsets"][rng.randrange(2)] += rng.choice([-4, 4, 10**12])
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
        try:
            model_of(path)
            outcomes["model"] += 1
        except UserError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 30


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
def test_only_regular_files_are_read_as_a_backbone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.safetensors"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(kind)
    for reader in (lambda: load_clip(str(path)), lambda: preprocessing(str(path)), lambda: read(path)):
        refused(reader)
