"""Hostile splits, tables, draws and lists are refused in one line, and quickly."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_data_dataset import ROWS, Toy, config, lay_out

from dassl_lite.data import read_split
from dassl_lite.data.imagenet import read_classnames
from dassl_lite.data.layouts import name_folders, parse_lines, parse_mat, read_table
from dassl_lite.data.layouts.table import list_rows, split_rows
from dassl_lite.engine.files.results import config_in, read_results
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import read_json
from dassl_lite.utils.torchtools import newest_checkpoint

MANY_DIGITS = "9" * 5000


class Raw(str):
    """Text to be inserted into JSON verbatim."""


def dumps(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {dumps(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(dumps, value)) + "]"
    return json.dumps(value)


HOSTILE_ROWS = {
    "an enormous label": ["ant/0.png", 99999999999, "ant"],
    "an enormous label as string": ["ant/0.png", "99999999999", "ant"],
    "5,000 digits": ["ant/0.png", Raw(MANY_DIGITS), "ant"],
    "5,000 digits as string": ["ant/0.png", MANY_DIGITS, "ant"],
    "Infinity": ["ant/0.png", Raw("Infinity"), "ant"],
    "NaN": ["ant/0.png", Raw("NaN"), "ant"],
    "1e400": ["ant/0.png", Raw("1e400"), "ant"],
    "a fractional label": ["ant/0.png", 0.5, "ant"],
    "a boolean label": ["ant/0.png", True, "ant"],
    "a null label": ["ant/0.png", None, "ant"],
    "a list as label": ["ant/0.png", [0], "ant"],
    "an object as label": ["ant/0.png", {}, "ant"],
    "a null name": ["ant/0.png", 0, None],
    "a number as name": ["ant/0.png", 0, 7],
    "a list as name": ["ant/0.png", 0, ["ant"]],
    "a name with a lone surrogate": ["ant/0.png", 0, Raw('"\\ud800"')],
    "a null path": [None, 0, "ant"],
    "a number as path": [3, 0, "ant"],
    "a list as path": [["ant"], 0, "ant"],
    "a path with NUL": ["ant\0/0.png", 0, "ant"],
    "a path with a lone surrogate": [Raw('"\\ud800/0.png"'), 0, "ant"],
    "a path of 100,000 characters": ["ant/" + "x" * 100_000, 0, "ant"],
    "a folder of 1,000 characters": ["x" * 1000 + "/0.png", 0, "ant"],
    "a thousand folders": ["x/" * 1000 + "0.png", 0, "ant"],
    "a number as row": 7,
    "a null row": None,
    "a string as row": "ant",
    "an object as row": {"path": 1},
    "a row of four values": ["ant/0.png", 0, "ant", 1],
}


def refused(read: Callable[[], object], match: str | None = None) -> None:
    with pytest.raises(UserError, match=match) as raised:
        read()
    assert len(str(raised.value)) < 10_000
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("kind", HOSTILE_ROWS)
def test_a_hostile_row_of_a_split_is_refused(tmp_path: Path, kind: str, part: str) -> None:
    lay_out(tmp_path)
    lists = {"train": [*ROWS], "val": ROWS[::4], "test": ROWS[1::4]}
    lists[part] = [*lists[part], HOSTILE_ROWS[kind]]  # type: ignore[list-item]
    (tmp_path / "toy" / "split_Toy.json").write_text(dumps(lists))
    refused(lambda: Toy(config(tmp_path)))


@pytest.mark.parametrize(
    "kind", [kind for kind in HOSTILE_ROWS if "name" not in kind]
)  # the names in a draw are not read
def test_a_hostile_row_of_a_draw_is_refused(tmp_path: Path, kind: str) -> None:
    lay_out(tmp_path)
    draw = {"dataset": "Toy", "num_shots": 1, "seed": 1, "train": [*ROWS[::4], HOSTILE_ROWS[kind]], "val": []}
    (tmp_path / "draw.json").write_text(dumps(draw))
    refused(lambda: Toy(config(tmp_path, NUM_SHOTS=1, FEWSHOT_FILE=str(tmp_path / "draw.json"))))


def test_a_draw_that_lacks_a_class_is_refused(tmp_path: Path) -> None:
    lay_out(tmp_path)
    (tmp_path / "draw.json").write_text(json.dumps({"train": ROWS[4:], "val": []}))
    cfg = config(tmp_path, NUM_SHOTS=1, FEWSHOT_FILE=str(tmp_path / "draw.json"))
    refused(lambda: Toy(cfg), r"draw\.json.*no training image has label 0")


def test_a_split_without_test_images_is_refused_unless_nothing_is_tested(tmp_path: Path) -> None:
    lay_out(tmp_path, test=[])
    refused(lambda: Toy(config(tmp_path)), "has no test images")
    cfg = config(tmp_path)
    cfg.TEST.NO_TEST = True
    assert len(Toy(cfg).train_x) == 12


HOSTILE_JSON = {
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"train":' * 100_000,
    "nested and balanced": b'{"train": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "not UTF-8": b'{"train": "\xff\xfe"}',
    "UTF-16": '{"train": []}'.encode("utf-16"),
    "nothing": b"",
    "NUL": b"\0" * 1000,
    "a number": MANY_DIGITS.encode(),
    "Infinity": b"Infinity",
    "a string": b'"train"',
    "null": b"null",
    "invalid lists": b'{"train": 1, "val": {"a": 1}, "test": "x"}',
    "objects": b'{"train": {"a": 1}, "val": {}, "test": {}}',
    "a control character": b'{"train": ["\x1b"]}',
}


@pytest.mark.parametrize("reader", ["split", "draw", "results", "class names"])
@pytest.mark.parametrize("kind", HOSTILE_JSON)
def test_hostile_json_is_refused_by_every_reader(tmp_path: Path, kind: str, reader: str) -> None:
    lay_out(tmp_path)
    path = tmp_path / "results.json"
    path.write_bytes(HOSTILE_JSON[kind])
    readers: dict[str, Callable[[], object]] = {
        "split": lambda: read_split(path, "images"),
        "draw": lambda: Toy(config(tmp_path, NUM_SHOTS=1, FEWSHOT_FILE=str(path))),
        "results": lambda: config_in(read_results(tmp_path) or {}, tmp_path),
        "class names": lambda: name_folders(["ant", "bee"], path),
    }
    refused(readers[reader])


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"ant": "Ant"}')
    assert name_folders(["ant"], tmp_path / "a.json")[0].name == "Ant"


TABLE = "path,label,classname,split\n"
HOSTILE_TABLES = {
    "an enormous label": b"path,label\na.png,99999999999\n",
    "5,000 digits": b"path,label\na.png," + MANY_DIGITS.encode() + b"\n",
    "5,000 digits as a name": b"path,label,classname\na.png,x," + MANY_DIGITS.encode() + b"\n",
    "a superscript": "path,label,classname\na.png,²,ant\n".encode(),
    "NUL": b"path,classname\na\0b.png,ant\n",
    "only NUL": b"\0" * 10_000,
    "not UTF-8": b"path,classname\n\xff.png,ant\n",
    "UTF-16 cut within a character": "path,classname\na.png,ant\n".encode("utf-16")[:-1],
    "an endless first line": b"path," + b"x" * 1_000_000,
    "an endless cell": b"path,classname\na.png," + b"x" * 1_000_000,
    "an unclosed quote": b'path,classname\n"a.png,ant\n' + b"b.png,bee\n" * 1000,
    "nothing": b"",
    "only a header": b"path,classname\n",
    "two columns with one meaning": b"path,path,classname\na,b,c\n",
    "an archive": b"PK\x03\x04" + bytes(range(256)) * 10,
}


@pytest.mark.parametrize("kind", HOSTILE_TABLES)
def test_a_hostile_table_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(HOSTILE_TABLES[kind])
    refused(lambda: list_rows(read_table(path), tmp_path))


def test_class_names_made_of_many_digits_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f"path,classname\na.png,{MANY_DIGITS}\nb.png,2\nc.png,bee\n")
    assert {item.label: item.classname for item in list_rows(read_table(path), tmp_path)}[0] == "2"


def test_a_huge_label_is_refused_without_allocating_a_list_of_that_length(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("path,label\na.png,1000000001\n")
    refused(lambda: list_rows(read_table(path), tmp_path), "whole number")
    lay_out(tmp_path, train=[*ROWS, ["ant/0.png", 10**9, "far"]])
    refused(lambda: Toy(config(tmp_path)), "no training image has label 3")  # immediately


# ---- paths that are not regular files --------------------------------------------------------------------------------

READERS: dict[str, Callable[[Path], object]] = {
    "table": read_table,
    "split": lambda path: read_split(path, "images"),
    "list": lambda path: parse_lines(path, str),
    "wnids": read_classnames,
    ".mat": lambda path: parse_mat(path, "labels", str),
    "JSON": read_json,
    "JSON draw": lambda path: Toy(config(path.parent, NUM_SHOTS=1, FEWSHOT_FILE=str(path))),
    "pickled draw": lambda path: Toy(config(path.parent, NUM_SHOTS=1, FEWSHOT_FILE=str(path))),
    "listed draw": lambda path: Toy(config(path.parent, NUM_SHOTS=1, FEWSHOT_FILE=str(path))),
}
DRAWS = {"pickled draw": "draw.pkl", "listed draw": "draw.jsonl"}


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder", "sparse"])
@pytest.mark.parametrize("reader", READERS)
def test_only_regular_files_of_limited_size_are_read(tmp_path: Path, reader: str, kind: str) -> None:
    lay_out(tmp_path)
    path = tmp_path / DRAWS.get(reader, "file.csv")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    else:
        path.symlink_to(kind)
    with pytest.raises((UserError, OSError), match=r"not a file|directory|more than the"):
        READERS[reader](path)


def test_a_checkpoint_pointer_that_is_not_a_file_name_is_refused(tmp_path: Path) -> None:
    for content in (b"x" * 10_000, b"\xff\xfe", b"../a\0b", b""):
        (tmp_path / "checkpoint").write_bytes(content)
        refused(lambda: newest_checkpoint(tmp_path))


# ---- random damage ---------------------------------------------------------------------------------------------------


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few bytes replaced, removed, repeated or inserted."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.choice((1, 1, 2, 8, 40)))
        what = rng.randrange(4)
        if what == 0:
            changed[at:end] = rng.randbytes(end - at)
        elif what == 1:
            del changed[at:end]
        elif what == 2:
            changed[at:at] = changed[at:end] * rng.choice((1, 2, 50))
        else:
            changed[at:at] = rng.choice((b"null", b"[", b"]", b"{", b"1e999", b"-1", b'"', b"\0", b",", b"\n", b"NaN"))
    return bytes(changed)


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["split", "table", "draw", "pickle"])
def test_a_randomly_damaged_listing_is_read_or_refused_in_one_line(tmp_path: Path, reader: str) -> None:
    rng = random.Random(10)
    lay_out(tmp_path)
    split = (tmp_path / "toy" / "split_Toy.json").read_bytes()
    draw = json.dumps({"dataset": "Toy", "num_shots": 1, "train": ROWS[::4], "val": []}).encode()
    table = (
        "path,label,classname,split\n" + "".join(f"{path},{label},{name},train\n" for path, label, name in ROWS)
    ).encode()
    stored = pickle.dumps({"train": [struct.pack("<I", 7), *map(list, ROWS)], "val": []})
    path = tmp_path / ("draw.pkl" if reader == "pickle" else "file.csv")
    ended: set[str] = set()
    for _ in range(400):
        try:
            if reader == "split":
                (tmp_path / "toy" / "split_Toy.json").write_bytes(mutated(split, rng))
                Toy(config(tmp_path))
            elif reader == "table":
                path.write_bytes(mutated(table, rng))
                rows = read_table(path)
                split_rows(rows, list_rows(rows, tmp_path))
            else:
                path.write_bytes(mutated(draw if reader == "draw" else stored, rng))
                Toy(config(tmp_path, NUM_SHOTS=1, FEWSHOT_FILE=str(path)))
            ended.add("read")
        except UserError as error:
            ended.add("refused" if len(str(error)) < 10_000 else "too long")
    assert ended <= {"read", "refused"}
    assert "refused" in ended
