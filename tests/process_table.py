"""Whether two processes end where one does: the table in docs/howto/several-processes.md, by running every method.

    python tests/process_table.py            # run all, alone and in two; print what changed, exit status 1 if so
    python tests/process_table.py --write    # renew the table

Each cell is a short run: on a feature file, on images with the feature cache, and on images that every step encodes.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import families
import numpy as np
import open_clip
import torch
from family_table import draw_pictures, lines_between, loaded_once, methods, settle, short_options

PAGE = Path(__file__).resolve().parents[1] / "docs" / "howto" / "several-processes.md"
BEGIN, END = "<!-- table: python tests/process_table.py --write -->\n", "<!-- end of table -->\n"
KINDS = {"features": "feature file", "cache": "images, cached features", "images": "images, encoded in each step"}
EQUAL, ROUNDING, REFUSED = "equal", "rounding", "no"
TOLERANCE = 1e-3  # of logits after several steps, relative to the largest
# Masks of dropout are drawn per process; Auto compares seven methods, each of which has a row of its own.
OPTIONS = {
    "CLIPLoRA": ("TRAINER.CLIPLoRA.DROPOUT", "0.0"),
    "Auto": ("TRAINER.Auto.METHODS", "['ZeroshotCLIP', 'GDA']", "TRAINER.Auto.FOLDS", "2"),
}

Cell = tuple[str, str]  # method and kind of data


def draw_features(path: Path) -> None:
    """A feature file of three classes around their text features, with the states before a projection."""
    stream = np.random.default_rng(0)
    projection = (stream.normal(size=(20, 16)) / 4).astype("f4")
    centres = stream.normal(size=(3, 20))
    arrays: dict[str, Any] = {"classnames": np.array(["one", "two", "three"]), "projection": projection}
    for part, count in {"train": 3, "val": 2, "test": 5}.items():
        labels = np.repeat(np.arange(3), count)
        states = (stream.normal(size=(len(labels), 20)) + centres[labels]).astype("f4")
        arrays |= {f"{part}_states": states, f"{part}_labels": labels, f"{part}_features": states @ projection}
    np.savez(path, **arrays, text_weights=(centres + stream.normal(size=centres.shape)).astype("f4") @ projection)


def add_backbone(folder: Path) -> str:
    """Make a small ViT with random weights known to open_clip; its name."""
    config = copy.deepcopy(open_clip.get_model_config("ViT-B-32"))
    config["embed_dim"] = families.WIDTH
    families._shrink_vision(config["vision_cfg"])
    config["text_cfg"] |= {"width": families.WIDTH, "heads": 2, "layers": 2}
    (folder / "tiny-of-processes.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return "random:tiny-of-processes"


def run(method: str, kind: str, folder: Path, output: Path) -> dict[str, Any] | str:
    """Train and test a method: what it found, or the refusal's words."""
    from dassl_lite.engine.build import build_trainer, make_config
    from dassl_lite.utils import UserError, set_random_seed

    data: dict[str, Any] = {"NAME": "Features", "FILE": str(folder / "features.npz")}
    options = [*short_options(method), *OPTIONS.get(method, ())]
    if kind != "features":
        views = {"VIEWS": int(kind == "cache"), "DIR": str(output / "cache")}
        data = {"NAME": "ImageFolder", "ROOT": str(folder / "pictures"), "FEATURES": views}
        options += ["INPUT.TRANSFORMS", "('normalize',)"]
    flags = {
        "DATASET": {"NUM_SHOTS": 3, **data},
        "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 4}, "TEST": {"BATCH_SIZE": 4}},
        "MODEL": {"BACKBONE": {"NAME": "random:tiny-of-processes"}},
        "OPTIM": {"MAX_EPOCH": 2},
        "OUTPUT_DIR": str(output / kind / method),
        "VERBOSE": False,
    }
    set_random_seed(1)
    try:
        trainer = build_trainer(make_config(trainer=method, flags=flags, options=options))
        zero_shot = trainer.zero_shot()
        trainer.train()
    except UserError as error:
        return str(error)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        batches = (trainer.parse_batch_test(batch)[0] for batch in trainer.test_loader)
        logits = torch.cat([trainer.model_inference(batch) for batch in batches])
    results = {"zero_shot": zero_shot, **trainer.results["test"]}
    return {"results": results, "logits": logits, "head": dict(trainer.head.state_dict())}


@contextmanager
def prepared(folder: Path) -> Iterator[None]:
    """A context in which runs find the backbone, and a cache of their own."""
    from dassl_lite.engine.methods import backbone as run_backbone

    add_backbone(folder)
    own = mock.patch.object(run_backbone, "load_clip", loaded_once(run_backbone.load_clip))
    with mock.patch.dict(os.environ, {"DASSL_LITE_CACHE": str(folder / "cache")}), own:
        yield


def run_all(cells: Sequence[Cell], folder: Path, output: Path) -> dict[Cell, Any]:
    """What each cell's run finds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with prepared(folder):
            return {(method, kind): run(method, kind, folder, output) for method, kind in cells}
    finally:
        torch.set_num_threads(threads)


def in_two(cells: Sequence[Cell], folder: Path, output: Path) -> list[dict[Cell, Any]]:
    """What `run_all` gives in each of two processes that torchrun starts."""
    output.mkdir()
    (output / "cells.json").write_text(json.dumps(cells))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, __file__, "--as-one-of", str(folder), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(output / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def as_one_of(folder: Path, output: Path) -> None:
    """Be one of the two processes."""
    from dassl_lite.engine.parallel import distributed

    methods()  # imports the trainers
    distributed.start()
    found = run_all(
        [(method, kind) for method, kind in json.loads((output / "cells.json").read_text())], folder, output
    )
    torch.save(found, output / f"rank{distributed.rank()}.pt")


def compared(cells: Sequence[Cell]) -> dict[Cell, str]:
    """Of each cell, how two processes end compared with one."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw_features(folder / "features.npz")
        draw_pictures(folder / "pictures")
        two = in_two(cells, folder, folder / "two")
        one = run_all(cells, folder, folder / "one")
    return {cell: word_for(one[cell], *(rank[cell] for rank in two)) for cell in cells}


def word_for(one: Any, first: Any, second: Any) -> str:
    """How the two processes' findings compare with one's."""
    if isinstance(one, str):
        return REFUSED if one == first == second else f"alone: {one}; in two: {first}, {second}"
    if not same(first, second):
        return "the two processes differ"
    if same(one, first):
        return EQUAL
    error = float((first["logits"] - one["logits"]).abs().max() / one["logits"].abs().max())
    alike = first["results"]["accuracy"] == one["results"]["accuracy"]
    return ROUNDING if error < TOLERANCE and alike else f"differs by {error:.1e}: {first['results']}, {one['results']}"


def same(one: Any, other: Any) -> bool:
    """Whether two findings are alike, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return (
        one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
        if isinstance(one, dict)
        else bool(one == other)
    )


def table() -> list[str]:
    """The table's lines, from runs."""
    every = methods()
    found = compared([(method, kind) for method in every for kind in KINDS])
    lines = ["| method | " + " | ".join(KINDS.values()) + " |", "|---|" + "---|" * len(KINDS)]
    return lines + [f"| `{method}` | " + " | ".join(found[method, kind] for kind in KINDS) + " |" for method in every]


def written() -> dict[Cell, str]:
    """The page's cells."""
    _, _, *rows = ([text.strip() for text in line.split("|")[1:-1]] for line in stored())
    return {(row[0].strip("`"), kind): word for row in rows for kind, word in zip(KINDS, row[1:], strict=True)}


def stored() -> list[str]:
    """The lines of the table in the page."""
    return lines_between(PAGE, BEGIN, END)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="renew the table in the page")
    parser.add_argument("--as-one-of", nargs=2, type=Path, default=(), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    if arguments.as_one_of:
        as_one_of(*arguments.as_one_of)
        return 0
    return settle(PAGE, BEGIN, END, table(), write=arguments.write)


if __name__ == "__main__":
    sys.exit(main())
