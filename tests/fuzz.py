"""Mutated input for the tools: every one must end with exit code 0, or with 2 and one line, in bounded time and memory.

    python tests/fuzz.py --count 5000 --seed 1 --jobs 2

Each case is made by its seed and number alone; what fails is printed with the command that repeats it. The test of the
suite, tests/tools/test_hostile_input.py, makes the same kinds of cases with hypothesis.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SECONDS, MEMORY = 60, 2 << 30  # of a case; the memory is what it may add to the process
METHODS = ("TaskRes", "CoOp", "CoCoOp", "CLIP_Adapter", "TipAdapter", "TipAdapterF", "LinearProbe", "CLIPLoRA")
METHODS += ("KgCoOp", "ProGrad", "TCP", "TwoStage", "MMA")
CLASSES = ("crane", "yo-yo", "golden retriever")

# ---- hostile values --------------------------------------------------------------------------------------------------

TEXTS = (
    *(
        "",
        " ",
        "0",
        "-1",
        "1",
        "2",
        "1e5",
        "007",
        "1e38",
        "1e39",
        "1e-400",
        "1e999",
        "nan",
        "inf",
        "-inf",
        "None",
        "True",
    ),
    *("9" * 400, "9" * 5000, "-" * 20000, "(" * 3000, "[" * 3000, "{[]:1}", "{'a': 1}", "{1, 2}", "b'x'", "1j", "..."),
    *(
        "(1, 2)",
        "[1, 'a', None]",
        "((1, 2), (3,))",
        "(('a', 'b'),)",
        "[[[[]]]]",
        "()",
        "0x" + "f" * 4000,
        "1_000",
        "-0.0",
    ),
    *(
        "{}",
        "{} {}",
        "{0.__class__}",
        "{x}",
        "%s",
        "x" * 300,
        "x" * 100_000,
        "../..",
        "/",
        "/dev/zero",
        "/dev/null",
        ".",
    ),
    *("\0", "a\0b", "\x1b[2J", "\u202e", "\ud800", "é" * 200, "2001-99-99", "2001-01-01", "!!int abc", "&a [*a]", "*a"),
    *("true", "no", "~", "null", "4294967296", "18446744073709551616", "99999999999", "1.5", "0.1", "100", "1000000"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 10**6, 10**11, 2**63, 2**64, 10**400, 0.0, -0.5, 1e38, 1e308, float("nan")),
    *(float("inf"), "", "x", "0", "1e5", "\0", "\ud800", "x" * 300, [], {}, [[]], [None], {"a": 1}, [1, "a", None]),
)
YAML = (
    *("null", "3", "2001-01-01", "2001-99-99", "!!int abc", "!!float x", "!!bool 7", "!!binary aGVsbG8=", "!!set {a}"),
    *(
        "!!timestamp abc",
        "!!python/object:os.system {}",
        "[" * 500,
        "- " * 500,
        "? a",
        "{[]: 1}",
        "&a [*a]",
        "*nowhere",
    ),
    *(
        "!!omap [a: 1]",
        "<<: 3",
        '"\\0"',
        '"\\ud800"',
        "'" * 3,
        "0o7",
        "1:30",
        "9" * 400,
        "0x" + "F" * 5000,
        ".nan",
        ".inf",
    ),
)


NUMBERS = (
    *(
        "0",
        "-1",
        "1",
        "2",
        "3",
        "0.0",
        "1.0",
        "0.5",
        "-0.5",
        "1e-300",
        "1e-45",
        "1e-8",
        "1e5",
        "1e20",
        "1e37",
        "1e38",
        "1e39",
    ),
    *("1e300", "1e999", "-1e38", "7", "31", "32", "33", "77", "100", "1000", "4096", "65536", "1000000", "10000000"),
    *("2147483647", "2147483648", "4294967295", "4294967296", "9223372036854775807", "9223372036854775808", "9" * 400),
)
LISTS = (
    *(
        "()",
        "[]",
        "(1,)",
        "(0,)",
        "(-1,)",
        "(1, 2)",
        "(2, 1)",
        "(0.5, 0.1)",
        "(0.1, 0.5)",
        "(1, 'a')",
        "(1e38, 1e38)",
        "((1, 2),)",
    ),
    *(
        "((1, 2), (4, 3))",
        "((0, 0),)",
        "((1,),)",
        "(1, 2, 3)",
        "[0, 0, 0]",
        "[1e-45, 1e-45, 1e-45]",
        "[0.5, 0.5, 0.5]",
        "[None]",
    ),
    *(
        "('random_crop',)",
        "['cutout', 'normalize']",
        "random_flip,gaussian_blur",
        "('q',)",
        "('x', 'x')",
        "(True,)",
        "(4096, 1)",
    ),
)


def value_of(stage: Stage, key: str, rng: random.Random) -> str:
    """A value for a key as it is typed, mostly of the key's own type."""
    default = stage.keys.get(key, "")
    if rng.random() < 0.25:
        return text(rng)
    if isinstance(default, bool):
        return rng.choice(("True", "False"))
    if isinstance(default, int | float):
        return rng.choice(NUMBERS)
    return rng.choice(LISTS) if isinstance(default, list | tuple) else text(rng)


def text(rng: random.Random) -> str:
    """A value as it is typed."""
    return (
        rng.choice(TEXTS)
        if rng.random() < 0.8
        else str(rng.randint(-(10 ** rng.randint(0, 20)), 10 ** rng.randint(0, 20)))
    )


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes that were flipped, cut out, repeated or put in."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content)) if content else 0
        at = min(at, rng.randint(0, 400)) if rng.random() < 0.5 else at  # headers matter more than what follows
        what = rng.randint(0, 4)
        if what == 0 and content:
            content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
        elif what == 1:
            content = content[:at]
        elif what == 2:
            content = content[:at] + content[at + rng.randint(1, 50) :]
        elif what == 3:
            content = content[:at] + rng.choice(TEXTS)[:1000].encode("utf-8", "surrogatepass") + content[at:]
        else:
            content = content[:at] + content[at : at + 100] * rng.randint(1, 20) + content[at:]
    return content


def altered(tree: Any, rng: random.Random) -> Any:
    """JSON with one of its values or keys replaced."""
    if rng.random() < 0.1 or not isinstance(tree, dict | list) or not tree:
        return rng.choice(VALUES)
    if isinstance(tree, list):
        at = rng.randrange(len(tree))
        if rng.random() < 0.2:
            return tree[:at] + tree[at + 1 :]
        return [*tree[:at], altered(tree[at], rng), *tree[at + 1 :]]
    key = rng.choice(sorted(tree, key=str))
    tree = dict(tree)
    value = tree.pop(key)
    if rng.random() < 0.2:
        return tree
    return {**tree, (rng.choice(TEXTS) if rng.random() < 0.1 else key): altered(value, rng)}


# ---- what is mutated -------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """A folder with sound input of every kind: images, a table, features, weights, a run."""

    folder: Path
    keys: dict[str, Any] = field(default_factory=dict)  # config key -> default

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def weights(self) -> Path:
        return self.folder / "vit.safetensors"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def base(self, method: str = "TaskRes", data: Path | None = None) -> list[str]:
        """A command of train.py that takes well under a second."""
        flags = ["--trainer", method, "--data", str(data or self.images)]
        if data is None or data.suffix != ".npz":
            flags += ["--backbone", str(self.weights)]
        return [*flags, "--shots", "2", "--output-dir", "out", *QUICK]


QUICK = (
    *("OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0", "DATALOADER.TRAIN_X.BATCH_SIZE", "4", "VERBOSE", "False"),
    *("DATASET.FEATURES.VIEWS", "1", "TRAINER.CLIPLoRA.STEPS_PER_SHOT", "1", "TRAINER.COOP.N_CTX", "4"),
    *("TRAINER.TwoStage.STEPS_PER_SHOT", "2"),
)


def make_stage(folder: Path) -> Stage:
    """Draw, train and write everything that cases mutate."""
    import importlib.util

    import numpy as np
    from PIL import Image
    from safetensors.torch import save_file

    from dassl_lite.config.check import leaves
    from dassl_lite.engine.build import full_config
    from dassl_lite.engine.plugins import load_plugins

    load_plugins()
    stage = Stage(folder, leaves(full_config()))
    if (folder / "complete").exists():
        return stage
    rng = np.random.default_rng(0)
    rows = ["path,class,split"]
    for part in ("train", "val", "test"):
        for name in CLASSES:
            (stage.images / part / name).mkdir(parents=True)
            for number in range(3):
                path = stage.images / part / name / f"{number}.png"
                Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(path)
                rows.append(f"images/{part}/{name}/{number}.png,{name},{part}")
    (folder / "table.csv").write_text("\n".join(rows))
    spec = importlib.util.spec_from_file_location("golden_tiny_clip", HERE / "golden" / "tiny_clip.py")
    assert spec is not None
    assert spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    save_file(tiny.state_dict("vit", 0), stage.weights)
    for words in (
        ["train", *(str(stage.run) if word == "out" else word for word in stage.base())],
        ["extract", "--data", str(stage.images), "--backbone", str(stage.weights), "--views", "1", *NO_WORKERS],
    ):
        words = [*words[:1], *(["--output", str(folder / "features.npz")] if words[0] == "extract" else []), *words[1:]]
        code, said = call(words)
        assert code == 0, said
    (folder / "complete").touch()
    return stage


NO_WORKERS = ("DATALOADER.NUM_WORKERS", "0")


def options(stage: Stage, rng: random.Random, folder: Path) -> list[str]:
    """Config keys on the command line."""
    words = ["train", *(["--allow-new-keys"] if rng.random() < 0.1 else []), *stage.base(rng.choice(METHODS))]
    for _ in range(rng.randint(1, 3)):
        key = rng.choice(sorted(stage.keys))
        if key == "OPTIM.MAX_EPOCH" or key.endswith("STEPS_PER_SHOT"):  # a long run is no fault
            value = rng.choice([value for value in (*TEXTS, *NUMBERS) if value not in LONG_RUNS])
        else:
            value = value_of(stage, key, rng)
        if rng.random() < 0.1:
            key = key[: rng.randint(0, len(key))] + rng.choice(("", ".", "X", "\0", ".X.Y", "x" * 300))
        words += [key, value.replace("\ud800", "\udc80")]
    return words


LONG_RUNS = ("100", "1000", "4096", "65536", "1000000", "1e5", "1_000")


def yaml_file(stage: Stage, rng: random.Random, folder: Path) -> list[str]:
    """A method's or a dataset's yaml."""
    lines = ["_BASE_: base.yaml"] if rng.random() < 0.3 else []
    (folder / "base.yaml").write_text("OPTIM: {LR: 0.1, NAME: sgd}\n")
    for _ in range(rng.randint(1, 3)):
        *parents, leaf = (key := rng.choice(sorted(stage.keys))).split(".")
        value = (
            rng.choice(YAML)
            if rng.random() < 0.4
            else value_of(stage, key, rng).replace("\0", "\\0").replace("\ud800", "")
        )
        if leaf in ("MAX_EPOCH", "STEPS_PER_SHOT") and value in LONG_RUNS:
            continue
        lines.append("".join(f"{parent}: {{" for parent in parents) + f"{leaf}: {value}" + "}" * len(parents))
    if rng.random() < 0.15:
        lines.append(f"_BASE_: {rng.choice(YAML)}")
    if rng.random() < 0.1:
        lines = ["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))]
    content = "\n".join(lines).encode()
    (folder / "x.yaml").write_bytes(damaged(content, rng) if rng.random() < 0.3 else content)
    flag = rng.choice(("--config-file", "--dataset-config-file"))
    more = ["--allow-new-keys"] if rng.random() < 0.2 else []
    return ["train", flag, "x.yaml", *more, *stage.base(rng.choice(METHODS))]


def flags(stage: Stage, rng: random.Random, folder: Path) -> list[str]:
    """Flags of the tools."""
    tool, words = rng.choice(
        (
            ("train", stage.base(rng.choice(METHODS))),
            ("eval", ["--model-dir", str(stage.run), *NO_WORKERS]),
            (
                "extract",
                ["--data", str(stage.images), "--backbone", str(stage.weights), "--output", "f.npz", *NO_WORKERS],
            ),
            ("show", ["--data", str(stage.images), "--out", "sheet.png"]),
            ("report", [str(stage.run)]),
        )
    )
    values = [at for at, word in enumerate(words) if at and words[at - 1].startswith("--")]
    for _ in range(rng.randint(1, 2)):
        if values and rng.random() < 0.6:
            words[rng.choice(values)] = text(rng).replace("\ud800", "\udc80") or "x"  # nothing means the demo dataset
        else:
            flag = rng.choice(parser_of(tool))
            words[:0] = [flag, *([text(rng).replace("\ud800", "\udc80")] if rng.random() < 0.8 else [])]
    return [tool, *words]


def json_file(stage: Stage, rng: random.Random, folder: Path) -> list[str]:
    """A run's results, a split, a draw, class names."""
    which = rng.choice(("results", "split", "draw", "classnames"))
    if which == "results":
        shutil.copytree(stage.run, folder / "run")
        spoil(folder / "run" / "results.json", rng)
        return rng.choice((["eval", "--model-dir", "run", *NO_WORKERS], ["report", "run"], resumed(stage)))
    shutil.copytree(stage.images, folder / "images")
    images = [[f"train/{name}/{i}.png", label, name] for label, name in enumerate(CLASSES) for i in range(3)]
    if which == "classnames":
        (folder / "images" / "classnames.json").write_text(json.dumps({name: name.upper() for name in CLASSES}))
        spoil(folder / "images" / "classnames.json", rng)
    elif which == "split":
        (folder / "images" / "split.json").write_text(json.dumps({"train": images, "val": images, "test": images}))
        spoil(folder / "images" / "split.json", rng)
    else:
        draw = {"dataset": "ImageFolder", "num_shots": 2, "seed": 1, "train": images[:2], "val": []}
        (folder / "draw.json").write_text(json.dumps(draw))
        spoil(folder / "draw.json", rng)
        return ["train", *stage.base(data=folder / "images"), "DATASET.FEWSHOT_FILE", "draw.json"]
    return ["train", *stage.base(data=folder / "images")]


def resumed(stage: Stage) -> list[str]:
    return ["train", "--resume", "run", *(word for word in stage.base() if word not in ("--output-dir", "out"))]


def spoil(path: Path, rng: random.Random) -> None:
    """Alter a JSON file in its structure or its bytes."""
    content = path.read_bytes()
    if rng.random() < 0.7:
        tree = json.loads(content)
        for _ in range(rng.randint(1, 3)):
            tree = altered(tree, rng)
        content = json.dumps(tree).encode()
    else:
        content = rng.choice((damaged(content, rng), b"[" * 100_000, b'{"a":' * 50_000, b"9" * 6000, b"\xff\xfe", b""))
    path.write_bytes(content)


def csv_file(stage: Stage, rng: random.Random, folder: Path) -> list[str]:
    """A table of images."""
    rows = [line.split(",") for line in (stage.folder / "table.csv").read_text().splitlines()]
    rows = [[*row, "label" if at == 0 else str(CLASSES.index(row[1]))] for at, row in enumerate(rows)]
    for _ in range(rng.randint(1, 4)):
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = text(rng).replace("\ud800", "")
    delimiter = rng.choice((",", ",", ",", ";", "\t"))
    content = "\n".join(delimiter.join(row) for row in rows).encode()
    table = folder / f"table{rng.choice(('.csv', '.csv', '.tsv'))}"
    table.write_bytes(damaged(content, rng) if rng.random() < 0.3 else content)
    if not (folder / "images").exists():
        (folder / "images").symlink_to(stage.images)
    return ["train", *stage.base(data=table)]


HOSTILE_ARRAYS: tuple[Callable[[Any, random.Random], Any], ...] = (
    lambda array, rng: array.ravel()[:0],
    lambda array, rng: array[None],
    lambda array, rng: array.ravel(),
    lambda array, rng: array.astype("U"),
    lambda array, rng: array.astype("S"),
    lambda array, rng: array.repeat(3, 0) if array.ndim else array,
    lambda array, rng: array.ravel()[:1].astype("U").repeat(array.size).reshape(array.shape),
    lambda array, rng: array.ravel()[:1].repeat(array.size).reshape(array.shape),
    lambda array, rng: array[..., :1] if array.ndim else array,
    lambda array, rng: array.ravel()[:1].astype("O").astype("U").repeat(3),
    lambda array, rng: array * 0 if array.dtype.kind in "fiu" else array,
    lambda array, rng: (
        (array.astype("f8") * 0 + rng.choice((float("nan"), float("inf"), 1e38, -1, 1e11, 0.5)))
        if array.dtype.kind in "fiu"
        else array
    ),
    lambda array, rng: (
        (array.astype("i8") * 0 + rng.choice((-1, 10**11, 7, 2**62))) if array.dtype.kind in "fiu" else array
    ),
    lambda array, rng: array.astype("U").ravel()[:0].tolist() + [text(rng).replace("\0", "")] * rng.randint(0, 4),
)


def npz_file(stage: Stage, rng: random.Random, folder: Path) -> list[str]:
    """A file of features."""
    import numpy as np

    path = folder / "f.npz"
    if rng.random() < 0.4:
        path.write_bytes(damaged((stage.folder / "features.npz").read_bytes(), rng))
    else:
        arrays = dict(np.load(stage.folder / "features.npz"))
        for _ in range(rng.randint(1, 3)):
            name = rng.choice(sorted(arrays))
            array = arrays[name]
            arrays[name] = np.asarray(rng.choice(HOSTILE_ARRAYS)(array, rng))
            if rng.random() < 0.2:
                del arrays[name]
            if rng.random() < 0.1:
                arrays[rng.choice(TEXTS)[:50].replace("/", "_").replace("\0", "_").replace("\ud800", "_") or "x"] = (
                    array
                )
            if not arrays:
                break
        np.savez(path, **arrays)
    if rng.random() < 0.3:
        return ["extract", "--convert", str(path), "--output", "converted.npz"]
    return ["train", *stage.base(rng.choice(METHODS), path)]


def weights_file(stage: Stage, rng: random.Random, folder: Path) -> list[str]:
    """Weights of a backbone, and checkpoints."""
    import torch
    from safetensors.torch import load_file, save_file

    if rng.random() < 0.4:
        shutil.copytree(stage.run, folder / "run")
        (folder / "run" / "results.json").unlink() if rng.random() < 0.3 else None
        path = rng.choice(sorted((folder / "run").glob("*/model*.pth.tar*")))
        if rng.random() < 0.7:
            state = torch.load(path, weights_only=False)
            for _ in range(rng.randint(1, 3)):
                state = altered(state, rng)
            torch.save(state, path)
        else:
            path.write_bytes(damaged(path.read_bytes(), rng))
        return rng.choice((["eval", "--model-dir", "run", *NO_WORKERS], resumed(stage)))
    path = folder / "w.safetensors"
    if rng.random() < 0.4:
        tensors = load_file(stage.weights)
        for _ in range(rng.randint(1, 3)):
            name = rng.choice(sorted(tensors))
            tensor = tensors.pop(name)
            kept = rng.choice((name, name, name, name + ".x", "x", rng.choice(sorted(tensors))))
            tensors[kept] = rng.choice(HOSTILE_TENSORS)(tensor).contiguous()
        save_file(tensors, path)
    else:
        content = stage.weights.read_bytes()
        length = int.from_bytes(content[:8], "little")
        if rng.random() < 0.6:
            header = json.loads(content[8 : 8 + length])
            for _ in range(rng.randint(1, 3)):
                header = altered(header, rng)
            encoded = json.dumps(header).encode()
            content = len(encoded).to_bytes(8, "little") + encoded + content[8 + length :]
        path.write_bytes(damaged(content, rng) if rng.random() < 0.6 else content)
    return ["train", *stage.base(), "MODEL.BACKBONE.NAME", "w.safetensors"]


HOSTILE_TENSORS: tuple[Callable[[Any], Any], ...] = (
    lambda tensor: tensor.flatten(),
    lambda tensor: tensor[None],
    lambda tensor: tensor.half(),
    lambda tensor: tensor.long(),
    lambda tensor: tensor.double() * float("nan"),
    lambda tensor: tensor.flatten()[:0],
    lambda tensor: tensor.flatten()[:1].reshape(()),
    lambda tensor: tensor.repeat_interleave(2, 0) if tensor.dim() else tensor,
    lambda tensor: tensor.t() if tensor.dim() == 2 else tensor * 1e38,
    lambda tensor: tensor.reshape(*tensor.shape, 1).transpose(0, -1),
)


KINDS: dict[str, Callable[[Stage, random.Random, Path], list[str]]] = {
    "options": options,
    "yaml": yaml_file,
    "flags": flags,
    "json": json_file,
    "csv": csv_file,
    "npz": npz_file,
    "weights": weights_file,
}

# ---- running a case --------------------------------------------------------------------------------------------------


def tools() -> dict[str, Any]:
    from dassl_lite.tools import eval as evaluation
    from dassl_lite.tools import extract, report, show, train

    return {"train": train, "eval": evaluation, "extract": extract, "report": report, "show": show}


def parser_of(tool: str) -> list[str]:
    """The flags of a tool, but for those that load code."""
    parser = tools()[tool].make_parser()
    return sorted(set(parser._option_string_actions) - {"--plugin", "--dassl-compat", "--debug"})


class TooLongError(BaseException):
    """A case took longer than SECONDS."""


def call(words: Sequence[str]) -> tuple[int, str]:
    """Exit code and stderr of a command, run in this process."""
    from dassl_lite.engine.commands.cli import run_tool

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run_tool(tools()[words[0]].main, list(words[1:]))
        except SystemExit as ended:  # --help and --version
            code = ended.code if isinstance(ended.code, int) else 1
        except TooLongError:
            return -1, "took too long\n" + "".join(traceback.format_exc().splitlines(keepends=True)[-12:])
        except Exception:  # noqa: BLE001 (this is what is looked for)
            return 1, err.getvalue() + traceback.format_exc()
    return code, err.getvalue() + "".join(line for line in out.getvalue().splitlines(True) if "Traceback" in line)


def verdict(code: int, said: str) -> str:
    """What is wrong with how a command ended; "" if nothing is."""
    lines = [
        line for line in re.split("[\n\r]", said) if line.strip() and not line.startswith(("Warning:", "Evaluating"))
    ]
    lines = [line for line in lines if "it/s" not in line and "batch/s" not in line and "%|" not in line]
    if "Traceback" in said or code not in (0, 2):
        return f"exit code {code}"
    if code == 2 and (len(lines) != 1 or not lines[0].startswith("Error: ")):
        return f"{len(lines)} lines on stderr"
    if len(said) > 5000:
        return f"{len(said):,} characters on stderr"
    return ""


def run_case(stage: Stage, kind: str, rng: random.Random) -> tuple[list[str], int, str, str]:
    """Make a case and run it; (words, exit code, stderr, what is wrong)."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name, working_in(name):
        words = KINDS[kind](stage, rng, Path(name))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with time_limit(SECONDS):
            code, said = call(words)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    wrong = verdict(code, said) or (f"{grown >> 20} MiB of memory" if grown > MEMORY else "")
    return words, code, said, wrong


@contextlib.contextmanager
def working_in(folder: str) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- the long run ----------------------------------------------------------------------------------------------------


def work(stage: Stage, args: argparse.Namespace) -> None:
    """Run this worker's cases; a line of JSON before each and after it."""
    import torch

    torch.set_num_threads(1)
    report = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    kinds = args.kinds or list(KINDS)
    for number in range(args.first, args.count, args.step):
        kind = kinds[number % len(kinds)]
        print(json.dumps({"number": number, "kind": kind}), file=report, flush=True)
        start = time.perf_counter()
        words, code, said, wrong = run_case(stage, kind, random.Random(f"{args.seed}-{number}"))
        done = {"number": number, "kind": kind, "code": code, "wrong": wrong, "seconds": time.perf_counter() - start}
        done |= {"words": [word[:200] for word in words], "said": said[-3000:]} if wrong or args.show else {}
        print(json.dumps(done), file=report, flush=True)


def watch(first: int, args: argparse.Namespace, stage: Path) -> Iterator[dict[str, Any]]:
    """What a worker reports; one that hangs or dies is replaced."""
    while first < args.count:
        settings = [
            "--first",
            str(first),
            "--step",
            str(args.jobs),
            "--count",
            str(args.count),
            "--seed",
            str(args.seed),
        ]
        settings += ["--show"] if args.show else []
        settings += [word for kind in args.kinds for word in ("--kinds", kind)]
        command = [sys.executable, __file__, "--worker", "--stage", str(stage), *settings]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        current: dict[str, Any] = {}
        while True:
            ready, _, _ = select.select([process.stdout], [], [], 0 if not current else 2 * SECONDS + 240)
            line = process.stdout.readline() if ready or not current else ""
            if not line:
                break
            current = json.loads(line)
            if "wrong" in current:
                yield current
                first = current["number"] + args.jobs
        process.kill()
        process.wait()
        if first < args.count:
            number = first if "wrong" in current or not current else current["number"]
            yield {
                "number": number,
                "kind": current.get("kind", "?"),
                "code": None,
                "wrong": "hung or died",
                "seconds": 0,
            }
            first = number + args.jobs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="number of cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--only", type=int, help="run this case alone, and show what it says")
    parser.add_argument("--kinds", action="append", default=[], choices=list(KINDS))
    parser.add_argument("--stage", type=Path, help="folder for the sound input; kept if given")
    parser.add_argument("--show", action="store_true", help="print every case")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--step", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.stage or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-stage-")))
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["DASSL_LITE_CACHE"], os.environ["HF_HUB_OFFLINE"] = str(folder / "cache"), "1"
        stage = make_stage(folder.resolve())
        if args.worker:
            work(stage, args)
            return 0
        if args.only is not None:
            kinds = args.kinds or list(KINDS)
            words, code, said, wrong = run_case(
                stage, kinds[args.only % len(kinds)], random.Random(f"{args.seed}-{args.only}")
            )
            print([word[:300] for word in words], code, said, wrong or "fine", sep="\n")
            return bool(wrong)
        return run_all(args, folder)


def run_all(args: argparse.Namespace, folder: Path) -> int:
    """Every case, in ``args.jobs`` processes; prints what fails, then the counts."""
    from concurrent.futures import ThreadPoolExecutor

    codes: Counter[tuple[str, Any]] = Counter()
    failed: list[dict[str, Any]] = []

    def collect(first: int) -> None:
        nonlocal failed
        for done in watch(first, args, folder):
            codes[done["kind"], done["code"]] += 1
            failed += [done] if done["wrong"] else []
            if done["wrong"] or args.show:
                print(json.dumps(done, indent=1), flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(collect, range(args.first, args.first + args.jobs)))
    for (kind, code), count in sorted(codes.items(), key=str):
        print(f"{kind:12} exit {code}: {count}")
    print(f"{sum(codes.values())} cases, {len(failed)} failed; repeat one with --seed {args.seed} --only NUMBER")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
