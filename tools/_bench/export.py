"""What becomes of each method in another program: its form, its size, and how its answers differ from ours.

Each method is fitted for a moment on drawn shapes, exported, and compared on other shapes: on the demo backbone, a
ResNet, and on a small ViT of random weights, which takes learned prompts, adapters and LoRA in its image encoder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import open_clip
from tabulate import tabulate

from dassl_lite.classifier import FewShotClassifier
from dassl_lite.classifier.content import method_keys
from dassl_lite.classifier.export import FORMATS
from dassl_lite.data import build_dataset
from dassl_lite.engine import TRAINER_REGISTRY
from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands.arguments import ToolParser, check_at_least
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.tools._bench import Row, write_rows
from dassl_lite.utils.errors import UserError, unknown

NAME = "export"
_CLASSES = 8
_TESTED = 64  # pictures
_OURS = "dassl_lite.trainers."
SMALL = "small-ViT"
_SIZES = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 64, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3},
}
# Keys that set how long a method trains, for methods without epochs.
_SHORT = {"STEPS_PER_SHOT": 2, "ITERATIONS": 100, "EPOCHS": 10}


def add_parser(subparsers: argparse._SubParsersAction[ToolParser]) -> None:
    """Declare the flags of ``bench.py export``."""
    parser = subparsers.add_parser(NAME, help="each method's export against the method itself", description=__doc__)
    add = parser.add_argument
    add("--methods", nargs="+", default=[], metavar="NAME", help="methods (default: all that come with the package)")
    add(
        "--backbones", nargs="+", default=["demo", SMALL], metavar="NAME", help=f"backbones; {SMALL} has random weights"
    )
    add("--format", default=FORMATS[0], metavar="NAME", help=f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    add("--shots", type=int, default=4, metavar="N", help="training images of each class")
    add("--json", metavar="FILE", help="also write the rows to FILE")


def run(args: argparse.Namespace) -> list[Row]:
    """Measure and print a table; returns its rows."""
    check_at_least(args, 1, ["shots"], at_most=1000)
    load_plugins()
    every = [name for name in TRAINER_REGISTRY if TRAINER_REGISTRY.get(name).__module__.startswith(_OURS)]
    if wrong := [name for name in args.methods if name not in TRAINER_REGISTRY]:
        raise unknown("method", wrong[0], every)
    data = build_dataset(make_config(flags={"DATASET": {"NAME": "ShapesNet", "NUM_SHOTS": args.shots}}))
    rows = []
    with _small_vit():
        for backbone in args.backbones:
            name = f"random:{SMALL}" if backbone == SMALL else backbone
            for method in args.methods or sorted(every):
                rows.append({"backbone": backbone, "method": method, **_row(args, method, name, data)})
                print(*rows[-1].values(), file=sys.stderr, flush=True)
    print(tabulate(rows, headers="keys", floatfmt=(".1f",) * 4 + (".1e", ".1f")))
    write_rows(args.json, rows)
    return rows


def _row(args: argparse.Namespace, method: str, backbone: str, data: Any) -> Row:
    options: dict[str, Any] = {"DATASET.FEATURES.VIEWS": 1, "DATALOADER.NUM_WORKERS": 0}
    options |= {key: value for key, value in _SHORT.items() if key in method_keys(method)}
    classifier = FewShotClassifier(method=method, backbone=backbone, epochs=1, device="cpu", options=options)
    with tempfile.TemporaryDirectory() as folder:
        try:
            classifier.fit(*_pictures(data.train_x))
            pictures = _pictures(data.test)[0]
            found = classifier.export(Path(folder) / "out", args.format, pictures[:: max(1, len(pictures) // _TESTED)])
        except UserError as error:
            return {"form": str(error)[:80], "MB": "", "largest difference": "", "same top class, %": ""}
    return {
        "form": found.form,
        "MB": found.megabytes,
        "largest difference": found.difference,
        "same top class, %": found.agreement,
    }


def _pictures(items: Sequence[Any]) -> tuple[list[str], list[str]]:
    own = [item for item in items if item.label < _CLASSES]
    return [item.impath for item in own], [item.classname for item in own]


@contextlib.contextmanager
def _small_vit() -> Iterator[None]:
    """A context in which open_clip knows the architecture `SMALL`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{SMALL}.json"
        path.write_text(json.dumps(_SIZES))
        open_clip.add_model_config(path)
    yield
