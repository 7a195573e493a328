"""The house rules for methods: a short chain of classes, and a short way from the command line to the product."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch.nn.functional as F

from dassl_lite.engine import TRAINER_REGISTRY
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.models import heads
from dassl_lite.tools import train

REPOSITORY = Path(__file__).resolve().parents[2]
load_plugins()
METHODS = [
    name for name in TRAINER_REGISTRY if TRAINER_REGISTRY.get(name).__module__.startswith("dassl_lite.trainers.")
]


def test_coop_stands_on_at_most_six_classes() -> None:
    assert len(TRAINER_REGISTRY.get("CoOp").__mro__) <= 6


@pytest.mark.parametrize("name", METHODS)
def test_no_method_is_defined_in_three_classes_of_a_trainer(name: str) -> None:
    defined = Counter(
        attribute
        for cls in TRAINER_REGISTRY.get(name).__mro__[:-1]
        for attribute, value in vars(cls).items()
        if callable(getattr(value, "__func__", value)) and not attribute.startswith("__")
    )
    assert {attribute: count for attribute, count in defined.items() if count > 2} == {}


def own_frames(frame: FrameType | None) -> list[tuple[str, str]]:
    """(file, function) of the project's frames below `run_tool`, outermost first."""
    found = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(REPOSITORY) and not path.is_relative_to(REPOSITORY / "tests"):
            found.append((str(path.relative_to(REPOSITORY)), frame.f_code.co_name))
        frame = frame.f_back
    found.reverse()
    return found[[name for _, name in found].index("run_tool") :]


@pytest.mark.slow
def test_a_batch_reaches_the_product_through_eight_frames_in_five_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As docs/architecture.md draws it."""
    seen: list[list[tuple[str, str]]] = []
    normalize = F.normalize

    def spy(*args: Any, **options: Any) -> Any:
        frames = own_frames(sys._getframe(1))
        if any(name == "forward_backward" for _, name in frames):
            seen.append(frames)
        return normalize(*args, **options)

    monkeypatch.setattr(heads.F, "normalize", spy)
    options = ["DATASET.FEATURES.VIEWS", "1", "OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0"]
    arguments = ["--trainer", "TaskRes", "--dataset-config-file", "gadgets", "--shots", "1"]
    assert run_tool(train.main, [*arguments, "--output-dir", str(tmp_path / "run"), *options]) == 0
    frames = seen[0]
    assert frames[0] == ("dassl_lite/engine/commands/cli.py", "run_tool")
    assert frames[-1] == ("dassl_lite/models/heads.py", "forward")
    assert len(frames) <= 8, frames
    assert len({file for file, _ in frames}) <= 5, frames
