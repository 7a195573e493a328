"""Feature files with lying headers, members or strings are refused in one line without extra memory."""

from __future__ import annotations

import contextlib
import io
import os
import random
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_feature_file import arrays

from dassl_lite.data.feature_files import convert_features, read_feature_file
from dassl_lite.models.prompts import fill_templates
from dassl_lite.utils.errors import UserError


def npy(header: str, content: bytes = b"", version: bytes = b"\1\0") -> bytes:
    text = header.encode("latin-1")
    length = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + version + length + text + content


def described(descr: object, shape: object) -> str:
    return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"


MEMBERS = {
    "a shape of terabytes": npy(described("<f4", (10**6, 10**6)), b"\0" * 64),
    "an overflowing shape": npy(described("<f4", (2**62, 2**62))),
    "a negative shape": npy(described("<f4", (-1, 4)), b"\0" * 64),
    "a shape of strings": npy(described("<f4", ("a",))),
    "an invalid shape": npy(described("<f4", None)),
    "too much content": npy(described("<f4", (1, 4)), b"\0" * 64),
    "too little content": npy(described("<f4", (9, 4)), b"\0" * 16),
    "an invalid dtype": npy(described("<q9", (1, 4))),
    "objects": npy(described("|O", (1,)), b"\x80\x02N."),
    "fields": npy(described([("a", "<f4")], (1,)), b"\0" * 4),
    "an enormous dtype": npy(described("|S2147483647", (10,)), b"\0"),
    "code in the header": npy("__import__('os').system('true')"),
    "a deep header": npy("(" * 5000),
    "a header of a megabyte": npy(" " * 1_000_000, version=b"\2\0"),
    "a truncated header": b"\x93NUMPY\1\0\xff\xff{",
    "an invalid version": npy(described("<f4", (1, 4)), b"\0" * 16, b"\7\0"),
    "text": b"hello",
    "empty": b"",
}


def stored(**members: bytes) -> bytes:
    """A valid file with some members replaced."""
    file = io.BytesIO()
    np.savez(file, **{name: values for name, values in arrays().items() if name not in members})
    with zipfile.ZipFile(file, "a") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def refused(path: Path, match: str | None = None) -> None:
    with pytest.raises(UserError, match=match) as raised:
        read_feature_file(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000
    with contextlib.suppress(UserError):  # conversion reads only the arrays of other layouts
        convert_features(path)


@pytest.mark.parametrize(
    "name", ["train_features", "classnames", "test_labels", "logit_scale", "backbone", "text_weights"]
)
@pytest.mark.parametrize("kind", MEMBERS)
def test_a_hostile_member_is_refused_by_name(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "x.npz").write_bytes(stored(**{name: MEMBERS[kind]}))
    refused(tmp_path / "x.npz", f"the array {name}")


@pytest.mark.parametrize("kind", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_member_with_a_compression_that_numpy_never_uses_is_refused(tmp_path: Path, kind: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", kind) as archive:
        for name, values in arrays().items():
            file = io.BytesIO()
            np.save(file, values)
            archive.writestr(f"{name}.npy", file.getvalue())
    refused(tmp_path / "x.npz", "numpy does not write")


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    data = bytearray(stored())
    for signature, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        position = data.find(signature)
        while position >= 0:
            data[position + at] |= 1
            position = data.find(signature, position + 4)
    (tmp_path / "x.npz").write_bytes(data)
    refused(tmp_path / "x.npz", "is encrypted")


TEXTS: dict[str, Any] = {
    "a lone surrogate": np.array(["cat", "\ud800", "dog"]),
    "an invalid code point": np.array([0x63, 0x7FFFFFFF, 0x64], dtype="<u4").view("<U1"),
    "bytes": np.array([b"a", b"b", b"c"]),
    "numbers": np.array([1, 2, 3]),
    "a table": np.array([["a", "b", "c"]]),
    "a single string": np.array("abc"),
    "empty": np.array([], dtype="<U3"),
    "strings of zero length": np.array(["", "", ""], dtype="<U0"),
}


@pytest.mark.parametrize("kind", [kind for kind in TEXTS if kind != "strings of zero length"])
def test_classnames_that_are_not_strings_are_refused(tmp_path: Path, kind: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays(classnames=TEXTS[kind]))
    refused(tmp_path / "x.npz", "the array classnames|classnames")


@pytest.mark.parametrize("template", ["{}{0.__class__}", "{}{0.__class__.__mro__}", "{}{x}", "{}{0!r:>99999999}"])
def test_a_template_is_filled_without_str_format(template: str) -> None:
    assert fill_templates(["cat"], [template]) == [template.replace("{}", "cat")]


@pytest.mark.parametrize("dtype", [np.longdouble, np.complex64, np.int8, "<U3", bool])
def test_features_of_an_unsupported_dtype_are_refused(tmp_path: Path, dtype: Any) -> None:
    np.savez(tmp_path / "x.npz", **arrays(test_features=np.ones((6, 4)).astype(dtype)))
    refused(tmp_path / "x.npz", "test_features must be floating-point")


@pytest.mark.parametrize(
    "labels",
    [np.array([2**63] * 6, dtype=np.uint64), np.array([-(2**62)] * 6), np.array([99999999999] * 6), np.ones(6)],
)
def test_labels_without_a_class_are_refused(tmp_path: Path, labels: Any) -> None:
    np.savez(tmp_path / "x.npz", **arrays(test_labels=labels))
    refused(tmp_path / "x.npz", "test_labels")


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder", "an .npy", "empty", "truncated"])
def test_a_path_that_is_not_an_array_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.npz"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind.startswith("/"):
        path.symlink_to(kind)
    else:
        path.write_bytes({"an .npy": MEMBERS["a shape of terabytes"], "empty": b""}.get(kind, stored()[:2000]))
    refused(path)


READ = """
import resource, sys
from dassl_lite.data.feature_files import read_feature_file
from dassl_lite.utils.errors import UserError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        read_feature_file(path)
        print("read")
    except UserError:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_a_feature_file_cannot_cause_allocations_beyond_its_real_content(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    (tmp_path / "0.npz").write_bytes(stored(train_features=MEMBERS["a shape of terabytes"]))
    (tmp_path / "1.npz").write_bytes(stored(train_features=npy(described("<f4", (2, 60_000_000, 4)), b"\0" * 64)))
    zeros = zipfile.ZipFile(tmp_path / "2.npz", "w", zipfile.ZIP_DEFLATED)  # 600 MB compressed to 600 kB
    with zeros, zeros.open("train_features.npy", "w", force_zip64=True) as file:
        file.write(npy(described("<f4", (1, 37_500_000, 4))))
        for _ in range(600):
            file.write(b"\0" * 1_000_000)
    command = [sys.executable, "-c", READ, *map(str, sorted(tmp_path.glob("*.npz")))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert int(done.stdout) < 200


@pytest.mark.slow
def test_a_randomly_damaged_feature_file_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    rng = random.Random(12)
    right, refusals = stored(), 0
    for _ in range(400):
        data = bytearray(right)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "x.npz").write_bytes(data)
        try:
            read_feature_file(tmp_path / "x.npz")
        except UserError as error:
            refusals += 1
            assert "\n" not in str(error)  # noqa: PT017
    assert refusals > 100


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_written_by_numpy_are_read(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "x.npz", **arrays())
    assert read_feature_file(tmp_path / "x.npz").classnames == ("cat", "dog", "red fox")
