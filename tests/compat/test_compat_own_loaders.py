"""Trainers and datasets that do for themselves what Dassl's base classes would do for them."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dassl_lite.data import Datum
from dassl_lite.engine.commands.cli import run_tool as to_exit_code
from dassl_lite.tools import train as tool
from dassl_lite.utils import load_checkpoint

PLUGIN = ("--plugin", str(Path(__file__).parent / "third_party_loaders.py"))
ITEM = {"label", "domain", "impath", "index", "img", "img0"}
COMMON = ("DATASET.NAME", "PaperPickled", "DATASET.NUM_SHOTS", "2", "DATALOADER.RETURN_IMG0", "True")


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "more", "keys", "sizes"),
    [
        ("PaperWeakStrong", ("TRAIN.COUNT_ITER", "train_u"), {*ITEM, "img2"}, {"train": 6, "val": 0, "test": 15}),
        ("PaperNoManager", ("DATALOADER.K_TRANSFORMS", "3"), ITEM, {"train": 6, "val": 0, "test": 15}),
    ],
)
def test_a_trainer_with_its_own_loaders_runs(
    run_tool: Any, tmp_path: Path, trainer: str, more: tuple[str, ...], keys: set[str], sizes: dict[str, int]
) -> None:
    assert run_tool(trainer, "run", *PLUGIN, *COMMON, *more, "TEST.PER_CLASS_RESULT", "True") == 0
    batches = sys.modules["dassl_lite_plugin_third_party_loaders"].BATCHES
    assert batches
    assert all(batch == keys for batch in batches)
    batches.clear()
    results = results_of(tmp_path / "run")
    assert results["split_sizes"] == sizes
    assert [row["classname"] for row in results["per_class"]] == ["blue", "green", "red"]
    meta = load_checkpoint(tmp_path / "run" / "model" / "model.pth.tar-4")["meta"]
    assert meta["classnames"] == ["blue", "green", "red"]
    flags = ("--eval-only", "--model-dir", str(tmp_path / "run"), "--load-epoch", "4")
    assert run_tool(trainer, "evaluated", *PLUGIN, *flags, *COMMON, *more) == 0
    logs = [(tmp_path / run / "log.txt").read_text().splitlines() for run in ("run", "evaluated")]
    accuracies = [[line for line in log if line.startswith("* accuracy")] for log in logs]
    assert accuracies[0] == accuracies[1]


@pytest.mark.slow
def test_a_trainer_without_a_model_can_be_evaluated(run_tool: Any, tmp_path: Path) -> None:
    """As the field runs its zero-shot CLIP: ``--eval-only`` and no ``--model-dir``."""
    assert run_tool("PaperZeroShot", "run", *PLUGIN, "--eval-only", *COMMON) == 0
    assert "* accuracy: 100.0%" in (tmp_path / "run" / "log.txt").read_text().splitlines()


def as_dassl_pickles(items: list[Datum], monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Dassl's Datum has a dict, and stands in another module."""
    theirs = ModuleType("of_dassl")
    theirs.Datum = type("Datum", (), {"__module__": "of_dassl"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "of_dassl", theirs)
    copies = []
    for item in items:
        copies.append(theirs.Datum())
        vars(copies[-1]).update(_impath=item.impath, _label=item.label, _domain=item.domain)
        vars(copies[-1]).update(_classname=item.classname)
    data = pickle.dumps({"train": copies, "val": []}, protocol=2)
    return data.replace(b"cof_dassl\nDatum\n", b"cdassl.data.datasets.base_dataset\nDatum\n")


@pytest.mark.slow
def test_a_draw_that_a_dataset_pickles_itself_comes_back_the_same(
    run_tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (*PLUGIN, *COMMON, "DATALOADER.K_TRANSFORMS", "2")
    assert run_tool("PaperNoManager", "run", *flags) == 0
    assert run_tool("PaperNoManager", "run", "--overwrite", *flags) == 0
    assert "Loading preprocessed few-shot data" in (tmp_path / "run" / "log.txt").read_text()
    file = tmp_path / "run" / "draws" / "shot_2-seed_1.pkl"
    drawn = pickle.loads(file.read_bytes())["train"]  # noqa: S301
    file.write_bytes(as_dassl_pickles(drawn, monkeypatch))
    assert pickle.loads(file.read_bytes())["train"] == drawn  # noqa: S301
    first = results_of(tmp_path / "run")["metrics"]
    assert run_tool("PaperNoManager", "run", "--overwrite", *flags) == 0
    assert results_of(tmp_path / "run")["metrics"] == first


@pytest.mark.slow
def test_help_lists_the_keys_in_a_papers_train_py(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declared = "def extend_cfg(cfg):\n    from yacs.config import CfgNode\n    cfg.OTHER_OF_PAPER = 1\n"
    declared += "    node = cfg.TRAINER.PAPERNOMANAGER = CfgNode()\n    node.DEPTH = 9  # of the prompts\n"
    (tmp_path / "train_of_paper.py").write_text(declared)
    flags = ("--dassl-compat", *PLUGIN, "--plugin", str(tmp_path / "train_of_paper.py"))
    assert to_exit_code(tool.main, [*flags, "--help-trainer", "PaperNoManager"]) == 0
    told = capsys.readouterr().out
    (row,) = [line.split() for line in told.splitlines() if "PAPERNOMANAGER" in line]
    assert row == ["TRAINER.PAPERNOMANAGER.DEPTH", "9"]
    assert "OTHER_OF_PAPER" not in told
