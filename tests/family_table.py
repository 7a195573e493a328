"""Which methods run on which family of backbones: the table in docs/reference/backbones.md, by running them.

    python tests/family_table.py            # run every method on every family; print what changed, exit status 1 if so
    python tests/family_table.py --write    # renew the table; of a new method alone: --write GDA

Each cell is a short run on a few small pictures with a small CLIP of random weights (tests/families.py): build, train,
test. It needs the extra ``hf``, for the families with a Hugging Face tokenizer or text encoder.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import functools
import logging
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from families import FAMILIES, copied, register
from PIL import Image

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "backbones.md"
BEGIN, END = "<!-- table: python tests/family_table.py --write -->\n", "<!-- end of table -->\n"
CLASSES = ("red circle", "green square", "blue star")
# Keys of every method that make its run short; the names end so.
SHORT = {"STEPS": 2, "ITERATIONS": 2, "EPOCHS": 2, "STEPS_PER_SHOT": 1, "N_CTX": 4}


def methods() -> list[str]:
    """The methods that come with the package, as the package's folder has them."""
    from public_surface import _import_trainers

    from dassl_lite.engine import TRAINER_REGISTRY

    _import_trainers()
    own = "dassl_lite.trainers."
    return sorted(name for name in TRAINER_REGISTRY if TRAINER_REGISTRY.get(name).__module__.startswith(own))


def short_options(method: str) -> list[str]:
    """Options that make a method's run as short as it can be."""
    from dassl_lite.engine import TRAINER_REGISTRY
    from dassl_lite.engine.contract.keys import keys_of

    trainer = TRAINER_REGISTRY.get(method)
    options = []
    for name in keys_of(trainer):
        value = next((value for end, value in SHORT.items() if name == end or name.endswith(f"_{end}")), None)
        if value is not None:
            options += [f"TRAINER.{trainer.node_name()}.{name}", str(value)]
    return options


def draw_pictures(folder: Path) -> Path:
    """Three training images, one for validation and two for the test of each class: noise."""
    stream = np.random.default_rng(0)
    for part, count in {"train": 3, "val": 1, "test": 2}.items():
        for name in CLASSES:
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = stream.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return folder


def run_cell(method: str, backbone: str, pictures: Path, output: Path) -> str:
    """Train and test a method on a backbone: "yes", the encoders that it adapts, or the refusal's words.

    An error that is no refusal, a loss or weight that is not finite, and a method that learned nothing are errors here.
    """
    from dassl_lite.engine.build import build_trainer, make_config
    from dassl_lite.utils import UserError, set_random_seed

    flags = {
        "DATASET": {"NAME": "ImageFolder", "ROOT": str(pictures), "NUM_SHOTS": 2, "FEATURES": {"VIEWS": 1}},
        "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 3}, "TEST": {"BATCH_SIZE": 6}},
        "MODEL": {"BACKBONE": {"NAME": backbone}},
        "OPTIM": {"MAX_EPOCH": 1},
        "OUTPUT_DIR": str(output),
    }
    set_random_seed(1)
    try:
        cfg = make_config(trainer=method, flags=flags, options=short_options(method))
        trainer = build_trainer(cfg)
        before = copy.deepcopy(dict(trainer.head.named_parameters()))
        trainer.train()
    except UserError as error:
        return "no ViT" if "is not a ViT of open_clip" in str(error) else str(error)
    assert math.isfinite(trainer.results["test"]["accuracy"])
    for name, parameter in trainer.head.named_parameters():
        assert torch.isfinite(parameter).all(), name
    learned = [name for name, own in trainer.head.named_parameters() if not torch.equal(own, before.get(name, own))]
    assert learned or not before or not trainer.trains, f"{method} on {backbone} learned nothing"
    if method in ("IVLP", "PromptSRC"):
        return "text" if trainer.head.vision is None else "both"
    settings = getattr(trainer.head, "settings", {})
    return str(settings.get("encoder") or settings.get("ENCODER") or "yes")


def loaded_once(load: Callable[..., Any]) -> Callable[..., Any]:
    """`load_clip`, which builds each model once and then copies it."""
    keep = functools.lru_cache(maxsize=1)(lambda name, precision: load(name, precision=precision))
    return lambda name, precision="fp32", device="cpu": copied(keep(name, precision)).to(device)


@contextmanager
def prepared() -> Iterator[Callable[[str, str], str]]:
    """Gives a function from family and method to the cell; models and pictures are made for it, and go afterwards."""
    from dassl_lite.engine.methods import backbone as run_backbone

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        environment = {"DASSL_LITE_CACHE": str(root / "cache"), "HF_HUB_OFFLINE": "1"}
        own = mock.patch.object(run_backbone, "load_clip", loaded_once(run_backbone.load_clip))
        with mock.patch.dict(os.environ, environment), own:
            names = register(root / "families", tuple(f"a photo of a {name}." for name in CLASSES), "tiny-of-table")
            pictures = draw_pictures(root / "pictures")
            yield lambda family, method: run_cell(method, names[family], pictures, root / "runs" / family / method)


def table(chosen: Sequence[str] = ()) -> list[str]:
    """The table's lines, from runs on each family of the chosen methods, or of all; other cells are as in the page."""
    every, kept = methods(), cells()
    lines = ["| family | for example | " + " | ".join(f"`{method}`" for method in every) + " |"]
    lines.append("|---|---|" + "---|" * len(every))
    with prepared() as cell:
        for family in FAMILIES:
            found = {method: cell(family, method) for method in chosen or every}
            found = {method: found.get(method) or kept[family][method] for method in every}
            lines.append(f"| {family} | `{FAMILIES[family]}` | " + " | ".join(found.values()) + " |")
    return lines


def cells() -> dict[str, dict[str, str]]:
    """The page's cells: family -> method -> cell."""
    if not stored():
        return {}
    heading, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in stored())
    return {row[0]: dict(zip((name.strip("`") for name in heading[2:]), row[2:], strict=True)) for row in rows}


def stored() -> list[str]:
    """The lines of the table in the page."""
    return lines_between(PAGE, BEGIN, END)


def lines_between(page: Path, begin: str, end: str) -> list[str]:
    """The lines of a page between two marks."""
    return page.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0].strip().splitlines()


def settle(page: Path, begin: str, end: str, lines: list[str], *, write: bool) -> int:
    """Put lines between two marks of a page, or print how they differ from those there; the exit status."""
    if write:
        before, _, rest = page.read_text(encoding="utf-8").partition(begin)
        page.write_text(before + begin + "\n" + "\n".join(lines) + "\n\n" + end + rest.partition(end)[2], "utf-8")
        return 0
    there = lines_between(page, begin, end)
    changed = list(difflib.unified_diff(there, lines, page.name, "the runs", lineterm="", n=0))
    print("\n".join(changed))
    return 1 if changed else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="renew the table in the page")
    parser.add_argument("methods", nargs="*", help="run these alone; the others' cells are taken from the page")
    arguments = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    return settle(PAGE, BEGIN, END, table(arguments.methods), write=arguments.write)


if __name__ == "__main__":
    sys.exit(main())
