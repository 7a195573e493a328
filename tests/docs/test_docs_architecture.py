"""The calls that docs/architecture.md lists for a batch are the calls of a real training step."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.models.heads import CosineHead
from dassl_lite.tools import train

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
RUN = ["--trainer", "TaskRes", "--dataset-config-file", "gadgets", "--shots", "1", "--output-dir", "run"]
QUICK = ["OPTIM.MAX_EPOCH", "1", "DATASET.FEATURES.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0"]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(function, file) of each call in this repository from ``run_tool`` to the head's product, in a training step."""
    steps: list[list[tuple[str, str]]] = []
    forward = CosineHead.class_features

    def noting(head: CosineHead) -> object:
        if head.training:
            frame, found = sys._getframe(1), []
            while frame is not None:
                path = Path(frame.f_code.co_filename).resolve()
                if path.is_relative_to(REPOSITORY) and not path.is_relative_to(REPOSITORY / "tests"):
                    found.append((frame.f_code.co_name, path.relative_to(REPOSITORY).as_posix()))
                frame = frame.f_back
            steps.append(found[::-1])
        return forward(head)

    monkeypatch.setattr(CosineHead, "class_features", noting)
    monkeypatch.chdir(tmp_path)
    assert run_tool(train.main, [*RUN, *QUICK]) == 0
    return steps[0]


@pytest.mark.slow
def test_a_batch_takes_the_documented_path_of_at_most_eight_calls_in_five_files(
    calls: list[tuple[str, str]],
) -> None:
    listed = re.findall(r"^\| `(\w+)\([^)]*\)` \| `(\S+\.py)` \|", PAGE, re.MULTILINE)
    assert calls == listed
    assert len(calls) <= 8
    assert len({path for _, path in calls}) <= 5
